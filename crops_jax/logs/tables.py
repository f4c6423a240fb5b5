"""Contract tables in Parquet: written with page checksums and stable bytes, read with those checksums checked.

A table is read column by column as the contract names them, and nothing else of its files: what further columns hold,
what they are called, and what the folders on the way are called makes no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.engines.files import opened
from crops_jax.errors import InputError
from crops_jax.logs.casts import Cast, WrongType, cast, numbered, written
from crops_jax.logs.declared import AS_THEY_ARE, Declared
from crops_jax.logs.parts import parts
from crops_jax.logs.schema import TABLES, Column, arrow_schema
from crops_jax.logs.times import moments, spans

_ROWS = 1 << 16  # read at a time
PLATFORM = {"user": "platform_user_id", "item": "platform_item_id"}  # ids as they are written, where they are hashed


def write_table(schema: str | pa.Schema, columns: pa.Table | Mapping[str, Any], path: str | Path) -> int:
    """Writes one table and returns its number of rows; equal content gives equal bytes.

    Args:
      schema: a table of the log contract ("items", "searches", ...) or an Arrow schema.
      columns: a table, or name -> array; extra columns and missing ones raise.
    """
    wanted = arrow_schema(schema) if isinstance(schema, str) else schema
    table = _as_table(wanted, columns, path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True, row_group_size=1 << 18)
    return table.num_rows


def write_batches(schema: str | pa.Schema, batches: Iterable[Mapping[str, Any]], path: str | Path) -> int:
    """As `write_table`, for rows that come in batches, of which it holds one at a time."""
    wanted = arrow_schema(schema) if isinstance(schema, str) else schema
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with pq.ParquetWriter(path, wanted, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            table = _as_table(wanted, batch, path)
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _as_table(wanted: pa.Schema, columns: pa.Table | Mapping[str, Any], path: str | Path) -> pa.Table:
    names = columns.column_names if isinstance(columns, pa.Table) else list(columns)
    if set(names) != set(wanted.names):
        raise ValueError(f"{path}: columns {sorted(names)} instead of {sorted(wanted.names)}")
    arrays = [columns[name] for name in wanted.names]
    arrays = [_as_type(a, field.type) for a, field in zip(arrays, wanted, strict=True)]
    return pa.Table.from_arrays(arrays, schema=wanted)


def _as_type(array: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if isinstance(array, pa.Array | pa.ChunkedArray):
        return array.cast(kind)
    return pa.array(array, type=kind)


def read_table(path: str | Path, table: str | None = None, *, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file or a folder of them, verifying page checksums.

    Args:
      table: a table of the log contract; it is read as `LogTable` reads it, with the ids and times of the contract.
      columns: read only these.

    Raises:
      InputError: the file is missing, is not Parquet or is damaged; or it breaks the contract, with every missing,
        mistyped or null-holding column in one message.
    """
    if table is not None:
        found, problems = look(Path(path), table, AS_THEY_ARE, columns)
        read, of_values = found.read_all()
        if problems or of_values:
            raise InputError(str(path), problems + of_values)
        return read
    try:
        # Without "partitioning", a folder called query=zh on the way would become a column.
        return pq.read_table(parts(Path(path)), columns=columns, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def unreadable(path: str | Path, error: Exception) -> InputError:
    """What is said of a file that cannot be read."""
    return InputError(str(path), _why_unreadable(error, "cannot be read as Parquet, it is cut or damaged"))


def _why_unreadable(error: Exception, otherwise: str) -> str:
    if isinstance(error, PermissionError):
        return "may not be read; its owner must allow it"
    return f"{otherwise} ({(str(error) or type(error).__name__).splitlines()[0]}); write it again"


@dataclass
class Findings:
    """What is wrong with the values of columns, counted, with the first of each kind."""

    bad: Counter[str] = field(default_factory=Counter)  # column -> bad values
    _kinds: dict[tuple[str, str, str], list[Any]] = field(default_factory=dict)

    def add(self, label: str, column: str, want: pa.DataType, array: pa.Array, found: Cast, first_row: int) -> None:
        """Notes the bad rows of a batch; `array` is the column as it lies on disk."""
        row = int(np.argmax(found.bad))
        why = found.why or f"cannot be {want} without loss; mend them, or cast the column"
        entry = self._kinds.setdefault(
            (label, f"{column} ({array.type})", why), [0, first_row + row, _shown(array[row])]
        )
        entry[0] += int(found.bad.sum())
        self.bad[column] += int(found.bad.sum())

    def problems(self) -> list[str]:
        """One line a kind."""
        return [
            f"{label}column {column}: {count} values {why} (the first, {value}, is in row {row}, counted from 0)"
            for (label, column, why), (count, row, value) in self._kinds.items()
        ]


def _shown(value: pa.Scalar) -> str:
    if isinstance(value, pa.DictionaryScalar):
        value = value.dictionary[value.index.as_py()]
    try:
        text = repr(value.as_py())
    except ValueError:  # bytes that are not UTF-8, or a time that Python has no value for
        text = str(value) if pa.types.is_temporal(value.type) else repr(value.cast(pa.binary()).as_py())
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Part:
    """One file of a table, opened as far as its footer, or some of its rows; `label` tells it from the other files."""

    path: Path
    label: str
    schema: pa.Schema
    rows: int
    first: int = 0  # of these rows, in the file


@dataclass(frozen=True)
class LogTable:
    """One table of the contract on disk, read as often as it is asked for: an `engines.engine.Stream`.

    Where ids are hashed (`declared`), a column of them as they are written (`PLATFORM`) stands at the end.
    """

    path: Path
    name: str
    columns: Mapping[str, Column]
    declared: Declared
    parts: tuple[Part, ...]

    @property
    def schema(self) -> pa.Schema:
        """The columns inside the program."""
        fields = [pa.field(name, column.type) for name, column in self.columns.items()]
        return pa.schema(fields + [pa.field(PLATFORM[role], pa.string()) for role in self._hashed()])

    @property
    def rows(self) -> int:
        """How many rows the files say that they hold."""
        return sum(part.rows for part in self.parts)

    def _hashed(self) -> dict[str, str]:
        """role -> column of the ids that are hashed."""
        return {c.role: name for name, c in self.columns.items() if self.declared.space(c.role) is not None}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, part by part.

        Raises:
          InputError: a file is damaged, or holds a value that its type cannot hold.
        """
        for part in self.parts:
            findings = Findings()
            for batch in self.part_batches(part, findings):
                if problems := findings.problems():
                    raise InputError(str(self.path), problems)
                yield batch

    def only(self, *columns: str) -> LogTable:
        """The table with these columns alone, which is read faster."""
        return replace(self, columns={name: column for name, column in self.columns.items() if name in columns})

    def between(self, start: int, end: int) -> LogTable:
        """Rows start..end-1 of the table, in the order of its files; nothing else of these is read."""
        found, before = [], 0
        for part in self.parts:
            low, high = max(start - before, 0), min(end - before, part.rows)
            if low < high:
                found.append(replace(part, first=part.first + low, rows=high - low))
            before += part.rows
        return replace(self, parts=tuple(found))

    def pieces(self) -> list[LogTable]:
        """The table's files, each as a table."""
        return [replace(self, parts=(part,)) for part in self.parts]

    def part_batches(self, part: Part, findings: Findings) -> Iterator[pa.RecordBatch]:
        """The rows of one part; what is bad becomes null and goes into `findings`."""
        first = part.first
        for raw in raw_batches(part, self.columns):
            arrays, as_written = [], []
            for name, column in self.columns.items():
                array = raw.column(name) if name in raw.schema.names else pa.nulls(raw.num_rows)
                found = convert(array, column, self.declared)
                if (space := self.declared.space(column.role)) is not None:
                    as_written.append(found.array)
                    found = numbered(found, space)
                if found.bad.any():
                    findings.add(part.label, name, column.type, array, found, first)
                arrays.append(found.array)
            yield pa.record_batch(arrays + as_written, schema=self.schema)
            first += raw.num_rows

    def read(self) -> pa.Table:
        """All rows in memory.

        Raises:
          InputError: as `batches`; or nulls where there must be none.
        """
        table, problems = self.read_all()
        if problems:
            raise InputError(str(self.path), problems)
        return table

    def read_all(self) -> tuple[pa.Table, list[str]]:
        """All rows in memory, and what is wrong with them."""
        findings = Findings()
        batches = [batch for part in self.parts for batch in self.part_batches(part, findings)]
        table = pa.Table.from_batches(batches, schema=self.schema)
        problems = findings.problems()
        for name, column in self.columns.items():
            nulls = table[name].null_count - findings.bad[name]
            if nulls and not column.may_be_null:
                problems.append(f"column {name} holds {nulls} nulls in {len(table)} rows")
        return table, problems


def convert(array: pa.Array, column: Column, declared: Declared) -> Cast:
    """A column as it lies on disk in the type of the contract; ids that are hashed, as they are written.

    Raises:
      WrongType: no value of it can have that type.
    """
    if column.role == "time":
        return moments(array, declared.time_unit)
    if column.role == "span":
        return spans(array)
    return cast(array, column.type) if declared.space(column.role) is None else written(array)


def raw_batches(part: Part, columns: Sequence[str] | Mapping[str, Column]) -> Iterator[pa.RecordBatch]:
    """The rows of a part as they lie on disk: those of `columns` that it has, called exactly so.

    Raises:
      InputError: the file is damaged.
    """
    names = [name for name in columns if name in part.schema.names]
    try:
        with opened(part.path) as file:
            groups, skip = _row_groups(file.metadata, part)
            left = part.rows
            for batch in file.iter_batches(_ROWS, row_groups=groups, columns=names):
                # select: pyarrow takes "query.lang" for a part of "query"
                wanted = batch.select(names).slice(skip, left)
                skip, left = max(skip - batch.num_rows, 0), left - wanted.num_rows
                yield wanted
    except (OSError, pa.ArrowException) as error:
        raise unreadable(part.path, error) from None


def _row_groups(metadata: pq.FileMetaData, part: Part) -> tuple[list[int], int]:
    """(the row groups that hold a part's rows, rows of the first of them that are no rows of the part)."""
    ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], dtype=np.int64)
    first, last = np.searchsorted(ends, [part.first, part.first + part.rows - 1], "right")
    before = int(ends[first - 1]) if first else 0
    return list(range(first, min(last + 1, len(ends)))), part.first - before


