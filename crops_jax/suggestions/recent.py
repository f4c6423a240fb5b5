"""What users searched before a request, and nothing after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crops_jax.engines.engine import Engine
from crops_jax.logs.checks import usable_query
from crops_jax.logs.folder import LogFolder

if TYPE_CHECKING:
    from ibis.expr.types import Table


def recent_searches(engine: Engine, logs: LogFolder, events: Table, most: int) -> Table:
    """Rows of `RECENT`: a user's searches have numbers, and an event asks for the last ones before it by number."""
    import ibis

    asked = events.filter(events.user_id.notnull()).select("event_id", "user_id", "ts").distinct()
    columns = ("request_id", "user_id", "query", "ts")
    searches = ibis.union(*days) if len(days := _searches(engine, logs, columns)) > 1 else days[0]
    searches = searches.semi_join(asked.select("user_id").distinct(), "user_id")
    rows = ibis.union(
        asked.select("user_id", "ts", request_id="event_id", query=ibis.null("string"), searched=_number(0)),
        searches.select("user_id", "ts", "request_id", "query", searched=_number(1)),
    )
    # Of one moment, the event comes before the searches, so that it does not count them.
    so_far = ibis.window(group_by="user_id", order_by=["ts", "searched", "request_id", "query"], rows=(None, 0))
    rows = engine.materialise("events_among_searches", rows.mutate(number=rows.searched.sum().over(so_far)))
    found = rows.filter(rows.searched == 1).select("user_id", "number", "query")
    back = ibis.memtable(pa.table({"back": pa.array(range(1, most + 1), pa.int32())}))
    wanted = rows.filter(rows.searched == 0).select("user_id", last="number", event_id="request_id").cross_join(back)
    wanted = wanted.mutate(number=wanted["last"] + 1 - wanted.back)
    return wanted.join(found, ["user_id", "number"]).select("event_id", "back", "query")


def _searches(engine: Engine, logs: LogFolder, columns: tuple[str, ...]) -> list[Table]:
    days = [logs.engine_table(engine, "searches", day, columns) for day in logs.days()]
    return [rows.filter(usable_query(rows.query)) for rows in days]


def _number(value: int) -> Any:
    import ibis

    return ibis.literal(value, "int64")
