"""Checks of a log folder against the contract of `logs.schema`: all problems at once, unusable rows counted.

A *problem* (a missing column, a null key, an id that no other table knows) breaks the contract: the whole folder is
refused with one error. A *reject* (an item without text, an empty query) is a row
that is well formed but cannot be trained on: it is counted, left out of mining and reported beside the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import Engine, normalised, open_engine
from crops_jax.engines.engine import has_text as column_has_text
from crops_jax.errors import InputError
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.logs.schema import COUNTERS, MAX_GRADE, STAGES, TABLES, TEXT_FIELDS
from crops_jax.logs.tables import PLATFORM, Findings, LogTable
from crops_jax.logs.times import day_problems

if TYPE_CHECKING:
    from ibis.expr.types import BooleanValue, StringValue, Table

MAX_QUERY_CHARS = 2_000  # a query this long or longer is a pasted document or an attack, not a search
_EXAMPLES = 3
MAX_REJECT_SHARE = 0.5  # of a table's rows that cannot be trained on; more are a mistake in how the logs were written
_UNUSABLE = {"item_without_text": "items", "query_empty": "searches", "query_too_long": "searches"}
_KEYS = {
    "searches": ("request_id",),
    "candidates": ("request_id", "item_id"),
    "suggestions": ("request_id",),
    "suggested": ("request_id", "query"),
    "followed": ("request_id", "query", "item_id"),
    "items": ("item_id",),
    "judgments": ("query", "item_id"),
}
_MAY_BE_EMPTY = ("followed", "feed")
NO_FEED = "the feed is empty, so there will be no P2"  # a shop with a search alone
_NO_COMMON_USER = (
    "no user of the feed has a search, so there will be no P2: does user_id name people alike in both tables?"
)
_LEAST = {
    "candidates": {"position": 1, "watch_ms": 0},
    "suggested": {"position": 1},
    "feed": {"watch_ms": 0, "duration_ms": 0},
    "items": dict.fromkeys(COUNTERS, 0),
}
_NAMES = {  # what a row is called in an example
    "searches": ("request_id", "user_id", "ts"),
    "candidates": ("request_id", "item_id"),
    "feed": ("user_id", "item_id", "ts"),
    "suggestions": ("request_id", "user_id", "ts"),
    "suggested": ("request_id", "query"),
    "followed": ("request_id", "query", "item_id"),
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
    """What a sound log folder holds."""

    rows: dict[str, int]
    """Of each table."""
    rejects: dict[str, Reject]
    """By reason."""
    searched: tuple[int, int]
    """First and last moment of the searches, ms."""
    common_user: bool
    """Whether a user of the feed has a search, too."""


def check_logs(
    logs: str | Path, day: str, config: EngineConfig | None = None, max_reject_share: float = MAX_REJECT_SHARE
) -> LogReport:
    """Checks items, judgments (if there) and one day of a log folder, on an engine of its own.

    Raises:
      InputError: lists every problem with its count and up to three examples.
    """
    return check_folder(open_logs(logs), day, config or EngineConfig(), max_reject_share)


def check_folder(logs: LogFolder, day: str, config: EngineConfig, max_reject_share: float) -> LogReport:
    """`check_logs` of a log folder that is open."""
    with open_engine(config, []) as engine:
        return check_with(engine, logs, day, max_reject_share)


def check_with(engine: Engine, logs: LogFolder, day: str, max_reject_share: float = 1.0) -> LogReport:
    """`check_logs` of a log folder that is open, on an engine that is.

    Args:
      max_reject_share: of items, or of searches, that may be left out; where it is more, or all are, that is a problem.
    """
    files, ends, problems = _sound_tables(engine, logs, day)
    rows = {}
    for name, file in files.items():
        found, rows[name] = _row_problems(name, engine.read(file))
        problems += found
        problems += _duplicate_problems(engine, name, file)
    problems += _reference_problems(engine, files)
    if problems:
        raise InputError(f"{logs.root} (day {day!r})", problems)
    rejects = _rejects({name: engine.read(file) for name, file in files.items()})
    if problems := list(_too_many(rejects, rows, max_reject_share)):
        raise InputError(f"{logs.root} (day {day!r})", problems)
    return LogReport(rows, rejects, (min(ends["searches"]), max(ends["searches"])), _common_user(engine, files))


def no_p2(feed: int, common_user: bool) -> str | None:
    """Why nothing can come of a feed of so many rows (`LogReport`); None where something may."""
    if not feed:
        return NO_FEED
    return None if common_user else _NO_COMMON_USER


def usable_query(query: Any) -> BooleanValue:
    """Whether a query column can be trained on: some text, below `MAX_QUERY_CHARS` characters."""
    return column_has_text(query) & (query.length() < MAX_QUERY_CHARS)


def has_text(items: Table) -> BooleanValue:
    """Whether an item has text in any of its four fields."""
    told = [column_has_text(items[name].fill_null("")) for name in TEXT_FIELDS]
    return told[0] | told[1] | told[2] | told[3]


def _sound_tables(
    engine: Engine, logs: LogFolder, day: str
) -> tuple[dict[str, LogTable], dict[str, list[int]], list[str]]:
    """The tables whose columns and values are right, the ends of their times, and the problems of the others."""
    sound, ends, problems = {}, {}, []
    for name in ["items", *logs.tables(day)] + (["judgments"] if logs.has("judgments") else []):
        try:
            file, found = logs.look(name, day)
            of_values, ends[name] = _value_problems(engine, file)
            found += of_values
        except InputError as error:
            found = error.problems
        problems += [f"{logs.place(name, day).relative_to(logs.root)}: {p}" for p in found]
        if not found:
            sound[name] = file
    return sound, ends, problems


def _value_problems(engine: Engine, file: LogTable) -> tuple[list[str], list[int]]:
    """Values that no cast can save, files that break while they are read, and times that are no day's; the ends of
    all files' times."""
    looked = engine.each(_values_of_part, file.pieces())
    problems = [p for found, _, _ in looked for p in found] + [p for _, broken, _ in looked for p in broken]
    ends = [ts for _, _, ends in looked for ts in ends]
    return problems or (day_problems(min(ends), max(ends), file.rows) if ends else []), ends


