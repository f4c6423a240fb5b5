"""P2, system-level positives (Eq. 2): what the users who issued a query consumed in the recommendation feed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crops_jax.logs.tables import PLATFORM
from crops_jax.mining.config import SystemLevelConfig
from crops_jax.mining.day import Day, interacted, ranked_first

if TYPE_CHECKING:
    from ibis.expr.types import Table


def feed_near_query(day: Day, config: SystemLevelConfig) -> Table:
    """(query, user_id, item_id, distance_ms): D_i of Eq. 2 for every query and each of its users, before theta.

    Of more than `max_items_per_user` items, those nearest in time to the query are kept (ties: the smaller item id).
    A user who issued the query several times counts once: the nearest of the searches is taken for each item.
    """
    asked = day.searches.select("query", "user_id", "ts").distinct()
    seen = day.feed.filter(interacted(day.feed, config.min_watch_ms))
    seen = seen.select("user_id", "item_id", seen_ts="ts").distinct()
    near = asked.join(seen, "user_id")
    distance = (near.seen_ts - near.ts).abs()
    near = near.filter(distance <= config.window_ms)
    near = near.group_by(["query", "user_id", "item_id"]).aggregate(distance_ms=(near.seen_ts - near.ts).abs().min())
    order = [near.distance_ms, near.item_id]
    return ranked_first(near, order, ["query", "user_id"], keep=config.max_items_per_user)


def system_level_rows(rows: Table, theta: Table, day: Day) -> Table:
    """(query, item_id, theta, evidence) of P2, one row a pair: `rows` of `feed_near_query` that passed theta.

    evidence is the user in whose feed the item was, as the platform writes it; of several, the one nearest in time
    (ties: the smaller id).
    """
    kept = rows.join(theta, ["query", "item_id"])
    first = ranked_first(kept, [kept.distance_ms, kept.user_id], ["query", "item_id"])
    if PLATFORM["user"] not in day.searches.columns:
        return first.select("query", "item_id", "theta", evidence=first.user_id.cast("string"))
    users = day.searches.select("user_id", evidence=PLATFORM["user"]).distinct()
    return first.join(users, "user_id").select("query", "item_id", "theta", "evidence")
