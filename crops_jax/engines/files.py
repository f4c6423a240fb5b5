"""Parquet files that this program writes and reads again: page checksums, row groups of one size, parts of a folder."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import PART
from crops_jax.errors import InputError

ROW_GROUP = 1 << 17
_PART_FIELD = pa.field(PART, pa.string(), nullable=False)


def opened(path: Path) -> pq.ParquetFile:
    """A Parquet file whose page checksums are verified, read by the thread that asks for rows.

    An engine asks from one of Arrow's few threads for reading. Were the read handed to these too (`pre_buffer`), a
    query over more files than there are threads would wait for itself.
    """
    return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)


@dataclass(frozen=True)
class Files:
    """Files as an `engine.Stream` of the columns of `schema`; its column `PART`, if any, is read off a file's name."""

    paths: tuple[Path, ...]
    schema: pa.Schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, file by file."""
        stored = [name for name in self.schema.names if name != PART]
        for path in self.paths:
            with _readable(path), opened(path) as file:
                for batch in file.iter_batches(ROW_GROUP, columns=stored):
                    yield self._told(batch, path)

    def _told(self, batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
        if PART in self.schema.names:
            batch = batch.append_column(PART, pa.repeat(_part_of(path), batch.num_rows))
        return batch.select(self.schema.names).cast(self.schema)

    def pieces(self) -> Sequence[Files]:
        """A stream a file."""
        return [Files((path,), self.schema) for path in self.paths]


@dataclass(frozen=True)
class Beside:
    """Columns that rows get when they are written, after they were sent and sorted without them.

    They are those of the row with the same key in a folder of parts, in the part of the same name.
    """

    folder: Path
    key: str
    """An int64 column that the parts are sorted by, each value once; rows are sorted by it first."""
    columns: tuple[str, ...]

    def add(self, batches: Iterable[pa.RecordBatch], part: str) -> Iterator[pa.RecordBatch]:
        """The rows of a part, with the columns.

        Raises:
          InputError: the part is damaged, or lacks the key of a row.
        """
        path = part_path(self.folder, part)
        table = read(path).combine_chunks()
        keys, values = table[self.key].to_numpy(), [table[name].combine_chunks() for name in self.columns]
        for batch in batches:
            wanted = batch[self.key].to_numpy()
            place = np.searchsorted(keys, wanted)
            if place.max(initial=-1) >= len(keys) or (keys[place] != wanted).any():
                raise InputError(str(path), "lacks rows that others name; remove its folder and run the command again")
            for name, column in zip(self.columns, values, strict=True):
                batch = batch.append_column(name, column.take(pa.array(place)))
            yield batch


@dataclass(frozen=True)
class Sorted:
    """What is written of rows, and in which order."""

    schema: pa.Schema
    by: Sequence[str]
    """Columns, nulls first. They have to order the rows totally for the file to be the same at every run. Those that
    `schema` has not are not written."""
    once: int = 0
    """Of the rows that are equal in so many columns, the first of `by`, only the first one is written. 0: all rows
    are."""
    beside: Beside | None = None
    """Columns of `schema` that the rows lack, and where they come from."""

    @property
    def columns(self) -> list[str]:
        """What the rows have: columns to write, and those that they are sorted by beside them."""
        later = self.beside.columns if self.beside else ()
        return [name for name in dict.fromkeys((*self.schema.names, *self.by)) if name not in later]

    def write(self, batches: Iterable[pa.RecordBatch], path: Path) -> int:
        """Writes rows that are sorted to the file of their part (`write`), and returns how many there are in it."""
        if self.beside is not None:
            batches = self.beside.add(batches, _part_of(path))
        return write(first_of_each(batches, self.by[: self.once], self.schema), path, self.schema)


def files(path: str | Path, columns: Sequence[str] = ()) -> Files:
    """A Parquet file that this program wrote, or a folder of parts, as a stream.

    Args:
      columns: these alone, which is read faster, and `PART`, the part that a row lies in; none for all that are stored.
    """
    paths = part_files(Path(path))
    if not paths:
        raise InputError(str(path), "has lost its parts; remove the folder and run the command again")
    with _readable(paths[0]):
        schema = pq.read_schema(paths[0]).remove_metadata()
    if columns:
        schema = pa.schema([_PART_FIELD if name == PART else schema.field(name) for name in columns])
    return Files(tuple(paths), schema)


def part_files(path: Path) -> list[Path]:
    """The files of what this program wrote as one Parquet file or as a folder of parts: sorted by name."""
    return [path] if path.is_file() else sorted(path.glob("part-*.parquet"))


def read(path: Path) -> pa.Table:
    """A Parquet file that this program wrote, in memory.

    Raises:
      InputError: it is damaged.
    """
    with _readable(path):
        return pq.read_table(path, page_checksum_verification=True, partitioning=None)


@contextmanager
def spill_folder(config: EngineConfig) -> Iterator[str]:
    """A folder for what does not fit in memory; it goes away with what is in it.

    Raises:
      InputError: `temp_directory` cannot be written to.
    """
    try:
        place = config.temp_directory or None
        folder = tempfile.TemporaryDirectory(prefix="crops-spill-", dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        told = f"nothing can be written there ({error.strerror}); name another folder"
        raise InputError(f"engine config, temp_directory {config.temp_directory!r}", told) from None
    with folder as spill:
        yield spill


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(str(path), f"is damaged ({said}); remove its folder and run the command again") from None


def part_path(folder: Path, part: str) -> Path:
    """The file of a part."""
    return folder / f"part-{part}.parquet"


def _part_of(path: Path) -> str:
    return path.stem.removeprefix("part-")


def first_of_each(
    batches: Iterable[pa.RecordBatch], keys: Sequence[str], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The columns of `schema`, of the first of every run of rows that are equal in `keys`, which have no nulls; of all
    rows where there are no keys."""
    last: list[pa.Scalar] | None = None
    for batch in batches:
        if keys and batch.num_rows:
            inside = [pc.equal(batch[key][1:], batch[key][:-1]) for key in keys]
            goes_on = last == [batch[key][0] for key in keys]
            last = [batch[key][batch.num_rows - 1] for key in keys]
            batch = batch.filter(pa.concat_arrays([pa.array([not goes_on]), pc.invert(reduce(pc.and_, inside))]))
        yield batch.select(schema.names)


