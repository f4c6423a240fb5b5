"""One day of the simulated recommendation feed: items by a user's interests, never by a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crops_jax.simulate.sessions import DAY_MS, Stage
from crops_jax.simulate.world import at_least, draw_per_row


@dataclass(frozen=True)
class FeedConfig:
    """How much the feed shows and of what."""

    items_per_user: float = 12.0
    """Items that the feed shows a user on a day, on average (active users see more)."""
    interest_share: float = 0.65
    """Share of items that serve an interest of the user, whether search ever exposed them or not."""
    popular_share: float = 0.2
    """Share of items drawn by play count; the rest is drawn evenly from the corpus."""


def day_of_feed(stage: Stage, config: FeedConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Columns of the feed table with item rows instead of ids and `ts` after the day's start, in order of time."""
    world, users = stage.world, stage.users
    shown = rng.poisson(config.items_per_user * users.activity * len(users.activity))
    user = np.repeat(np.arange(len(shown)), shown)
    slot = rng.integers(users.interest.shape[1], size=len(user))
    relevant = at_least(world.wanted, world.relevant_grade)
    by_interest = draw_per_row(relevant, users.interest[user, slot], rng)
    plays = world.items["play_cnt"].fill_null(0).to_numpy() + 1.0
    popular = rng.choice(len(plays), size=len(user), p=plays / plays.sum())
    draw = rng.random(len(user))
    item = np.where(draw < config.interest_share, by_interest, popular)
    anything = rng.integers(len(plays), size=len(user))
    item = np.where((draw > config.interest_share + config.popular_share) | (item < 0), anything, item)
    grade = np.max([stage.taste.grade(interests[user], item) for interests in users.interest.T], axis=0)
    clicked = rng.random(len(user)) < stage.taste.click_chance(grade)
    liked, watch, duration = stage.taste.reactions(item, grade, clicked, rng)
    ts = rng.integers(DAY_MS, size=len(user))
    order = np.lexsort((user, ts))
    columns = {"user_id": user, "item_id": item, "ts": ts, "clicked": clicked, "liked": liked, "watch_ms": watch}
    return {name: column[order] for name, column in (columns | {"duration_ms": duration}).items()}
