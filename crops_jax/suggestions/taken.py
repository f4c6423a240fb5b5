"""Suggestions that were taken, and what their users had searched before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crops_jax.engines.engine import Engine
from crops_jax.logs.checks import usable_query
from crops_jax.logs.folder import LogFolder
from crops_jax.suggestions.day import TypingDay
from crops_jax.suggestions.levels import level_of_taken

if TYPE_CHECKING:
    from ibis.expr.types import Table

TAKEN = pa.schema(
    [
        pa.field("request_id", pa.string(), False),
        pa.field("user_id", pa.int64()),
        pa.field("ts", pa.int64(), False),
        pa.field("prefix", pa.string(), False),
        pa.field("query", pa.string(), False),
        pa.field("level", pa.string(), False),  # order, item_click or click
    ]
)
TAKEN_ORDER = ("prefix", "request_id", "query")
RECENT = pa.schema(
    [
        pa.field("prefix", pa.string(), False),
        pa.field("request_id", pa.string(), False),
        pa.field("back", pa.int32(), False),  # 1: the user's last search before the request
        pa.field("query", pa.string(), False),  # as the user typed it
    ]
)
RECENT_ORDER = ("prefix", "request_id", "back")


def taken_suggestions(day: TypingDay) -> Table:
    """Rows of `TAKEN`: the suggestions that were taken on a day, with the best level that each reached."""
    taken = day.suggested.filter(day.suggested.clicked).select("request_id", "query")
    followed = day.followed.mutate(followed=True)
    rows = taken.join(day.requests, "request_id").left_join(followed, ["request_id", "query"])
    return rows.select("request_id", "user_id", "ts", "prefix", "query", level=level_of_taken(rows))


def recent_searches(engine: Engine, logs: LogFolder, requests: Table, most: int) -> Table:
    """(request_id, back, query): the queries that a user searched before each request, the last one is 1 back.

    The searches may be of any day of the folder, but lie before the request: one at the same moment can be the search
    that the suggestion led to, and is left out. A user's searches have numbers, and a request asks for the last ones
    before it by number: an equality join.

    Args:
      requests: request_id, user_id (null: nobody knows), ts.
      most: searches of a request at most.
    """
    import ibis

    asked = requests.filter(requests.user_id.notnull()).select("request_id", "user_id", "ts").distinct()
    columns = ("request_id", "user_id", "query", "ts")
    searches = ibis.union(*days) if len(days := _searches(engine, logs, columns)) > 1 else days[0]
    searches = searches.semi_join(asked.select("user_id").distinct(), "user_id")
    rows = ibis.union(
        asked.select("user_id", "ts", "request_id", query=ibis.null("string"), searched=_number(0)),
        searches.select("user_id", "ts", "request_id", "query", searched=_number(1)),
    )
    # Of one moment, the request comes before the searches, so that it does not count them.
    so_far = ibis.window(group_by="user_id", order_by=["ts", "searched", "request_id", "query"], rows=(None, 0))
    rows = engine.materialise("requests_among_searches", rows.mutate(number=rows.searched.sum().over(so_far)))
    found = rows.filter(rows.searched == 1).select("user_id", "number", "query")
    back = ibis.memtable(pa.table({"back": pa.array(range(1, most + 1), pa.int32())}))
    wanted = rows.filter(rows.searched == 0).select("user_id", "request_id", last="number").cross_join(back)
    wanted = wanted.mutate(number=wanted["last"] + 1 - wanted.back)
    return wanted.join(found, ["user_id", "number"]).select("request_id", "back", "query")


def queries_by(rows: pa.Table, key: str) -> dict[str, list[str]]:
    """The queries of each request of a table with the columns `key` and query, in the order of the rows."""
    found: dict[str, list[str]] = {}
    for request, query in zip(rows[key].to_pylist(), rows["query"].to_pylist(), strict=True):
        found.setdefault(request, []).append(query)
    return found


def _searches(engine: Engine, logs: LogFolder, columns: tuple[str, ...]) -> list[Table]:
    days = [logs.engine_table(engine, "searches", day, columns) for day in logs.days()]
    return [rows.filter(usable_query(rows.query)) for rows in days]


def _number(value: int) -> Any:
    import ibis

    return ibis.literal(value, "int64")
