"""Contract tables in Parquet: written with page checksums and stable bytes, read with those checksums checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.errors import InputError
from crops_jax.logs.schema import TABLES, arrow_schema


def write_table(schema: str | pa.Schema, columns: pa.Table | Mapping[str, Any], path: str | Path) -> int:
    """Writes one table and returns its number of rows; equal content gives equal bytes.

    Args:
      schema: a table of the log contract ("items", "searches", ...) or an Arrow schema.
      columns: a table, or name -> array; extra columns and missing ones raise.
    """
    wanted = arrow_schema(schema) if isinstance(schema, str) else schema
    names = columns.column_names if isinstance(columns, pa.Table) else list(columns)
    if set(names) != set(wanted.names):
        raise ValueError(f"{path}: columns {sorted(names)} instead of {sorted(wanted.names)}")
    arrays = [columns[name] for name in wanted.names]
    arrays = [_as_type(a, field.type) for a, field in zip(arrays, wanted, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=wanted)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True, row_group_size=1 << 18)
    return table.num_rows


def _as_type(array: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if isinstance(array, pa.Array | pa.ChunkedArray):
        return array.cast(kind)
    return pa.array(array, type=kind)


def read_table(path: str | Path, table: str | None = None, *, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file, verifying its page checksums.

    Args:
      table: a table of the log contract; its columns, types and nulls are checked, and extra columns are left out.
      columns: read only these.

    Raises:
      InputError: the file is missing, is not Parquet or is damaged; or it breaks the contract, with every missing,
        mistyped or null-holding column in one message.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(str(path), "no such file")
    try:
        read = pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            str(path), f"cannot be read as Parquet, it is cut or damaged ({reason}); write it again"
        ) from None
    return read if table is None else conform(read, table, str(path), columns)


def conform(read: pa.Table, table: str, place: str, columns: list[str] | None = None) -> pa.Table:
    """`read` with exactly the contract's columns and types, safe casts applied (int32 to int64, large strings).

    Raises:
      InputError: lists every column that is missing, cannot be cast, or holds nulls where it must not.
    """
    problems, arrays, fields = [], [], []
    for field in arrow_schema(table):
        if columns is not None and field.name not in columns:
            continue
        if field.name not in read.column_names:
            problems.append(f"column {field.name} is missing ({TABLES[table][field.name].meaning}: {field.type})")
            continue
        try:
            array = read[field.name].cast(field.type)
        except pa.ArrowException:
            problems.append(f"column {field.name} is {read[field.name].type}, but {field.type} is needed")
            continue
        if array.null_count and not field.nullable:
            problems.append(f"column {field.name} holds {array.null_count} nulls in {len(array)} rows")
        arrays.append(array)
        fields.append(field)
    if problems:
        raise InputError(place, problems)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))