def write(
    batches: Iterable[pa.RecordBatch], path: Path, schema: pa.Schema, facts: Mapping[str, int] | None = None
) -> int:
    """Writes rows with page checksums, whole or not at all, and returns how many there were.

    Row groups have a fixed size: an engine's own batches depend on its threads, and equal rows must give equal bytes.

    Args:
      facts: kept in the file's footer (`facts_of`); looked at when all rows are written, so `batches` may count them.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # a retried task may meet its forerunner
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd", write_page_checksum=True) as writer:
            rows = 0
            for table in _of_size(batches, schema):
                writer.write_table(table, row_group_size=ROW_GROUP)
                rows += table.num_rows
            if rows == 0:
                writer.write_table(schema.empty_table())
            writer.add_key_value_metadata({name: str(value) for name, value in (facts or {}).items()})
        os.replace(unfinished, path)
        return rows
    finally:
        unfinished.unlink(missing_ok=True)


def facts_of(path: Path) -> dict[str, int]:
    """The facts that were written with a file."""
    with _readable(path):
        told = pq.read_metadata(path).metadata or {}
    return {name.decode(): int(value) for name, value in told.items() if value.isdigit()}


def write_each_part(batches: Iterable[pa.RecordBatch], folder: Path, how: Sorted) -> Iterator[tuple[str, int]]:
    """Writes rows that are sorted by their column `PART`, a file a part, and yields each part with its rows.

    A part that is there already is kept.
    """
    for part, run in groupby(_runs(batches), key=lambda batch: batch[PART][0].as_py()):
        path = part_path(folder, part)
        yield part, _rows(path) if path.exists() else how.write(run, path)


def _rows(path: Path) -> int:
    with _readable(path):
        return pq.read_metadata(path).num_rows


def _runs(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, cut where the part changes."""
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            same = pc.equal(batch[PART], batch[PART][start])
            end = start + int(pc.sum(same.slice(start)).as_py())
            yield batch.slice(start, end - start)
            start = end


def _of_size(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows as tables of one chunk with `ROW_GROUP` rows, the last with what is left."""
    held, rows = [], 0
    for batch in batches:
        held.append(pa.Table.from_batches([batch]).cast(schema))
        rows += batch.num_rows
        if rows >= ROW_GROUP:
            table = pa.concat_tables(held)
            whole = rows - rows % ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                yield table.slice(start, ROW_GROUP).combine_chunks()
            held, rows = [table.slice(whole)], rows - whole
    if rows:
        yield pa.concat_tables(held).combine_chunks()
