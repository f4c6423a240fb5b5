"""Texts and counters of items, looked up by id: the platform's items and documents that a language model wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.logs.tables import read_table
from crops_jax.normal_text import normal_form
from crops_jax.progress import progress
from crops_jax.records.features import UNKNOWN_COUNT
from crops_jax.text.tokenizer import document_text

_AT_ONCE = 1 << 14  # documents


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
        self._copies: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

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

    def originals(self, fields: tuple[str, ...] = TEXT_FIELDS) -> Callable[[np.ndarray], np.ndarray]:
        """A function of int64[n] item ids: the id that stands for all documents of the same text.

        Texts are the same when their `normal_form` over `fields`, those that the model reads, is. Of their ids the
        smallest of the platform's stands for all. A document without text, and an id that is not here, stand for
        themselves.
        """
        if fields not in self._copies:
            self._copies[fields] = _copies(self._ids, _digests(self._texts, fields)[self._order])
        copies, originals = self._copies[fields]

        def of(item_ids: np.ndarray) -> np.ndarray:
            if not len(copies):
                return item_ids
            place = np.minimum(np.searchsorted(copies, item_ids), len(copies) - 1)
            return np.where(copies[place] == item_ids, originals[place], item_ids)

        return of

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


def _copies(ids: np.ndarray, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids of documents whose text stands under another id, rising; the id that stands for each), int64[m] both.

    Args:
      ids: int64[n], rising.
      digests: uint64[n, 2], of each one's text; 0 where it has none.
    """
    order = np.lexsort((ids, ids < 0, digests[:, 1], digests[:, 0]))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(digests[order], axis=0) != 0).any(axis=1) | ~digests[order[1:]].any(axis=1)
    original = np.empty_like(ids)
    original[order] = ids[order[new]][np.cumsum(new) - 1]
    copies = original != ids
    return ids[copies], original[copies]


def _digests(texts: pa.Table, fields: Sequence[str]) -> np.ndarray:
    """uint64[n, 2]: a digest of each document's normal form, 0 where it has no text."""
    found = bytearray()
    for batch in progress(texts.to_batches(_AT_ONCE), "looking for equal texts", unit="batch"):
        columns = (batch.column(name).to_pylist() for name in TEXT_FIELDS)
        for row in zip(*columns, strict=True):
            form = normal_form(document_text(*row, order=fields))
            found += hashlib.blake2b(form.encode(), digest_size=16).digest() if form else bytes(16)
    return np.frombuffer(bytes(found), "<u8").astype(np.uint64).reshape(-1, 2)


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
