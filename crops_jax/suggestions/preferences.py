"""Nine kinds of preferences: a query that was taken (order, item_click, click) above one that was not (show, not_show,
rand), weighted by how near their rewards are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from crops_jax.engines.engine import Engine, md5
from crops_jax.mining.day import ranked_first
from crops_jax.mining.work import digits_for
from crops_jax.suggestions.config import PreferenceConfig, RewardConfig
from crops_jax.suggestions.day import TypingDay
from crops_jax.suggestions.levels import DIGITS, LEFT_LEVELS, TAKEN_LEVELS

if TYPE_CHECKING:
    from ibis.expr.types import StringValue, Table

PREFERENCES = pa.schema(
    [
        pa.field("request_id", pa.string(), False),
        pa.field("prefix", pa.string(), False),
        pa.field("chosen", pa.string(), False),
        pa.field("chosen_level", pa.string(), False),
        pa.field("chosen_reward", pa.float64(), False),
        pa.field("rejected", pa.string(), False),
        pa.field("rejected_level", pa.string(), False),
        pa.field("rejected_reward", pa.float64(), False),
        pa.field("weight", pa.float64(), False),
    ]
)
PREFERENCES_ORDER = ("prefix", "request_id", "chosen", "rejected_level", "rejected")
KINDS = tuple((better, worse) for better in TAKEN_LEVELS for worse in LEFT_LEVELS)
_BUCKET = 128  # queries of the dictionary among which a taken query's random ones are drawn


def preference_pairs(
    engine: Engine, name: str, day: TypingDay, acts: Table, rewarded: Table, config: PreferenceConfig,
    rewards: RewardConfig,
) -> Table:  # fmt: skip
    """Rows of `PREFERENCES` before the guards, with `gap`, the difference of the rewards, in the place of `weight`.

    A taken query meets what was suggested in the same request and not taken, and queries of the day that were not
    suggested there: up to `rejected_per_kind` of each level, chosen by a hash.

    Args:
      name: what temporary tables are called by.
      acts: rows of `levels.behaviour`.
      rewarded: rows of `levels.rewards`.
    """
    import ibis

    rows = acts.join(rewarded.select("prefix", "query", "level", "reward"), ["prefix", "query", "level"])
    rows = engine.materialise(f"{name}_acts", rows.select("request_id", "prefix", "query", "level", "reward"))
    chosen = rows.filter(rows.level.isin(TAKEN_LEVELS))
    chosen = chosen.select("request_id", "prefix", chosen="query", chosen_level="level", chosen_reward="reward")
    chosen = engine.materialise(f"{name}_chosen", chosen)
    others = rows.filter(rows.level.isin(LEFT_LEVELS))
    others = others.select("request_id", rejected="query", rejected_level="level", rejected_reward="reward")
    pairs = chosen.join(others, "request_id")
    random = _random_queries(engine, name, day, chosen, config.seed)
    random = random.mutate(rejected_level=ibis.literal("rand"), rejected_reward=ibis.literal(rewards.rand, "float64"))
    pairs = pairs.union(random.select(pairs.columns))
    order = [_draw(config.seed, pairs.request_id, pairs.rejected), pairs.rejected]
    pairs = ranked_first(pairs, order, ["request_id", "chosen", "rejected_level"], keep=config.rejected_per_kind)
    return pairs.mutate(gap=(pairs.chosen_reward - pairs.rejected_reward).round(DIGITS))


def guarded(pairs: Table, config: PreferenceConfig) -> Table:
    """Rows of `PREFERENCES`: pairs whose rewards differ by `min_gap` or more, weight = min(1 / gap, `max_weight`)."""
    import ibis

    kept = pairs.filter(pairs.gap >= config.min_gap)
    return kept.mutate(weight=ibis.least(1.0 / kept.gap, ibis.literal(float(config.max_weight), "float64"))).drop("gap")


def _random_queries(engine: Engine, name: str, day: TypingDay, chosen: Table, seed: int) -> Table:
    """`chosen` with queries of the day, as `rejected`, that were not suggested in the request.

    Queries lie in buckets by their hash, and a taken query draws from one: an equality join on every engine.
    """
    import ibis

    known = ibis.union(*(rows.select("query") for rows in (day.searches, day.anonymous, day.suggested)), distinct=True)
    known = engine.materialise(f"{name}_dictionary", known)
    digits = digits_for(engine.count(known), _BUCKET)
    known = known.select(rejected="query", bucket=md5(known["query"]).substr(0, digits))
    drawn = chosen.mutate(bucket=_draw(seed, chosen.request_id, chosen.chosen).substr(0, digits))
    drawn = drawn.join(known, "bucket").drop("bucket")
    return drawn.anti_join(day.suggested.select("request_id", rejected="query"), ["request_id", "rejected"])


def _draw(seed: int, *names: StringValue) -> StringValue:
    """A hash by which rows are chosen, the same on every engine."""
    import ibis

    text = ibis.literal(f"{seed}")
    for name in names:
        text = text + "|" + name
    return md5(text)
