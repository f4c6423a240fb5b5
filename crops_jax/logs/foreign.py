"""Tables of other people's data sets, CSV or Parquet, as views that a recipe's SQL reads.

A CSV file is read as text, every column of it: a recipe casts, and so can count what does not cast. Lines that are
broken (too few columns, bytes that are not UTF-8) are left out and counted; a quote that takes the lines after it into
its own is an error.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.engines.duckdb import quoted
from crops_jax.errors import InputError
from crops_jax.logs.foreign_values import identifier, is_bytes, written
from crops_jax.logs.parts import parts
from crops_jax.logs.tables import unreadable

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

_CSV = (".csv", ".csv.gz")
_CHUNK = 1 << 20
_DIGITS = 18  # of a decimal: any number of so many fits 64 bits


@dataclass(frozen=True)
class Wanted:
    """A table of a data set: its name, the columns that the SQL needs, and those that it reads where they are there."""

    name: str
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The files of a table, and column -> type: of all of them together, and of each. Of CSV every type is string."""

    name: str
    place: Path
    files: tuple[Path, ...]
    columns: Mapping[str, pa.DataType]
    of_file: tuple[Mapping[str, pa.DataType], ...]

    def told(self, file: Path) -> str:
        """A file of the table, as people are told of it: two folders may hold files of one name."""
        return f"{self.name}: {file.name if file == self.place else file.relative_to(self.place).as_posix()}"

    def kinds(self, column: str) -> set[pa.DataType]:
        """The types that a column has in the files that have it."""
        return {types[column] for types in self.of_file if column in types}

    @property
    def is_csv(self) -> bool:
        """Whether it is CSV."""
        return self.files[0].name.endswith(_CSV)


def find(folder: Path, wanted: Iterable[Wanted]) -> dict[str, Found]:
    """The tables of a data set: NAME.csv, NAME.csv.gz, NAME.parquet, or a folder NAME of files of one of these kinds.

    Raises:
      InputError: lists every table and every column that is missing, and files that cannot be read.
    """
    found, problems = {}, []
    for table in wanted:
        try:
            found[table.name] = look(table.name, _path(folder, table.name))
        except InputError as error:
            problems += [f"{table.name}: {problem}" for problem in error.problems]
            continue
        there = found[table.name].columns
        missing = [name for name in table.columns if name not in there]
        missing += in_other_letters(found[table.name], table.optional)
        if missing:
            problems.append(f"{table.name}: no column {', '.join(missing)}; it has {', '.join(there)}")
    if problems:
        raise InputError(str(folder), problems)
    return found


def in_other_letters(table: Found, names: Iterable[str]) -> list[str]:
    """Those of `names` that a table has in other letters alone: an optional column of that kind would be null."""
    small = {name.lower() for name in table.columns}
    return [f"{n} (upper and lower case differ)" for n in names if n not in table.columns and n.lower() in small]


def look(name: str, path: Path) -> Found:
    """The table at a file or folder, as far as its columns.

    Raises:
      InputError: there is none, it is neither CSV nor Parquet, its files differ in their columns, or two columns differ
        in case alone.
    """
    files = parts(path)
    if strange := [file.name for file in files if not file.name.endswith(_CSV) and not _is_parquet(file)]:
        endings = "CSV files end in .csv or .csv.gz (small letters), Parquet files in .parquet"
        told = f"{', '.join(strange[:3])}: neither CSV nor Parquet; {endings}: convert, rename or take away"
        raise InputError(str(path), told)
    if 0 < sum(file.name.endswith(_CSV) for file in files) < len(files):
        raise InputError(str(path), "holds CSV and Parquet files; leave one of both")
    if all(file.name.endswith(_CSV) for file in files):
        headers = [_header(file) for file in files]
        if odd := [file.name for file, header in zip(files, headers, strict=True) if header != headers[0]]:
            raise InputError(
                str(path), f"{', '.join(odd[:3])}: other columns than {files[0].name}, or in another order"
            )
        _tell_apart(path, headers[0])
        types = dict.fromkeys(headers[0], pa.string())
        return Found(name, path, tuple(files), types, (types,) * len(files))
    of_file = tuple(_types(file) for file in files)
    names = dict.fromkeys(column for types in of_file for column in types)
    _tell_apart(path, names)
    return Found(
        name, path, tuple(files), {n: _together(path, n, [t[n] for t in of_file if n in t]) for n in names}, of_file
    )


def _tell_apart(path: Path, columns: Iterable[str]) -> None:
    """Raises InputError where two columns differ in case alone: asked for either, DuckDB reads the first."""
    alike: dict[str, list[str]] = {}
    for column in columns:
        alike.setdefault(column.lower(), []).append(column)
    if problems := [f"columns {' and '.join(names)} differ in case alone: leave one, or rename the others"
                    for names in alike.values() if len(names) > 1]:  # fmt: skip
        raise InputError(str(path), problems)


