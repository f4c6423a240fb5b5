"""The documents that each part of the candidates names, joined to it by the engine, which spills what is too much.

No table of all documents or of all queries is held in memory: the engine joins (part, item id) with the items and the
documents of the language model, and writes the documents of one part after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.engines.duckdb import EngineConfig, open_engine, read, read_parquet, write_sorted
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.logs.tables import unreadable
from crops_jax.records.candidates import Part, documents_of

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import Table

_FIELDS = {"item_id": pa.int64(), **dict.fromkeys(TEXT_FIELDS, pa.string()), **dict.fromkeys(COUNTERS, pa.int64())}
DOCUMENTS = pa.schema(_FIELDS)
_OF_PARTS = pa.schema({"part": pa.int64(), **_FIELDS})


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
    parts: Mapping[int, Part], sources: tuple[str, ...], logs: Path, knowledge: Path, path: Path, engine: EngineConfig
) -> None:
    """Writes the documents of all parts to one file, from which `read_documents` takes those of a part.

    Args:
      parts: by number.
      sources: whose documents are wanted.
      knowledge: the language model's documents; the file need not be there.

    Raises:
      InputError: logs or candidates are missing or damaged; memory or disk do not suffice.
    """
    with open_engine(engine, [path.parent]) as connection:
        named = read(connection, _Named(parts, sources))
        joined = named.join(_every_document(connection, logs, knowledge), "item_id")
        write_sorted(connection, joined, path, _OF_PARTS, ("part", "item_id"))


def read_documents(path: Path, part: int) -> pa.Table:
    """The documents of a part, by rising id: of the whole file those row groups are read in which they lie.

    Raises:
      InputError: the file is damaged.
    """
    wanted = [("part", "==", part)]
    try:
        return pq.read_table(path, columns=DOCUMENTS.names, filters=wanted, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


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