def _values_of_part(file: LogTable) -> tuple[list[str], list[str], list[int]]:
    """(what is wrong with the values of a table of one file, why it cannot be read, first and last moment)."""
    findings, broken, ends = Findings(), [], []
    (part,) = file.parts
    try:
        for batch in file.part_batches(part, findings):
            if "ts" in batch.schema.names:
                ends += [ts for ts in pc.min_max(batch.column("ts")).as_py().values() if ts is not None]
    except InputError as error:
        broken = [f"{part.label}{p}" for p in error.problems]
    return findings.problems(), broken, [min(ends), max(ends)] if ends else []


def _row_problems(name: str, table: Table) -> tuple[list[str], int]:
    """Problems that a single row shows, counted in one pass; and the table's number of rows."""
    conditions = dict(_bad_rows(name, table))
    sums = {f"c{i}": bad.fill_null(False).sum() for i, bad in enumerate(conditions.values())}
    counts = table.aggregate(rows=table.count(), **sums).to_pyarrow().to_pylist()[0]
    if counts["rows"] == 0 and name not in _MAY_BE_EMPTY:
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
        if not want.may_be_null:
            yield (column, "are null"), table[column].isnull()
        if pa.types.is_floating(want.type):
            yield (column, "are NaN or infinite"), table[column].isnan() | table[column].isinf()
        if (least := _LEAST.get(name, {}).get(column)) is not None:
            yield (column, f"are below {least}"), table[column] < least
    if name == "candidates":
        yield ("stage", f"are none of {', '.join(STAGES)}"), table.stage.notin(STAGES)
        acted = table.clicked | table.liked | (table.watch_ms > 0)
        yield ("stage", "are clicked, liked or watched, but not exposed"), (table.stage != "exposed") & acted
    if name == "suggested":
        yield ("clicked", "are clicked, but not shown"), table.clicked & ~table.shown
    if name == "judgments":
        yield ("query", "are without text, and NDCG would count them; leave them out"), ~column_has_text(table["query"])
        low, high = "are below 0; give such pairs the grade 0, or leave them out", "; bring grades to 0, 1, 2, ..."
        finite = ~(table.grade.isnan() | table.grade.isinf())
        yield ("grade", low), finite & (table.grade < 0)
        yield ("grade", f"are above {MAX_GRADE:g}, and the gain is 2^grade{high}"), finite & (table.grade > MAX_GRADE)


