"""The texts and counters of items, looked up by id: the platform's own and those a language model wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.logs.tables import read_table
from crops_jax.records.features import UNKNOWN_COUNT


class Items:
    """Text fields and counters by item id. Null texts are empty, null or absent counters `UNKNOWN_COUNT`."""

    def __init__(self, tables: Mapping[str, pa.Table]):
        """Joins tables that hold `item_id`, the four text fields and, where known, the counters.

        Args:
          tables: name (for messages) -> table, e.g. {"items": ..., "knowledge": ...}.

        Raises:
          InputError: lists every missing column and the first ids that occur twice.
        """
        needed = ("item_id", *TEXT_FIELDS)
        missing = [f"{name}: column {column} is missing" for name, table in tables.items()
                   for column in needed if column not in table.column_names]  # fmt: skip
        if missing:
            raise InputError("item tables", missing)
        joined = pa.concat_tables([_conform(table) for table in tables.values()])
        ids = joined["item_id"].to_numpy()
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]
        repeated = np.unique(self._ids[1:][self._ids[1:] == self._ids[:-1]])
        if len(repeated):
            raise InputError("item tables", f"{len(repeated)} item ids occur twice, e.g. {repeated[:5].tolist()}")
        self._texts = joined.select(TEXT_FIELDS).combine_chunks()
        self._counters = {name: joined[name].to_numpy() for name in COUNTERS}

    def __len__(self) -> int:
        return len(self._ids)

    def rows(self, item_ids: Sequence[int]) -> np.ndarray:
        """int64[n]: the row of each id, -1 where the tables do not hold it."""
        wanted = np.asarray(item_ids, np.int64)
        if len(self._ids) == 0:
            return np.full(len(wanted), -1, np.int64)
        place = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        return np.where(self._ids[place] == wanted, self._order[place], -1)

    def texts(self, rows: np.ndarray) -> dict[str, list[str]]:
        """The four text fields of rows that `rows()` found."""
        taken = self._texts.take(pa.array(rows))
        return {name: taken[name].to_pylist() for name in TEXT_FIELDS}

    def counters(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The counters of rows that `rows()` found, int64[n] each."""
        return {name: values[rows] for name, values in self._counters.items()}


def read_items(logs: str | Path, knowledge: Path | None = None) -> Items:
    """`Items` from a log folder and, where there are documents written by a language model, knowledge.parquet.

    Raises:
      InputError: a file is missing or damaged (page checksums are verified), or what `Items` raises.
    """
    tables = {"items": open_logs(logs).read("items")}
    if knowledge is not None:
        # A document written for two queries stands there twice; its id is a hash of its text.
        tables["knowledge"] = _first_of_each_id(read_table(knowledge))
    return Items(tables)


def _first_of_each_id(table: pa.Table) -> pa.Table:
    _, first = np.unique(table["item_id"].to_numpy(), return_index=True)
    return table.take(pa.array(np.sort(first)))


def _conform(table: pa.Table) -> pa.Table:
    columns: dict[str, pa.ChunkedArray] = {"item_id": table["item_id"].cast(pa.int64())}
    for name in TEXT_FIELDS:
        columns[name] = table[name].cast(pa.large_string()).fill_null("")
    for name in COUNTERS:
        given = table[name] if name in table.column_names else pa.chunked_array([pa.nulls(len(table), pa.int64())])
        columns[name] = given.cast(pa.int64()).fill_null(UNKNOWN_COUNT)
    return pa.table(columns)
