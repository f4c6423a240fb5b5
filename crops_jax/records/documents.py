"""The documents that each part of the candidates names, joined to it by the engine, which spills what is too much.

No table of all documents or of all queries is held in memory: the engine joins (part, item id) with the items and the
documents of the language model, and hands back the documents of one part after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from crops_jax.engines.duckdb import EngineConfig, open_engine, read, read_parquet
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.logs.tables import write_table
from crops_jax.records.candidates import Part, documents_of

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import Table

_FIELDS = {"item_id": pa.int64(), **dict.fromkeys(TEXT_FIELDS, pa.string()), **dict.fromkeys(COUNTERS, pa.int64())}
DOCUMENTS = pa.schema(_FIELDS)
_AT_ONCE = 1 << 16  # rows that the engine hands back


@dataclass(frozen=True)
class _Named:
    """(part, item id) of every document that a part names: an `engines.duckdb.Stream`."""

    parts: Mapping[int, Part]
    sources: tuple[str, ...]
    schema = pa.schema({"part": pa.int64(), "item_id": pa.int64()})

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, part by part."""
        for number, part in self.parts.items():
            items = documents_of(part, self.sources)
            columns = [np.full(len(items), number, np.int64), items]
            yield pa.record_batch([pa.array(column) for column in columns], schema=self.schema)


def write_documents(
    parts: Mapping[int, Part], sources: tuple[str, ...], logs: Path, knowledge: Path, folder: Path, engine: EngineConfig
) -> dict[int, Path]:
    """Writes a file of `DOCUMENTS`, sorted by id, for every part that names documents we have, into `folder`.

    Args:
      parts: by number.
      sources: whose documents are wanted.
      knowledge: the language model's documents; the file need not be there.

    Raises:
      InputError: logs or candidates are missing or damaged; memory or disk do not suffice.
    """
    written: dict[int, Path] = {}
    with open_engine(engine, [folder]) as connection:
        named = read(connection, _Named(parts, sources))
        joined = named.join(_every_document(connection, logs, knowledge), "item_id").select("part", *DOCUMENTS.names)
        batches = joined.order_by("part", "item_id").to_pyarrow_batches(chunk_size=_AT_ONCE)
        for number, table in _by_part(batches):
            written[number] = folder / f"documents-{number:05d}.parquet"
            write_table(DOCUMENTS, table, written[number])
    return written


def _every_document(connection: Backend, logs: Path, knowledge: Path) -> Table:
    import ibis

    items = open_logs(logs).engine_table(connection, "items").select(*DOCUMENTS.names)
    if not knowledge.exists():
        return items
    # A document written for two queries stands there twice; its id is a hash of its text.
    written = read_parquet(connection, knowledge).select(*DOCUMENTS.names)
    written = written.distinct(on="item_id", keep="first")
    types = {name: kind(nullable=True) for name, kind in items.schema().items()}
    return ibis.union(items.cast(types), written.cast(types))


def _by_part(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """(part, its rows) of rows sorted by part."""
    held: list[pa.RecordBatch] = []
    number = -1
    for batch in batches:
        part = batch.column("part").to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
        for a, b in pairwise(edges):
            if a == b:
                continue
            if part[a] != number and held:
                yield number, pa.Table.from_batches(held)
                held = []
            number = int(part[a])
            held.append(batch.slice(a, b - a).select(DOCUMENTS.names))
    if held:
        yield number, pa.Table.from_batches(held)
