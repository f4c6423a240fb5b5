"""The engine inside this process: Ibis on an embedded DuckDB, which spills to disk and can reach no other files.

Ibis and DuckDB are imported inside the functions: a training host reads the configs of the mining half without
having either installed.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.engines import files
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import DRAW, NORMAL_FORM, PART, S, Stream, T
from crops_jax.errors import InputError
from crops_jax.normal_text import normal_forms
from crops_jax.stable_hash import hash_texts, in_order

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import Table

_NUMBERS = itertools.count()  # of the names that this module gives
_PARTS_AT_ONCE = 4
_WRITTEN = "written"  # in a folder of rows that were sent to their parts, when all are there


@dataclass(frozen=True)
class DuckDB:
    """An open DuckDB (`engine.Engine`)."""

    connection: Backend
    threads: int
    failures: list[InputError] = field(default_factory=list)  # of streams: SQL carries texts only
    tables: list[str] = field(default_factory=list)  # that are materialised, in their order

    def read(self, stream: Stream) -> Table:
        """See `engine.Engine`. DuckDB gets rows and never the name of a file: patterns and `key=value` mean nothing."""
        name = f"stream_{next(_NUMBERS)}"
        self.connection.con.register(name, _Watched(stream, self.failures))
        return self.connection.table(name)

    def materialise(self, name: str, expression: Table) -> Table:
        """See `engine.Engine`."""
        self.tables.append(name)
        return self.connection.create_table(name, expression, temp=True, overwrite=True)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """See `engine.Engine`."""
        before = len(self.tables)
        yield
        for name in dict.fromkeys(self.tables[before:]):
            self.connection.drop_table(name)
        del self.tables[before:]

    def count(self, expression: Table) -> int:
        """See `engine.Engine`."""
        return expression.count().to_pyarrow().as_py()

    def write_sorted(self, expression: Table, path: str | Path, how: files.Sorted) -> int:
        """See `engine.Engine`. DuckDB sorts; pyarrow writes, because DuckDB's own writer knows no page checksums."""
        with self._view(expression.select(*how.columns)) as view:
            return _write_sorted(self.connection.con, view, Path(path), how)

    def write_parts(self, expression: Table, folder: Path, how: files.Sorted) -> None:
        """See `engine.Engine`. The rows are first sent to their parts, and then each part is sorted on its own."""
        sent = folder.resolve() / ".sent"
        if not (sent / _WRITTEN).exists():
            shutil.rmtree(sent, ignore_errors=True)
            sent.mkdir(parents=True)
            with self._view(expression.select(*how.columns, PART)) as view:
                parts = f"(FORMAT parquet, PARTITION_BY ({PART}), COMPRESSION lz4)"
                self.connection.raw_sql(f"COPY (FROM {view}) TO {quoted(sent / PART)} {parts}")
            (sent / _WRITTEN).touch()
        parts = {files.part_path(folder, p.name.partition("=")[2]): p for p in (sent / PART).glob(f"{PART}=*")}
        left = [(path, sorted(part.glob("*.parquet"))) for path, part in sorted(parts.items()) if not path.exists()]
        # Sorting a part takes all threads and writing it takes one: several at a time keep them busy.
        with ThreadPoolExecutor(min(self.threads, _PARTS_AT_ONCE)) as pool:
            list(pool.map(lambda one: self._write_part(*one, how), left))
        shutil.rmtree(sent)

    def _write_part(self, path: Path, sent: Sequence[Path], how: files.Sorted) -> None:
        stored = files.Files(tuple(sent), pq.read_schema(sent[0]).remove_metadata())
        with self.connection.con.cursor() as connection:
            connection.register(PART, _Watched(stored, self.failures))
            _write_sorted(connection, PART, path, how)

    def each(self, function: Callable[[S], T], values: Sequence[S]) -> list[T]:
        """See `engine.Engine`."""
        return [function(value) for value in values]

    @contextmanager
    def _view(self, expression: Table) -> Iterator[str]:
        name = f"view_{next(_NUMBERS)}"
        self.connection.create_view(name, expression)
        try:
            yield name
        finally:
            self.connection.drop_view(name)


@contextmanager
def open_engine(config: EngineConfig, folders: Sequence[str | Path]) -> Iterator[DuckDB]:
    """See `engine.open_engine`."""
    import duckdb

    with files.spill_folder(config) as spill:
        engine = DuckDB(_connect(config, spill, folders), config.threads or os.cpu_count() or 1)
        try:
            yield engine
        except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
            if engine.failures:
                raise engine.failures[0] from None
            if (told := _told(error, config)) is not None:
                raise told from error
            raise
        finally:
            engine.connection.disconnect()


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
        connection.raw_sql(f"SET max_temp_directory_size={quoted(config.max_temp_directory_size)}")
    except duckdb.Error as error:
        raise InputError("engine config", str(error).splitlines()[0]) from error
    connection.con.create_function(NORMAL_FORM, normal_forms, ["VARCHAR"], "VARCHAR", type="arrow")
    connection.con.create_function(DRAW, _draws, ["VARCHAR", "BIGINT"], "BIGINT", type="arrow")
    # Paths and texts are the user's: from here on SQL can neither reach other files nor change these settings.
    allowed = ", ".join(quoted(Path(f).resolve()) for f in [*folders, spill])
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
        return _engine_error(
            "finds no space on the disk; make room where it writes, or spill elsewhere", "temp_directory", said
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or isinstance(error, duckdb.PermissionException):
        return InputError("engine", f"may not read or write there: {said}")
    if isinstance(error, duckdb.IOException | duckdb.DataError):
        return InputError("engine", said)
    return None


def _engine_error(told: str, name: str, said: str) -> InputError:
    flags = f"--mining.engine.{name}, --suggest_mining.engine.{name} of suggest, --{name} of check_logs"
    return InputError("engine", f"{told} ({flags}). It says: {said}")


def _draws(texts: pa.ChunkedArray, seeds: pa.ChunkedArray) -> pa.Array:
    return pa.array(in_order(hash_texts(texts.to_pylist(), seeds[0].as_py() if len(seeds) else 0)))


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


def _write_sorted(connection: DuckDBPyConnection, table: str, path: Path, how: files.Sorted) -> int:
    order = ", ".join(f'"{column}" NULLS FIRST' for column in how.by)
    return how.write(connection.execute(f"FROM {table} ORDER BY {order}").to_arrow_reader(files.ROW_GROUP), path)


def quoted(text: str | Path) -> str:
    """A text or path as a literal of SQL."""
    return "'" + str(text).replace("'", "''") + "'"
