"""The relational engine: an Ibis connection to an embedded DuckDB that spills to disk and touches nothing else.

Ibis and DuckDB are imported inside the functions: a training host reads the configs of the mining half without
having either installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.errors import InputError

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import Table

_ROW_GROUP = 1 << 17


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


@contextmanager
def open_engine(config: EngineConfig, folders: Sequence[str | Path]) -> Iterator[Backend]:
    """An Ibis backend on an in-memory DuckDB that may read and write `folders` and its spill folder only.

    Raises:
      InputError: DuckDB refuses a setting (a memory limit it cannot parse, say).
    """
    import duckdb
    import ibis

    with tempfile.TemporaryDirectory(prefix="crops-spill-", dir=config.temp_directory or None) as spill:
        settings = {
            "memory_limit": config.memory_limit,
            "temp_directory": spill,
            "max_temp_directory_size": config.max_temp_directory_size,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        if config.threads:
            settings["threads"] = config.threads
        try:
            connection = ibis.duckdb.connect(":memory:", **settings)
        except duckdb.Error as error:
            raise InputError("engine config", str(error).splitlines()[0]) from error
        # Paths and texts are the user's: from here on SQL can neither reach other files nor change these settings.
        allowed = ", ".join(_quoted(Path(f).resolve()) for f in [*folders, spill])
        connection.raw_sql(f"SET allowed_directories=[{allowed}]")
        connection.raw_sql("SET enable_external_access=false")
        connection.raw_sql("SET lock_configuration=true")
        try:
            yield connection
        finally:
            connection.disconnect()


def read_parquet(connection: Backend, path: str | Path, *, row_numbers: bool = False) -> Table:
    """A Parquet file as an Ibis table; `row_numbers` adds `file_row_number`, the row's place in the file."""
    return connection.read_parquet(str(Path(path).resolve()), file_row_number=row_numbers)


def materialise(connection: Backend, name: str, expression: Table) -> Table:
    """Computes an expression once into the temporary table `name`, which later expressions read."""
    return connection.create_table(name, expression, temp=True, overwrite=True)


def write_sorted(connection: Backend, expression: Table, path: str | Path, schema: pa.Schema, by: Sequence[str]) -> int:
    """Writes an expression as Parquet with page checksums, sorted by `by` (nulls first), and returns its rows.

    `by` has to order the rows totally for the file to be the same at every run. DuckDB sorts and spills; pyarrow
    writes the pages, because DuckDB's writer knows no page checksums.
    """
    import ibis

    path = Path(path).resolve()
    unchecked = path.with_name(f".{path.name}.unchecked")
    ordered = expression.select(*schema.names).order_by([ibis.asc(name, nulls_first=True) for name in by])
    connection.to_parquet(ordered, unchecked)
    try:
        return _with_checksums(unchecked, path, schema)
    finally:
        unchecked.unlink()


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


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