def _duplicate_problems(engine: Engine, name: str, file: LogTable) -> list[str]:
    if name not in _KEYS:
        return []
    table = engine.read(file.only(*_KEYS[name]))
    keys = tuple(_shown(table, key) for key in _KEYS[name])
    twice = table.group_by(list(keys)).aggregate(times=table.count()).filter(lambda t: t.times > 1)
    if count := _count(twice):
        where = f"{name}.{_KEYS[name][0]}" if len(keys) == 1 else f"{name} ({', '.join(_KEYS[name])})"
        return [f"{where}: {count} keys occur more than once, e.g. {_examples(twice, (*keys, 'times'))}"]
    return _judged_twice(engine.read(file)) if name == "judgments" else []


def _judged_twice(table: Table) -> list[str]:
    """Pairs with two grades under two spellings of one query."""
    item = _shown(table, "item_id")
    spellings = table.group_by(form=normalised(table.query), item=table[item])
    twice = spellings.aggregate(grades=table.grade.nunique(), query=table.query.min(), other=table.query.max())
    twice = twice.filter(twice.grades > 1).rename({item: "item"})
    if count := _count(twice):
        shown = _examples(twice, ("query", "other", item))
        return [f"judgments.grade: {count} pairs have two grades under two spellings of one query, e.g. {shown}"]
    return []


def _reference_problems(engine: Engine, files: dict[str, LogTable]) -> list[str]:
    """Ids that occur in one table and are missing from the one that defines them."""
    references = [("candidates", "item_id", "items"), ("feed", "item_id", "items"),
                  ("judgments", "item_id", "items"), ("followed", "item_id", "items"),
                  ("candidates", "request_id", "searches"), ("suggested", "request_id", "suggestions")]  # fmt: skip
    problems = []
    for name, column, home in references:
        if name not in files or home not in files:
            continue
        table, known = (engine.read(files[of].only(column)) for of in (name, home))
        table = table.filter(table[column].notnull())
        stray = table.anti_join(known, column)
        if count := _count(stray):
            ids = stray.select(_shown(table, column)).distinct()
            problems.append(
                f"{name}.{column}: {count} rows with {_count(ids)} ids that {home} does not have, "
                f"e.g. {_examples(ids, ids.columns)}"
            )
    return problems + _followed_problems(engine, files)


def _common_user(engine: Engine, files: dict[str, LogTable]) -> bool:
    if not {"feed", "searches"} <= {*files}:
        return False
    feed, searches = (engine.read(files[name].only("user_id")) for name in ("feed", "searches"))
    return _count(feed.semi_join(searches, "user_id").limit(1)) > 0  # the first that is found ends it


def _followed_problems(engine: Engine, files: dict[str, LogTable]) -> list[str]:
    """Clicks on items behind a suggestion that nobody took."""
    if not {"suggested", "followed"} <= {*files}:
        return []
    suggested = engine.read(files["suggested"].only("request_id", "query", "clicked"))
    followed = engine.read(files["followed"].only("request_id", "query", "item_id"))
    stray = followed.anti_join(suggested.filter(suggested.clicked), ["request_id", "query"])
    if count := _count(stray):
        shown = _examples(stray, _NAMES["followed"])
        return [f"followed: {count} rows of a suggestion that suggested does not have as clicked, e.g. {shown}"]
    return []


