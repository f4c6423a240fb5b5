"""Checks of a log folder against the contract of `logs.schema`: all problems at once, unusable rows counted.

A *problem* (a missing column, a null key, an id that no other table knows) means that the tables are not what they
say they are: the whole folder is refused with one error. A *reject* (an item without text, an empty query) is a row
that is well formed but cannot be trained on: it is counted, left out of mining and reported beside the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.engines.duckdb import EngineConfig, open_engine, read_parquet
from crops_jax.errors import InputError
from crops_jax.logs.schema import COUNTERS, DAY_TABLES, STAGES, TABLES, TEXT_FIELDS

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import BooleanValue, Table

MAX_QUERY_CHARS = 2_000  # a query this long or longer is a pasted document or an attack, not a search
_EXAMPLES = 3
_KEYS = {
    "searches": ("request_id",),
    "candidates": ("request_id", "item_id"),
    "items": ("item_id",),
    "judgments": ("query", "item_id"),
}
_LEAST = {
    "searches": {"ts": 0},
    "candidates": {"position": 1, "watch_ms": 0},
    "feed": {"ts": 0, "watch_ms": 0, "duration_ms": 0},
    "items": {"item_id": 0, **dict.fromkeys(COUNTERS, 0)},
}
_NAMES = {  # what a row is called in an example
    "searches": ("request_id", "user_id", "ts"),
    "candidates": ("request_id", "item_id"),
    "feed": ("user_id", "item_id", "ts"),
    "items": ("item_id",),
    "judgments": ("query", "item_id"),
}


@dataclass(frozen=True)
class Reject:
    """Rows of one kind that cannot be used: how many, and up to three examples."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class LogReport:
    """What a sound log folder holds: rows a table, and rejects by reason."""

    rows: dict[str, int]
    rejects: dict[str, Reject]


def check_logs(logs: str | Path, day: str, engine: EngineConfig | None = None) -> LogReport:
    """Checks items, judgments (if there) and one day of a log folder, on a connection of its own.

    Raises:
      InputError: lists every problem with its count and up to three examples.
    """
    with open_engine(engine or EngineConfig(), [logs]) as connection:
        return check_with(connection, logs, day)


def check_with(connection: Backend, logs: str | Path, day: str) -> LogReport:
    """`check_logs` on an open connection that may read `logs`."""
    tables, problems = _open_tables(connection, Path(logs), day)
    rows = {}
    for name, table in tables.items():
        found, rows[name] = _row_problems(name, table)
        problems += found
        problems += _duplicate_problems(name, table)
    problems += _reference_problems(tables)
    problems += _order_problems(tables)
    if problems:
        raise InputError(f"{logs} (day {day!r})", problems)
    return LogReport(rows, _rejects(tables))


def usable_query(query: Any) -> BooleanValue:
    """Whether a query column can be trained on: some text, below `MAX_QUERY_CHARS` characters."""
    return (query.strip() != "") & (query.length() < MAX_QUERY_CHARS)


def has_text(items: Table) -> BooleanValue:
    """Whether an item has text in any of its four fields."""
    blank = [items[name].fill_null("").strip() == "" for name in TEXT_FIELDS]
    return ~(blank[0] & blank[1] & blank[2] & blank[3])


def _open_tables(connection: Backend, logs: Path, day: str) -> tuple[dict[str, Table], list[str]]:
    """The tables whose columns are right, and the problems of the others."""
    paths = {"items": logs / "items.parquet"} | {name: logs / day / f"{name}.parquet" for name in DAY_TABLES}
    if (logs / "judgments.parquet").exists():
        paths["judgments"] = logs / "judgments.parquet"
    tables, problems = {}, []
    for name, path in paths.items():
        found = list(_column_problems(name, path))
        problems += [f"{path.relative_to(logs)}: {p}" for p in found]
        if not found:
            tables[name] = read_parquet(connection, path, row_numbers=True)
    return tables, problems


def _column_problems(name: str, path: Path) -> Iterator[str]:
    if not path.is_file():
        yield "no such file"
        return
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        yield f"is not a readable Parquet file ({str(error).splitlines()[0]})"
        return
    for column, want in TABLES[name].items():
        if column not in schema.names:
            yield f"column {column} is missing ({want.type}: {want.meaning})"
        elif not _same_type(schema.field(column).type, want.type):
            yield f"column {column} is {schema.field(column).type}, it must be {want.type}: cast it"


def _same_type(have: pa.DataType, want: pa.DataType) -> bool:
    if pa.types.is_string(want):
        return pa.types.is_string(have) or pa.types.is_large_string(have) or pa.types.is_string_view(have)
    return have == want


