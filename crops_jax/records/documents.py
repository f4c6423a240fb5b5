"""The documents that each part of the candidates names, joined to it by the engine, which spills what is too much.

No table of all documents or of all queries is held in memory: the engine joins (part, item id) with the items and the
documents of the language model, and writes the documents of each part to a file of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from crops_jax.engines import files
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import PART, Engine, open_engine
from crops_jax.engines.files import Sorted
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.records.candidates import Part, documents_of

if TYPE_CHECKING:
    from ibis.expr.types import Table

_FIELDS = {"item_id": pa.int64(), **dict.fromkeys(TEXT_FIELDS, pa.string()), **dict.fromkeys(COUNTERS, pa.int64())}
DOCUMENTS = pa.schema(_FIELDS)


@dataclass(frozen=True)
class _Named:
    """(part, item id) of every document that a part names: an `engines.engine.Stream`."""

    parts: Mapping[int, Part]
    sources: tuple[str, ...]
    schema = pa.schema({PART: pa.string(), "item_id": pa.int64()})

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, part by part."""
        for number, part in self.parts.items():
            items = pa.array(documents_of(part, self.sources))
            name = pa.repeat(pa.scalar(_name(number)), len(items))
            yield pa.record_batch([name, items], schema=self.schema)

    def pieces(self) -> Sequence[_Named]:
        """A stream a part."""
        return [replace(self, parts={number: part}) for number, part in self.parts.items()]


def _name(number: int) -> str:
    return f"{number:05d}"


def write_documents(
    parts: Mapping[int, Part], sources: tuple[str, ...], logs: Path, knowledge: Path, folder: Path, engine: EngineConfig
) -> None:
    """Writes the documents of every part into `folder`, in the place of what it holds; `read_documents` reads them.

    Args:
      parts: by number.
      sources: whose documents are wanted.
      knowledge: the language model's documents; they need not be there.

    Raises:
      InputError: logs or candidates are missing or damaged; memory or disk do not suffice.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed, maybe of other candidates
    folder.mkdir(parents=True)
    with open_engine(engine, [folder]) as opened:
        named = opened.read(_Named(parts, sources))
        joined = named.join(_every_document(opened, logs, knowledge), "item_id")
        opened.write_parts(joined.select(*DOCUMENTS.names, PART), folder, Sorted(DOCUMENTS, ["item_id"]))


def read_documents(folder: Path, part: int) -> pa.Table:
    """The documents of a part, by rising id; none where nothing that it names is known.

    Raises:
      InputError: the file is damaged.
    """
    path = files.part_path(folder, _name(part))
    return files.read(path) if path.exists() else DOCUMENTS.empty_table()


def _every_document(engine: Engine, logs: Path, knowledge: Path) -> Table:
    import ibis

    items = open_logs(logs).engine_table(engine, "items", columns=DOCUMENTS.names).select(*DOCUMENTS.names)
    if not knowledge.exists():
        return items
    # A document written for two queries stands there twice; its id is a hash of its text.
    written = engine.read(files.files(knowledge)).select(*DOCUMENTS.names)
    written = written.distinct(on="item_id", keep="first")
    types = {name: kind(nullable=True) for name, kind in items.schema().items()}
    return ibis.union(items.cast(types), written.cast(types))