def _rejects(tables: dict[str, Table]) -> dict[str, Reject]:
    searches, items = tables["searches"], tables["items"]
    kinds = {
        "item_without_text": (items, ~has_text(items), ("item_id",)),
        "query_empty": (searches, ~column_has_text(searches.query), ("request_id",)),
        "query_too_long": (searches, _too_long(searches.query), ("request_id", "chars")),
        "search_without_user": (searches, searches.user_id.isnull(), ("request_id",)),
        "feed_without_user": (tables["feed"], tables["feed"].user_id.isnull(), ("item_id", "ts")),
        **_typing_kinds(tables),
    }
    rejects = {}
    for reason, (table, bad, shown) in kinds.items():
        rows = table.filter(bad)
        if "chars" in shown:
            rows = rows.mutate(chars=(rows.prefix if "prefix" in rows.columns else rows.query).length())
        if count := _count(rows):
            rejects[reason] = Reject(count, tuple(_example_list(rows, shown)))
    return rejects


def _too_long(text: StringValue) -> BooleanValue:
    """Whether it is, and has text: a row has one reason."""
    return column_has_text(text) & (text.length() >= MAX_QUERY_CHARS)


def _too_many(rejects: dict[str, Reject], rows: dict[str, int], most: float) -> Iterator[str]:
    for name in dict.fromkeys(_UNUSABLE.values()):
        found = {reason: rejects[reason] for reason, of in _UNUSABLE.items() if of == name and reason in rejects}
        count = sum(reject.count for reject in found.values())
        if count > most * rows[name] or (count and count == rows[name]):
            told = "; ".join(f"{r.count} {reason}, e.g. {', '.join(r.examples)}" for reason, r in found.items())
            more = ", or allow more: check_logs --max-reject-share" if count < rows[name] else ""
            yield f"{name}: {count} of {rows[name]} rows would be left out ({told}); mend the table{more}"


def _typing_kinds(tables: dict[str, Table]) -> dict[str, tuple[Table, BooleanValue, tuple[str, ...]]]:
    """The kinds of rejects of a log of suggestions, if there is one."""
    if "suggestions" not in tables:
        return {}
    typed, suggested = tables["suggestions"], tables["suggested"]
    return {
        "prefix_empty": (typed, ~column_has_text(typed.prefix), ("request_id",)),
        "prefix_too_long": (typed, _too_long(typed.prefix), ("request_id", "chars")),
        "suggestion_without_user": (typed, typed.user_id.isnull(), ("request_id",)),
        "suggested_empty": (suggested, ~column_has_text(suggested.query), ("request_id",)),
        "suggested_too_long": (suggested, _too_long(suggested.query), ("request_id", "chars")),
    }


def _count(table: Table) -> int:
    return table.count().to_pyarrow().as_py()


def _examples(table: Table, columns: Any) -> str:
    return "; ".join(_example_list(table, columns))


def _shown(table: Table, column: str) -> str:
    """The column that shows people what `column` holds: an id as it is written."""
    names = {f"{role}_id": name for role, name in PLATFORM.items()}
    return names[column] if names.get(column) in table.columns else column


def _example_list(table: Table, columns: Any) -> list[str]:
    names = {name: _shown(table, name) for name in columns}
    rows = table.select(**names).order_by(list(names)).limit(_EXAMPLES).to_pyarrow().to_pylist()
    plain = {name: f"{role}_id" for role, name in PLATFORM.items()}
    return [" ".join(f"{plain.get(name, name)}={_short(row[name])}" for name in names) for row in rows]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value.lstrip("-").isdecimal() else repr(value)  # a number kept as text
    return text if len(text) <= 60 else text[:57] + "..."
