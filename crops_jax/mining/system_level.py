"""P2, system-level positives (Eq. 2): what the users who issued a query consumed in the recommendation feed.

Only the feed items nearest in time to a query count, `max_items_per_user` of them, here called K. Work and memory grow
with the number of rows alone, however busy a user is:

1. What a user consumed gets a *place* in the user's own order of time, and K places make a *block*. Each search falls
   into a block. A block takes the whole of a moment that begins in it, because what was seen at one moment is equally
   near; of that, the K smallest ids are enough.
2. The K items nearest to any search of a block are among these, less than 4 K: the block's own, the K distinct items
   last seen before it, and the K distinct items first seen after it (`_beside`). So a search is joined with its block
   only.
3. An item among the K nearest to a query is among the K nearest to the search that it is nearest to. So the K nearest
   to the query are found among those of its searches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crops_jax.engines.engine import Engine
from crops_jax.mining.config import SystemLevelConfig
from crops_jax.mining.day import Day, interacted, ranked_first

if TYPE_CHECKING:
    from ibis.expr.types import Table


def feed_near_query(engine: Engine, name: str, day: Day, config: SystemLevelConfig) -> Table:
    """(query, user_id, item_id, distance_ms): D_i of Eq. 2 for every query and each of its users, before theta.

    Of more than `max_items_per_user` items, those nearest in time to the query are kept (ties: the smaller item id).
    A user who issued the query several times counts once: the nearest of the searches is taken for each item.

    `query` is what it is in the day's searches: a text, or its number.

    Args:
      name: what temporary tables are called by.
    """
    most, size = config.max_items_per_user, max(config.max_items_per_user, 1)
    rows = _in_blocks(engine, name, day, config.min_watch_ms, size)
    asked = rows.filter(rows.query.notnull()).select("query", "user_id", "ts", "block")
    seen = rows.filter(rows.query.isnull()).select("user_id", "item_id", "block", "last", seen_ts="ts")
    around = seen.drop("last").union(_beside(engine, name, seen, size))
    near = asked.join(around, ["user_id", "block"])
    near = near.mutate(distance_ms=(near.seen_ts - near.ts).abs()).filter(lambda t: t.distance_ms <= config.window_ms)
    near = near.group_by(["query", "user_id", "item_id"]).aggregate(distance_ms=near.distance_ms.min())
    return ranked_first(near, [near.distance_ms, near.item_id], ["query", "user_id"], keep=most)


def _in_blocks(engine: Engine, name: str, day: Day, min_watch_ms: int, size: int) -> Table:
    """Searches (query, user_id, ts) and feed interactions (user_id, item_id, ts) of their users, with block and last.

    `last` is the user's last block. A search's block is that of the first interaction at or after it, or the last: what
    lies in earlier blocks was seen before the search, and what lies in later ones at or after it.
    """
    import ibis

    asked = day.searches.select("query", "user_id", "ts").distinct()
    seen = day.feed.filter(interacted(day.feed, min_watch_ms)).semi_join(asked, "user_id")
    seen = seen.select("user_id", "item_id", "ts").distinct()
    # The place of each within its moment.
    seen = seen.mutate(after=ibis.row_number().over(group_by=["user_id", "ts"], order_by="item_id"))
    seen = seen.filter(seen.after < size)
    rows = ibis.union(
        seen.mutate(query=ibis.null(asked.query.type()), seen=ibis.literal(1, "int64")),
        asked.select("user_id", "ts", "query", item_id=ibis.null("int64"), after=ibis.literal(0, "int64"),
                     seen=ibis.literal(0, "int64"))
        .select("user_id", "item_id", "ts", "after", "query", "seen"),
    )  # fmt: skip
    before = ibis.window(group_by="user_id", order_by=["ts", "seen", "item_id", "query"], rows=(None, 0))
    rows = rows.mutate(block=(rows.seen.sum().over(before) - rows.seen - rows.after) // size)
    rows = rows.mutate(last=rows.block.max(where=rows.seen == 1).over(group_by="user_id"))
    rows = rows.filter(rows["last"].notnull()).mutate(block=ibis.least(rows.block, rows["last"]))
    return engine.materialise(f"{name}_places", rows.select("user_id", "item_id", "ts", "query", "block", "last"))


def _beside(engine: Engine, name: str, seen: Table, most: int) -> Table:
    """(user_id, item_id, block, seen_ts): for each block the `most` distinct items seen last before and first after it.

    The neighbouring block holds as many, unless it is shorter or an item occurs in it twice. Where they are fewer,
    those of further blocks are added, in rounds that each reach twice as far: log2(n) rounds for a user of n blocks.
    """
    import ibis

    keys, reach, older = ["user_id", "side", "block"], 1, []
    sides = ibis.union(*(seen.mutate(side=ibis.literal(side, "int64")) for side in (-1, 1)))
    # "away" grows with the distance from the block, on either side of it.
    sides = sides.mutate(away=sides.side * sides.seen_ts, block=sides.block - sides.side)
    sides = sides.filter(sides.block >= 0, sides.block <= sides["last"])
    newest = engine.materialise(f"{name}_reach_1", _nearest(sides, keys, most))
    while True:
        found = ibis.union(newest, *older) if older else newest
        further = found.mutate(block=found.block - found.side * reach)
        few = newest.select(keys).distinct().anti_join(newest.filter(newest.place == most - 1), keys)
        few = engine.materialise(f"{name}_few_{reach}", few.semi_join(further, keys))
        if engine.count(few) == 0:
            return found.select("user_id", "item_id", "block", seen_ts=found.side * found.away)
        older.append(newest.anti_join(few, keys))
        grown = newest.union(further).semi_join(few, keys)
        reach *= 2
        newest = engine.materialise(f"{name}_reach_{reach}", _nearest(grown, keys, most))


def _nearest(rows: Table, keys: list[str], most: int) -> Table:
    """The `most` items of each group with the smallest `away` (ties: the smaller id), each once, and their `place`."""
    import ibis

    once = rows.group_by([*keys, "item_id"]).aggregate(away=rows.away.min())
    order = ibis.window(group_by=keys, order_by=[once.away, once.item_id])
    return once.mutate(place=ibis.row_number().over(order)).filter(lambda t: t.place < most)
