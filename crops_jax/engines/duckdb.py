"""The relational engine: Ibis on an embedded DuckDB, which spills to disk and can reach no other files.

Ibis and DuckDB are imported inside the functions: a training host reads the configs of the mining half without
having either installed.
"""

from __future__ import annotations

import errno
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.errors import InputError
from crops_jax.normal_text import VISIBLE, normal_forms

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import BooleanValue, StringValue, Table

_ROW_GROUP = 1 << 17
_NORMAL_FORM = "crops_normal_form"
_NUMBERS = itertools.count()  # of the names that this module gives


@dataclass(frozen=True)
class EngineConfig:
    """Memory, disk and threads of the embedded DuckDB."""

    memory_limit: str = "4GB"
    """Memory that DuckDB may use before it spills to disk."""
    temp_directory: str = ""
    """Folder below which it spills; empty: the system's temporary folder. The spilled files are removed at the end."""
    max_temp_directory_size: str = "100GB"
    """Most disk space that it may spill to."""
    threads: int = 0
    """Threads; 0 takes one a core. The output does not depend on it."""


class Stream(Protocol):
    """Rows that the engine asks for as often as it needs them: record batches of one schema."""

    schema: pa.Schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, from the first."""
        ...


@contextmanager
def open_engine(config: EngineConfig, folders: Sequence[str | Path]) -> Iterator[Backend]:
    """An Ibis backend on an in-memory DuckDB that may read and write `folders` and its spill folder only.

    Whatever goes wrong inside the block for a reason that lies outside the program, in a statement or in an expression
    that is computed late, comes out of it as an InputError.

    Raises:
      InputError: DuckDB refuses a setting (a memory limit it cannot parse, say), memory, disk space or open files run
        out, a file may not be read or written, a value fits no type, or a stream's own error.
    """
    import duckdb

    with _spill_folder(config) as spill:
        connection = _connect(config, spill, folders)
        _FAILURES[connection] = failures = []
        try:
            yield connection
        except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
            if failures:
                raise failures[0] from None
            if (told := _told(error, config)) is not None:
                raise told from error
            raise
        finally:
            connection.disconnect()


_FAILURES: WeakKeyDictionary[Backend, list[InputError]] = WeakKeyDictionary()  # of streams: SQL carries texts only


@contextmanager
def _spill_folder(config: EngineConfig) -> Iterator[str]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="crops-spill-", dir=config.temp_directory or None)
    except OSError as error:
        place = f"engine config, temp_directory {config.temp_directory!r}"
        raise InputError(place, f"nothing can be written there ({error.strerror}); name another folder") from None
    with folder as spill:
        yield spill


def _connect(config: EngineConfig, spill: str, folders: Sequence[str | Path]) -> Backend:
    import duckdb
    import ibis

    settings = {
        "memory_limit": config.memory_limit,
        "temp_directory": spill,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    if config.threads:
        settings["threads"] = config.threads
    try:
        connection = ibis.duckdb.connect(":memory:", **settings)
        # Among the settings above, this one would be taken and not obeyed.
        connection.raw_sql(f"SET max_temp_directory_size={_quoted(config.max_temp_directory_size)}")
    except duckdb.Error as error:
        raise InputError("engine config", str(error).splitlines()[0]) from error
    connection.con.create_function(_NORMAL_FORM, normal_forms, ["VARCHAR"], "VARCHAR", type="arrow")
    # Paths and texts are the user's: from here on SQL can neither reach other files nor change these settings.
    allowed = ", ".join(_quoted(Path(f).resolve()) for f in [*folders, spill])
    connection.raw_sql(f"SET allowed_directories=[{allowed}]")
    connection.raw_sql("SET enable_external_access=false")
    connection.raw_sql("SET lock_configuration=true")
    return connection


def _told(error: Exception, config: EngineConfig) -> InputError | None:
    """The error for people, if it is about their machine or their data and no mistake of this program."""
    import duckdb

    said, number = str(error).strip().split("\n")[0], getattr(error, "errno", None)
    if "max_temp_directory_size" in str(error):
        told = f"has spilled all of max_temp_directory_size={config.max_temp_directory_size}; raise it, or let "
        return _engine_error(told + "temp_directory lie on a larger disk", "max_temp_directory_size", said)
    if isinstance(error, duckdb.OutOfMemoryException | MemoryError) or "Out of Memory" in said:
        told = f"needs more memory than memory_limit={config.memory_limit}; raise it"
        return _engine_error(told, "memory_limit", said)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in said:
        return _engine_error(
            "has too many open files; allow more (`ulimit -n 65536`), or fewer threads", "threads", said
        )
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in said:
        return _engine_error("finds no space on the disk; make room, or name another folder", "temp_directory", said)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or isinstance(error, duckdb.PermissionException):
        return InputError("engine", f"may not read or write there: {said}")
    if isinstance(error, duckdb.IOException | duckdb.DataError):
        return InputError("engine", said)
    return None


def _engine_error(told: str, name: str, said: str) -> InputError:
    flags = f"--mining.engine.{name}, or --{name} of check_logs"
    return InputError("engine", f"{told} ({flags}). It says: {said}")


@dataclass(frozen=True)
class _Watched:
    """A stream in the form that DuckDB scans, which keeps the stream's own error: through SQL it loses its type."""

    stream: Stream
    failures: list[InputError]

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pa.RecordBatchReader.from_batches(self.stream.schema, self._batches()).__arrow_c_stream__()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self.stream.batches()
        except InputError as error:
            self.failures.append(error)
            raise


