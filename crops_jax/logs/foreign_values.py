"""SQL for single values of other people's tables: names, texts, and what of a number is still there."""

from __future__ import annotations

import pyarrow as pa

from crops_jax.engines.duckdb import quoted

ROUNDED = "is an id that a float has rounded: write ids as whole numbers or texts"
NOT_TEXT = "holds bytes that are not UTF-8: write it as text"


def identifier(name: str) -> str:
    """A column or table in SQL, whatever its name."""
    return '"' + name.replace('"', '""') + '"'


def is_bytes(kind: pa.DataType) -> bool:
    """Whether these are texts without a mark that they are: older Spark, Hive and Impala write them so."""
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in kinds)


def written(column: str, kind: pa.DataType) -> str:
    """SQL for the values of a column of this type as text; NaN is null, as in pandas' tables, and bytes are UTF-8."""
    name = identifier(column)
    if is_bytes(kind):
        odd, told = f"{name} IS NOT NULL AND try(decode({name})) IS NULL", quoted(f"column {column} {NOT_TEXT}")
        return f"CASE WHEN {odd} THEN error({told}) ELSE try(decode({name})) END"
    return f"CASE WHEN NOT isnan({name}) THEN {name}::VARCHAR END" if pa.types.is_floating(kind) else f"{name}::VARCHAR"


def cut(text: str) -> str:
    """SQL whether a text is a number with an exponent that has lost digits, as spreadsheets save long numbers."""
    return f"coalesce(({step(text)}) > 1, false)"


def step(text: str) -> str:
    """SQL for the value of the last digit of a text that is a number with an exponent; null of all others."""
    form = r"'^-?[0-9]+[.]?([0-9]*)[eE][+]0*([0-9]+)$'"
    digits, exponent = (f"regexp_extract({text}, {form}, {group})" for group in (1, 2))
    value = f"pow(10, least(try_cast({exponent} AS INTEGER), 300) - length({digits}))"  # least reads over a null
    return f"CASE WHEN regexp_matches({text}, {form}) THEN {value} END"
