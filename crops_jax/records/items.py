"""Texts and counters of items, looked up by id: the platform's items and documents that a language model wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.engines.table_rows import take_rows
from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import COUNTERS, LIST_FIELDS, TEXT_FIELDS
from crops_jax.logs.tables import read_table
from crops_jax.normal_text import normal_form
from crops_jax.progress import progress
from crops_jax.records.features import UNKNOWN_COUNT
from crops_jax.stable_hash import mix, text_keys

_AT_ONCE = 1 << 14  # documents
_NO_TEXT = -1
_ALONE = np.asarray(1, np.int64)  # tells the keys of ids from other hashes of ids


class Items:
    """Text fields and counters by item id. Null texts are empty, null or absent counters `UNKNOWN_COUNT`."""

    def __init__(self, tables: Mapping[str, pa.Table], shown: bool = True):
        """Joins tables that hold `item_id`, the four text fields and, where known, the counters.

        Args:
          tables: name (for messages) -> table, e.g. {"items": ..., "knowledge": ...}.
          shown: whether long work draws a bar.

        Raises:
          InputError: lists every missing column and the first ids that occur twice.
        """
        self._shown = shown
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
        self._keys: dict[tuple[str, ...], np.ndarray] = {}

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

    def have_text(self, rows: np.ndarray, fields: tuple[str, ...]) -> np.ndarray:
        """bool[n]: whether any of these fields, those that the model reads, has text in rows that `rows()` found."""
        return self._keys_of(fields)[rows] != _NO_TEXT

    def keys(self, fields: tuple[str, ...] = TEXT_FIELDS) -> Callable[[np.ndarray], np.ndarray]:
        """A function of int64[n] item ids: a key of each one's text, never negative (`stable_hash.text_keys`).

        Texts are the same when their `normal_form` over `fields`, those that the model reads, is. A document without
        text, and an id that is not here, have a key of their own.
        """
        known = self._keys_of(fields)

        def of(item_ids: np.ndarray) -> np.ndarray:
            rows = self.rows(item_ids)
            found = np.full(len(rows), _NO_TEXT)
            found[rows >= 0] = known[rows[rows >= 0]]
            alone = (mix(np.asarray(item_ids, np.int64), _ALONE) >> np.uint64(1)).astype(np.int64)
            return np.where(found == _NO_TEXT, alone, found)

        return of

    def _keys_of(self, fields: tuple[str, ...]) -> np.ndarray:
        """int64[rows]: the key of each row's text, `_NO_TEXT` where it has none."""
        fields = tuple(name for name in TEXT_FIELDS if name in fields)  # their order does not matter
        if fields not in self._keys:
            self._keys[fields] = _text_keys(self._texts, fields, self._shown)
        return self._keys[fields]

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


def _text_keys(texts: pa.Table, fields: Sequence[str], shown: bool) -> np.ndarray:
    """int64[n]: the key of each document's normal form, `_NO_TEXT` where it has no text.

    The form is that of `tokenizer.document_text`, which leaves out fields without text and blanks around the others:
    no form has these.
    """
    found = []
    for batch in progress(texts.to_batches(_AT_ONCE), "looking for equal texts", unit="batch", shown=shown):
        columns = [batch.column(name) for name in fields]
        columns = [pc.replace_substring(c, "|", " ") if name in LIST_FIELDS else c
                   for name, c in zip(fields, columns, strict=True)]  # fmt: skip
        whole = pc.binary_join_element_wise(*columns, pa.scalar("\n", pa.large_string()))
        forms = [normal_form(text) for text in whole.to_pylist()]
        found.append(np.where([form != "" for form in forms], text_keys(forms), _NO_TEXT))
    return np.concatenate([np.empty(0, np.int64), *found])


def _first_of_each_id(table: pa.Table) -> pa.Table:
    _, first = np.unique(table["item_id"].to_numpy(), return_index=True)
    return take_rows(table, np.sort(first))


def _conform(table: pa.Table) -> pa.Table:
    columns: dict[str, pa.ChunkedArray] = {"item_id": table["item_id"].cast(pa.int64())}
    for name in TEXT_FIELDS:
        columns[name] = table[name].cast(pa.large_string()).fill_null("")
    for name in COUNTERS:
        given = table[name] if name in table.column_names else pa.chunked_array([pa.nulls(len(table), pa.int64())])
        columns[name] = given.cast(pa.int64()).fill_null(UNKNOWN_COUNT)
    return pa.table(columns)