def read(connection: Backend, stream: Stream) -> Table:
    """A stream as an Ibis table; it is read anew by everything that is computed from it.

    DuckDB gets rows and never the name of a file: names that it takes for patterns or partitions mean nothing here.
    """
    name = f"stream_{next(_NUMBERS)}"
    connection.con.register(name, _Watched(stream, _FAILURES[connection]))
    return connection.table(name)


def normalised(text: Any) -> StringValue:
    """A column of texts in their `normal_text.normal_form`, made by that function: SQL has no case folding of its own.

    It costs a call to Python for every distinct text of a few thousand rows: take it of distinct texts where there are
    many.
    """
    return _normal_form()(text)


@cache
def _normal_form() -> Callable[[Any], StringValue]:
    import ibis

    @ibis.udf.scalar.builtin(name=_NORMAL_FORM)
    def normal_form(text: str) -> str:
        """Given to the connection when it is opened."""

    return normal_form


def has_text(text: Any) -> BooleanValue:
    """`normal_text.has_text` of a column."""
    return text.re_search(VISIBLE)


@dataclass(frozen=True)
class _ParquetFile:
    path: Path
    schema: pa.Schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            yield from file.iter_batches(_ROW_GROUP)


def read_parquet(connection: Backend, path: str | Path) -> Table:
    """A Parquet file that this program wrote, as an Ibis table."""
    return read(connection, _ParquetFile(Path(path), pq.read_schema(path)))


def materialise(connection: Backend, name: str, expression: Table) -> Table:
    """Computes an expression once into the temporary table `name`, which later expressions read."""
    return connection.create_table(name, expression, temp=True, overwrite=True)


def write_sorted(connection: Backend, expression: Table, path: str | Path, schema: pa.Schema, by: Sequence[str]) -> int:
    """Writes an expression as Parquet with page checksums, sorted by `by` (nulls first), and returns its rows.

    `by` has to order the rows totally for the file to be the same at every run. DuckDB sorts and spills; pyarrow
    writes the pages, because DuckDB's writer knows no page checksums.
    """
    path = Path(path).resolve()
    unchecked = path.with_name(f".{path.name}.unchecked")
    view, order = f"sorted_{next(_NUMBERS)}", ", ".join(f'"{name}" NULLS FIRST' for name in by)
    connection.create_view(view, expression.select(*schema.names))
    try:
        # Ibis' own to_parquet fails on a quote in the path.
        connection.raw_sql(f"COPY (FROM {view} ORDER BY {order}) TO {_quoted(unchecked)} (FORMAT parquet)")
        return _with_checksums(unchecked, path, schema)
    finally:
        unchecked.unlink(missing_ok=True)
        connection.drop_view(view)


def _with_checksums(source: Path, target: Path, schema: pa.Schema) -> int:
    rows, held = 0, []
    with pq.ParquetFile(source) as file, _writer(target, schema) as writer:
        # Row groups of a fixed size: DuckDB's own depend on its threads, and the same seed must give the same bytes.
        for batch in file.iter_batches(_ROW_GROUP):
            held.append(pa.Table.from_batches([batch]).cast(schema))
            rows += batch.num_rows
            while sum(t.num_rows for t in held) >= _ROW_GROUP:
                table = pa.concat_tables(held)
                writer.write_table(table.slice(0, _ROW_GROUP).combine_chunks())
                held = [table.slice(_ROW_GROUP)]
        if rest := sum(t.num_rows for t in held):
            writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=rest)
        elif rows == 0:
            writer.write_table(schema.empty_table())
    return rows


def _writer(target: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(target, schema, compression="zstd", write_page_checksum=True)


def _quoted(text: str | Path) -> str:
    return "'" + str(text).replace("'", "''") + "'"
