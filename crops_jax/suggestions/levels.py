"""Six levels of behaviour: what became of every suggested query, and the reward that follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from crops_jax.suggestions.config import RewardConfig
from crops_jax.suggestions.day import TypingDay

if TYPE_CHECKING:
    from ibis.expr.types import Column, Table

TAKEN_LEVELS = ("order", "item_click", "click")  # levels of a query that was taken, the best first
LEFT_LEVELS = ("show", "not_show", "rand")  # and of one that was not
LEVELS = TAKEN_LEVELS + LEFT_LEVELS
REWARDS = pa.schema(
    [
        pa.field("prefix", pa.string(), False),
        pa.field("query", pa.string(), False),
        pa.field("level", pa.string(), False),
        pa.field("times", pa.int64(), False),
        pa.field("share", pa.float64(), False),
        pa.field("reward", pa.float64(), False),
    ]
)
DIGITS = 9  # of a reward behind the point: exponentials of two engines differ in the last bit of a double


def behaviour(day: TypingDay) -> Table:
    """(request_id, prefix, query, level) of every suggested query; each has the best level that it reached.

    order: an item behind it was ordered; item_click: one was clicked; click: the suggestion was taken; show; not_show:
    it was considered, and cut. Of rand are queries that were not considered, so none of these.
    """
    rows = day.suggested.join(day.requests.select("request_id", "prefix"), "request_id")
    rows = rows.left_join(day.followed.mutate(followed=True), ["request_id", "query"])
    level = rows.clicked.ifelse(level_of_taken(rows), rows.shown.ifelse("show", "not_show"))
    return rows.select("request_id", "prefix", "query", level=level)


def level_of_taken(rows: Table) -> Column:
    """The level of a suggestion that was taken, by what was done behind it: `ordered`, `followed`; null for no."""
    followed = rows.followed.fill_null(False).ifelse("item_click", "click")
    return rows.ordered.fill_null(False).ifelse("order", followed)


def rewards(acts: Table, config: RewardConfig) -> Table:
    """(prefix, query, level, times, share, reward): reward = lambda of the level * exp(share).

    `times` are requests in which the query had this level for the prefix, `share` its part of all with that level, of
    the prefix or of the day (`config.frequency`).

    Args:
      acts: rows of `behaviour`.
    """
    import ibis

    keys = ["prefix", "level"] if config.frequency == "prefix" else ["level"]
    rows = acts.group_by(["prefix", "query", "level"]).aggregate(times=acts.count())
    rows = rows.mutate(total=rows.times.sum().over(ibis.window(group_by=keys)))
    rows = rows.mutate(share=rows.times / rows.total)
    base = rows.level.cases(*((name, ibis.literal(float(getattr(config, name)), "float64")) for name in LEVELS))
    reward = (base * rows.share.exp()).round(DIGITS)
    return rows.select("prefix", "query", "level", "times", "share", reward=reward)
