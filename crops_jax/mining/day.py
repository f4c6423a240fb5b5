"""One day of logs as Ibis tables, without the rows that `logs.checks` rejects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crops_jax.logs.checks import has_text, usable_query
from crops_jax.logs.folder import LogFolder

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import BooleanValue, Table


@dataclass(frozen=True)
class Day:
    """The day's tables (`logs.schema` has their columns) and the items they name; every row of them can be used."""

    searches: Table
    candidates: Table
    feed: Table
    items: Table


def open_day(connection: Backend, logs: LogFolder, day: str) -> Day:
    """The day of a log folder: usable queries, items with text, and the rows that belong to both."""
    searches = logs.engine_table(connection, "searches", day)
    searches = searches.filter(usable_query(searches.query))
    items = logs.engine_table(connection, "items")
    silent = items.filter(~has_text(items))
    candidates = logs.engine_table(connection, "candidates", day).anti_join(silent, "item_id")
    feed = logs.engine_table(connection, "feed", day).anti_join(silent, "item_id")
    return Day(searches, candidates, feed, items.anti_join(silent, "item_id"))


def interacted(table: Table, min_watch_ms: int) -> BooleanValue:
    """Whether the user of a candidates or feed row clicked, liked, or watched for at least `min_watch_ms`."""
    return table.clicked | table.liked | (table.watch_ms >= min_watch_ms)


def ranked_first(table: Table, by: list[Any], keys: list[str], keep: int = 1) -> Table:
    """The first `keep` rows of each group of `keys` in the order `by`, which has to be total for a stable answer."""
    import ibis

    place = ibis.row_number().over(ibis.window(group_by=keys, order_by=by))
    return table.mutate(place=place).filter(lambda t: t.place < keep).drop("place")
