"""What mining has finished, as folders of parts: a part holds all rows of its queries, and a killed run goes on.

A query belongs to the part that the first digits of its MD5 name, on every engine and in every stage: so a stage reads
a part of the stage before it and writes the same part, and no stage holds more than a part in memory. Small logs have
one part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crops_jax.artifacts.folders import link_file, nearest
from crops_jax.artifacts.manifest import FileFacts, file_facts
from crops_jax.engines import files
from crops_jax.engines.engine import Engine, md5

if TYPE_CHECKING:
    from ibis.expr.types import StringValue, Table

_WHOLE = "whole.json"  # in the folder of a stage: its counts, when all parts are there
_CACHE = "theta.cache"


def digits_for(rows: int, part_rows: int) -> int:
    """How many hexadecimal digits name a part, so that parts have about `part_rows` rows or fewer.

    >>> [digits_for(rows, 4_000_000) for rows in (4_000_000, 4_000_001, 100_000_000)]
    [0, 1, 2]
    """
    digits = 0
    while rows > part_rows * 16**digits:
        digits += 1
    return digits


def theta_cache(workdir: Path) -> Path:
    """Where theta's values are kept: in a folder of the data set, or in the nearest one of a folder above it."""
    return nearest(workdir, _CACHE)


def share_theta_cache(folder: Path) -> None:
    """Lets all data sets below a folder keep theta's values together: their texts are mostly the same."""
    (folder / _CACHE).mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Work:
    """The stages of one run below `root`."""

    engine: Engine
    root: Path
    digits: int

    def part_of(self, query: Any) -> StringValue:
        """The part of a column of queries."""
        import ibis

        return md5(query).substr(0, self.digits) if self.digits else ibis.literal("0")

    def write(
        self,
        name: str,
        schema: pa.Schema,
        by: tuple[str, ...],
        rows: Table,
        counts: dict[str, Any] | None = None,
        once: int = 0,
        beside: files.Beside | None = None,
    ) -> None:
        """Writes the stage `name` unless it is whole, and `counts` with it.

        Args:
          schema, by, once, beside: as of `files.Sorted`. Rows that are equal in the first columns lie in one part.
          rows: computed if they are needed; their column `PART` says where they belong.
        """
        if self.counts(name) is not None:
            return
        folder, how = self.folder(name), files.Sorted(schema, by, once, beside)
        if self.digits:
            self.engine.write_parts(rows, folder, how)
        else:
            self.engine.write_sorted(rows, files.part_path(folder, "0"), how)
        if not files.part_files(folder):
            files.write([], files.part_path(folder, "0"), schema)
        part = folder / f".{_WHOLE}"
        part.write_text(json.dumps(counts or {}))
        part.rename(folder / _WHOLE)

    def counts(self, name: str) -> dict[str, Any] | None:
        """The counts of a stage that is whole; None of one that is not, or whose counts a power cut took."""
        try:
            return json.loads((self.root / name / _WHOLE).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def folder(self, name: str) -> Path:
        """The folder of a stage."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def parts(self, name: str) -> list[Path]:
        """The parts of a stage, in order."""
        return files.part_files(self.root / name)

    def read(self, name: str, *columns: str) -> Table:
        """A stage, or these columns of it (`files.files`), as a table of the engine."""
        return self.engine.read(files.files(self.root / name, columns))

    def hand_over(self, name: str, folder: Path, root: Path) -> list[FileFacts]:
        """Puts the parts of a stage into `folder` too, and returns their facts; `root` is the artefact of `folder`."""
        folder.mkdir(parents=True)
        return self.engine.each(partial(_put, folder, root), self.parts(name))


def _put(folder: Path, root: Path, part: Path) -> FileFacts:
    link_file(part, folder / part.name)
    return file_facts(folder / part.name, root)