def open_table(path: Path, name: str, declared: Declared, columns: Sequence[str] | None = None) -> LogTable:
    """A table of the contract, its columns found and their types looked at.

    Args:
      columns: only these.

    Raises:
      InputError: lists what `look` finds.
    """
    found, problems = look(path, name, declared, columns)
    if problems:
        raise InputError(str(path), problems)
    return found


def look(path: Path, name: str, declared: Declared, columns: Sequence[str] | None = None) -> tuple[LogTable, list[str]]:
    """A table as far as its columns are sound, and what is wrong with the others.

    Problems are missing columns, one that is there twice, types that can hold no such value, and files that are not
    Parquet.

    Raises:
      InputError: there is no table (`parts`).
    """
    wanted = {n: c for n, c in TABLES[name].items() if columns is None or n in columns}
    found, problems = _opened(path)
    full = [part for part in found if part.rows] or found  # Spark writes parts without rows, whose types are a guess
    wrong = {n: list(_column_problems(n, want, full, declared)) if full else [] for n, want in wanted.items()}
    sound = {n: want for n, want in wanted.items() if not wrong[n]}
    return LogTable(path, name, sound, declared, tuple(full)), problems + [p for ps in wrong.values() for p in ps]


def _opened(path: Path) -> tuple[list[Part], list[str]]:
    found, problems = [], []
    for file in parts(path):
        label = "" if file == path else f"{file.relative_to(path)}: "
        try:
            with pq.ParquetFile(file) as footer:
                found.append(Part(file, label, footer.schema_arrow, footer.metadata.num_rows))
        except (OSError, pa.ArrowException) as error:
            problems.append(f"{label}{_why_unreadable(error, 'is not a readable Parquet file, or a cut one')}")
    return found, problems