def _row_problems(name: str, table: Table) -> tuple[list[str], int]:
    """Problems that a single row shows, counted in one pass; and the table's number of rows."""
    conditions = dict(_bad_rows(name, table))
    sums = {f"c{i}": bad.fill_null(False).sum() for i, bad in enumerate(conditions.values())}
    counts = table.aggregate(rows=table.count(), **sums).to_pyarrow().to_pylist()[0]
    if counts["rows"] == 0:
        return [f"{name}: an empty log: the table has no rows"], 0
    problems = []
    for i, ((column, text), bad) in enumerate(conditions.items()):
        if count := counts[f"c{i}"]:
            shown = _examples(table.filter(bad), dict.fromkeys((*_NAMES[name], column)))
            problems.append(f"{name}.{column}: {count} rows {text}, e.g. {shown}")
    return problems, counts["rows"]


def _bad_rows(name: str, table: Table) -> Iterator[tuple[tuple[str, str], BooleanValue]]:
    """((column, what is wrong), condition) of every check that looks at one row alone."""
    for column, want in TABLES[name].items():
        if not want.nullable:
            yield (column, "are null"), table[column].isnull()
        if pa.types.is_floating(want.type):
            yield (column, "are NaN or infinite"), table[column].isnan() | table[column].isinf()
        if (least := _LEAST.get(name, {}).get(column)) is not None:
            yield (column, f"are below {least}"), table[column] < least
    if name == "candidates":
        yield ("stage", f"are none of {', '.join(STAGES)}"), table.stage.notin(STAGES)
        acted = table.clicked | table.liked | (table.watch_ms > 0)
        yield ("stage", "are clicked, liked or watched, but not exposed"), (table.stage != "exposed") & acted


def _duplicate_problems(name: str, table: Table) -> list[str]:
    if name not in _KEYS:
        return []
    keys = _KEYS[name]
    twice = table.group_by(list(keys)).aggregate(times=table.count()).filter(lambda t: t.times > 1)
    if count := _count(twice):
        where = f"{name}.{keys[0]}" if len(keys) == 1 else f"{name} ({', '.join(keys)})"
        return [f"{where}: {count} keys occur more than once, e.g. {_examples(twice, (*keys, 'times'))}"]
    return []


def _reference_problems(tables: dict[str, Table]) -> list[str]:
    """Ids that occur in one table and are missing from the one that defines them."""
    references = [("candidates", "item_id", "items"), ("feed", "item_id", "items"),
                  ("judgments", "item_id", "items"), ("candidates", "request_id", "searches")]  # fmt: skip
    problems = []
    for name, column, home in references:
        if name not in tables or home not in tables:
            continue
        table = tables[name].filter(tables[name][column].notnull())
        stray = table.anti_join(tables[home], column)
        if count := _count(stray):
            ids = stray.select(column).distinct()
            problems.append(
                f"{name}.{column}: {count} rows with {_count(ids)} ids that {home} does not have, "
                f"e.g. {_examples(ids, (column,))}"
            )
    return problems


def _order_problems(tables: dict[str, Table]) -> list[str]:
    """Rows whose time lies before the same user's previous row of the file."""
    problems = []
    for name in ("searches", "feed"):
        if name not in tables:
            continue
        table = tables[name]
        before = table.ts.lag().over(group_by="user_id", order_by="file_row_number")
        back = table.mutate(previous_ts=before).filter(lambda t: t.previous_ts > t.ts)
        if count := _count(back):
            shown = _examples(back, dict.fromkeys((*_NAMES[name], "previous_ts")))
            problems.append(f"{name}.ts: {count} rows lie before the same user's previous row, e.g. {shown}")
    return problems


def _rejects(tables: dict[str, Table]) -> dict[str, Reject]:
    searches, items = tables["searches"], tables["items"]
    kinds = {
        "item_without_text": (items, ~has_text(items), ("item_id",)),
        "query_empty": (searches, searches.query.strip() == "", ("request_id",)),
        "query_too_long": (searches, searches.query.length() >= MAX_QUERY_CHARS, ("request_id", "chars")),
    }
    rejects = {}
    for reason, (table, bad, shown) in kinds.items():
        rows = table.filter(bad)
        if reason == "query_too_long":
            rows = rows.mutate(chars=rows.query.length())
        if count := _count(rows):
            rejects[reason] = Reject(count, tuple(_example_list(rows, shown)))
    return rejects


def _count(table: Table) -> int:
    return table.count().to_pyarrow().as_py()


def _examples(table: Table, columns: Any) -> str:
    return "; ".join(_example_list(table, columns))


def _example_list(table: Table, columns: Any) -> list[str]:
    names = list(columns)
    rows = table.select(*names).order_by(names).limit(_EXAMPLES).to_pyarrow().to_pylist()
    return [" ".join(f"{name}={_short(row[name])}" for name in names) for row in rows]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
