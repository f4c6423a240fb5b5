"""Simulated users: how active they are, what they care about, and what they click."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crops_jax.simulate.world import Lookup, World, generator


@dataclass(frozen=True)
class UsersConfig:
    """The population and its taste."""

    n_users: int = 6000
    """Users of the platform; the same ones on all days."""
    interests: int = 4
    """Intents that a user cares about on all days; the first matters most."""
    new_need_share: float = 0.25
    """Chance that a session is about something outside the user's interests."""
    click_relevant: float = 0.75
    """Chance to click an examined item of the best grade; the least relevant grade gets two thirds of it."""
    click_partial: float = 0.05
    """Chance to click an examined item whose grade is known and below relevance."""
    click_accident: float = 0.01
    """Chance to click an examined item of unknown or no grade."""
    like_share: float = 0.12
    """Chance that a click on a relevant item is followed by a like."""


@dataclass(frozen=True)
class Users:
    """U users. `interest` int64[U, interests]; `activity` float64[U] sums to 1."""

    interest: np.ndarray
    activity: np.ndarray


def make_users(world: World, config: UsersConfig, seed: int) -> Users:
    """Draws interests by the intents' popularity and activity from a skewed distribution."""
    rng = generator(seed, "users")
    interest = rng.choice(len(world.intents), size=(config.n_users, config.interests), p=world.popularity)
    activity = rng.gamma(1.5, size=config.n_users)
    return Users(interest, activity / activity.sum())


def draw_interest(users: Users, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One interest for each entry of `user`; the k-th is drawn in proportion to 1/(k+1)."""
    weight = 1.0 / np.arange(1, users.interest.shape[1] + 1)
    slot = rng.choice(len(weight), size=len(user), p=weight / weight.sum())
    return users.interest[user, slot]


class Taste:
    """Grades of items for intents, and the clicks, likes and watch times that follow from them."""

    def __init__(self, world: World, config: UsersConfig):
        self._grade, self._config = Lookup(world.wanted), config
        self._floor, self._top = world.relevant_grade, max(world.top_grade, world.relevant_grade + 1e-9)
        self._length = generator(0, "durations", world.name).integers(10_000, 180_000, world.items.num_rows)

    def grade(self, intent: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float32 of the broadcast shape; 0 where the item has no grade for the intent or is padding (-1)."""
        return np.where(item >= 0, self._grade(intent, np.maximum(item, 0)), 0)

    def relevant(self, grade: np.ndarray) -> np.ndarray:
        """Whether a grade counts as relevant; an unknown one (0) never does."""
        return grade >= self._floor

    def click_chance(self, grade: np.ndarray) -> np.ndarray:
        """Chance to click an item once it is examined."""
        c = self._config
        height = np.clip((grade - self._floor) / (self._top - self._floor), 0, 1)
        other = np.where(grade > 0, c.click_partial, c.click_accident)
        return np.where(self.relevant(grade), c.click_relevant * (2 + height) / 3, other)

    def reactions(self, item: np.ndarray, grade: np.ndarray, clicked: np.ndarray, rng: np.random.Generator):
        """(liked bool, watch_ms int64, duration_ms int64) of the items' shape; unclicked items are not watched."""
        duration = self._length[np.maximum(item, 0)]
        good = self.relevant(grade)
        share = np.where(good, rng.beta(5, 2, item.shape), rng.beta(1, 6, item.shape))
        liked = clicked & good & (rng.random(item.shape) < self._config.like_share)
        return liked, np.where(clicked, duration * share, 0).astype(np.int64), duration