def _column_problems(name: str, want: Column, found: Sequence[Part], declared: Declared) -> Iterator[str]:
    holders = [part for part in found if name in part.schema.names]
    if not holders:
        near = {n for part in found for n in part.schema.names if n.lower() == name.lower()}
        hint = f"; there is {', '.join(sorted(near))}: upper and lower case differ" if near else ""
        if any(f"{name}=" in part.label for part in found):
            hint = "; folders are named by it, but what they are called is not read: write it into the files"
        yield f"column {name} is missing ({want.type}: {want.meaning}){hint}"
    for part in found if holders else ():
        if name in part.schema.names:
            continue
        near = [n for n in part.schema.names if n.lower() == name.lower()]
        if near:  # as null it would be lost in silence
            yield f"{part.label}column {name} is missing; there is {', '.join(near)}: upper and lower case differ"
        elif not want.may_be_null:
            yield f"{part.label}column {name} is missing, other parts have it"
    for part in holders:
        if part.schema.names.count(name) > 1:
            yield f"{part.label}column {name} is there {part.schema.names.count(name)} times: keep one"
            continue
        kind = part.schema.field(name).type
        try:
            convert(pa.array([], kind), want, declared)
        except WrongType:
            wanted = f"{want.type} or a timestamp" if name == "ts" else str(want.type)
            yield f"{part.label}column {name} is {kind}, it must be {wanted}: cast it"