def _is_parquet(path: Path) -> bool:
    """Whether it is one by its name or its first bytes: Spark and others leave the ending away."""
    if path.name.endswith(".parquet"):
        return True
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def _types(path: Path) -> dict[str, pa.DataType]:
    """Column -> type of a Parquet file, as DuckDB reads it: strings of every kind are strings."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from None
    if twice := _twice(schema.names):
        raise InputError(str(path), f"{twice}: columns that are there twice; leave one of each")
    kinds = {f.name: f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema}
    texts = (pa.types.is_large_string, pa.types.is_string_view)
    return {name: pa.string() if any(is_text(kind) for is_text in texts) else kind for name, kind in kinds.items()}


def _together(path: Path, column: str, types: Sequence[pa.DataType]) -> pa.DataType:
    """The type of a column whose files have these; of numbers, texts and moments that differ it is text."""
    types = [pa.string() if is_bytes(kind) else kind for kind in types]
    kinds = [kind for kind in dict.fromkeys(types) if not pa.types.is_null(kind)] or [pa.null()]
    alike = (pa.types.is_integer, pa.types.is_floating, lambda kind: pa.types.is_timestamp(kind) and not kind.tz)
    if len(kinds) == 1 or any(all(is_kind(kind) for kind in kinds) for is_kind in alike):
        return kinds[0]
    if not any(pa.types.is_nested(kind) for kind in kinds):
        return pa.string()
    try:
        return pa.unify_schemas([pa.schema([(column, k)]) for k in kinds], promote_options="permissive").types[0]
    except pa.ArrowException:
        told = " and ".join(map(str, kinds))
        raise InputError(str(path), f"column {column} is {told} in its files; write it as one of them") from None


def fingerprints(found: Iterable[Found]) -> dict[str, str]:
    """sha256 of the bytes of every file, by "TABLE: FILE".

    A file that ends in .gz is unpacked on the way: DuckDB asks neither whether it is there to its end nor for its
    checksum.

    Raises:
      InputError: lists the files that cannot be read to their end.
    """
    digests, problems = {}, []
    for table in found:
        for file in table.files:
            try:
                digests[table.told(file)] = _sha256(file)
            except (OSError, EOFError, zlib.error) as error:
                problems.append(f"{file}: cannot be read ({error}); it is cut or damaged: get it again")
    if problems:
        raise InputError("the files of the data set", problems)
    return digests


def link(found: Iterable[Found], folder: Path) -> None:
    """Links to the files of tables under names of our own: DuckDB takes brackets and stars in a name for a pattern."""
    for table in found:
        for number, file in enumerate(table.files):
            (folder / _link(table, number)).symlink_to(file.resolve())


def view(connection: Backend, table: Found, wanted: Wanted, folder: Path) -> None:
    """Makes the view `wanted.name` of a table that is linked in `folder`; optional columns that it lacks are null.

    Read a CSV view once: each reading counts its broken lines.
    """
    if table.is_csv:
        files = ", ".join(quoted(str(folder / _link(table, number))) for number in range(len(table.files)))
        types = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in table.columns)
        read = f"""read_csv([{files}], header=true, auto_detect=false, delim=',', quote='"', escape='"',
                   columns={{{types}}}, store_rejects=true)"""
    else:
        read = _read_parquet(table, [folder / _link(table, number) for number in range(len(table.files))])
    names = [*wanted.columns, *wanted.optional]
    columns = [identifier(n) if n in table.columns else f"NULL::VARCHAR AS {identifier(n)}" for n in names]
    connection.raw_sql(f"CREATE TEMP VIEW {identifier(wanted.name)} AS SELECT {', '.join(columns)} FROM {read}")


def _read_parquet(table: Found, links: Sequence[Path]) -> str:
    """SQL for all rows. DuckDB would make floats of whole numbers beside floats, and of those texts: files that differ
    are read apart, and each writes its own values.
    """
    mixed = [n for n, kind in table.columns.items() if kind == pa.string() and table.kinds(n) - {kind, pa.null()}]
    alike: dict[tuple, list[Path]] = {}
    for link, types in zip(links, table.of_file, strict=True):
        alike.setdefault(tuple((n, types.get(n)) for n in mixed), []).append(link)
    reads = []
    for kinds, files in alike.items():
        mended = [(n, kind) for n, kind in kinds if kind not in (None, pa.string())]
        texts = ", ".join(f"{written(n, kind)} AS {identifier(n)}" for n, kind in mended)
        names = ", ".join(quoted(str(file)) for file in files)
        reads.append(f"SELECT * {f'REPLACE ({texts}) ' if texts else ''}"
                     f"FROM read_parquet([{names}], union_by_name=true, hive_partitioning=false)")  # fmt: skip
    return f"({' UNION ALL BY NAME '.join(reads)})"


def beyond_numbers(table: Found, column: str) -> bool:
    """Whether decimals of the column do not fit 64 bits: Spark writes unsigned numbers so."""
    for file, types in zip(table.files, table.of_file, strict=True):
        kind = types.get(column)
        if kind is not None and pa.types.is_decimal(kind) and kind.precision - kind.scale > _DIGITS:
            for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
                ends = [end for end in pc.min_max(batch.column(0)).as_py().values() if end is not None]
                if any(not -(2**63) <= end < 2**63 for end in ends):
                    return True
    return False


def why_unread(error: Exception, tables: Sequence[Found]) -> str | None:
    """What is wrong with a CSV file that DuckDB stopped at, in words; None where the error is not about a file."""
    said = str(error)
    if "GZIP" in said:
        names = ", ".join(table.told(file) for table in tables for file in table.files if file.name.endswith(".gz"))
        return f"{names}: holds more than gzip's own bytes, such as zeros behind its end; unpack and pack it again"
    if "state machine" in said and (at := re.search(r"file = (.+)", said)):
        name = _names(tables).get(Path(at[1].strip()).name, at[1])
        return f"{name}: its lines do not all end alike, some in a line feed and some in a carriage return and one; " \
               "write them with one of both"  # fmt: skip
    return None


def broken_lines(connection: Backend, tables: Sequence[Found]) -> list[tuple[str, int, str]]:
    """(reason, lines, the first) of the broken lines of all CSV files that were read.

    Raises:
      InputError: a quotation mark that is not closed took lines after it into its own, and they are lost, too.
    """
    if not any(table.is_csv for table in tables):
        return []
    names = _names(tables)
    open_quotes = connection.con.execute(
        "SELECT DISTINCT file_path, line, error_type = 'UNQUOTED VALUE' "
        "FROM reject_errors JOIN reject_scans USING (scan_id, file_id) "
        "WHERE error_type IN ('UNQUOTED VALUE', 'LINE SIZE OVER MAXIMUM') "
        "AND regexp_matches(trim(csv_line, chr(10) || chr(13)), '[\\r\\n]') ORDER BY ALL LIMIT 5"
    ).fetchall()
    if open_quotes:
        told = "a quotation mark there takes other lines into its own: close it, double it, or take the line away"
        long = "a row of several lines begins there and is longer than 2 MB: shorten it, or mend a quotation mark in it"
        raise InputError("a broken CSV file", [f"{names[Path(path).name]}: line {line}: {told if is_open else long}"
                                               for path, line, is_open in open_quotes])  # fmt: skip
    rows = connection.con.execute(
        "SELECT file_path, error_type::VARCHAR, count(DISTINCT line), min(line) "
        "FROM reject_errors JOIN reject_scans USING (scan_id, file_id) GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return [
        (f"{names[Path(path).name]}: the line is broken ({kind.lower()})", lines, f"line {first}")
        for path, kind, lines, first in rows
    ]


def _path(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise InputError(str(folder), "there is no such folder")
    tried = [folder / f"{name}{ending}" for ending in (*_CSV, ".parquet", "")]
    there = [path for path in tried if path.exists()]
    if len(there) == 1:
        return there[0]
    if there:
        raise InputError(str(folder), f"holds {' and '.join(path.name for path in there)}; leave one")
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise InputError(str(folder), f"no {name}.csv, {name}.csv.gz, {name}.parquet or folder {name}; there is {held}")


def _header(path: Path) -> list[str]:
    """The column names of a CSV file. One without a name, such as the index that pandas writes, gets one."""
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            first = file.readline(_CHUNK)  # where lines end in a carriage return, the file is one
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), None)
    except UnicodeDecodeError:
        packed = first.startswith(b"\x1f\x8b")
        said = "is packed by gzip: its name has to end in .csv.gz" if packed else "is not UTF-8; save it as UTF-8"
        raise InputError(str(path), said) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), f"cannot be read ({error}); get it again") from None
    if b"\r\r\n" in first:
        raise InputError(str(path), "its lines end in two carriage returns and a line feed, as Windows writes what was "
                         "written in text mode before; write them with one of either")  # fmt: skip
    if not header:
        told = "is empty" if header is None else "its first line is blank, where the names of the columns have to stand"
        raise InputError(str(path), told)
    header = [name or f"(column {number}, which has no name)" for number, name in enumerate(header, 1)]
    twice = _twice(header)
    if twice:
        raise InputError(str(path), f"{twice}: named twice in its first line")
    return header


def _twice(names: Sequence[str]) -> str:
    """Those that are there more than once, in words."""
    return ", ".join(sorted(name for name, times in Counter(names).items() if times > 1))


class _Hashing:
    """A stream whose bytes are hashed as they are read."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.digest = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.digest.update(data)
        return data


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        hashing = _Hashing(stream)
        unpacked = gzip.GzipFile(fileobj=hashing, mode="rb") if path.name.endswith(".gz") else hashing
        while unpacked.read(_CHUNK):
            pass
    return hashing.digest.hexdigest()


def _names(tables: Iterable[Found]) -> dict[str, str]:
    """The name of each link (`link`) -> that of its file."""
    return {_link(table, number): table.told(file) for table in tables for number, file in enumerate(table.files)}


def _link(table: Found, number: int) -> str:
    ending = ".parquet" if not table.is_csv else next(e for e in reversed(_CSV) if table.files[number].name.endswith(e))
    return f"{table.name}-{number:05d}{ending}"
