"""The simulated days: `simulate(world, config, folder)` writes the log contract's tables and the truth beside them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import scipy.sparse as sp

from crops_jax.errors import InputError, impossible_numbers
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.simulate.calibration import read_calibration
from crops_jax.simulate.feed import FeedConfig
from crops_jax.simulate.judged import JudgedWorldConfig, judged_world
from crops_jax.simulate.logs import TEST_DAY, TRAIN_DAY, VALIDATION_DAY, write_day, write_world
from crops_jax.simulate.platform import Channel, PlatformConfig, Pools, Production
from crops_jax.simulate.prefixes import TypingConfig, completions
from crops_jax.simulate.sessions import DAY_MS, SessionsConfig, Stage
from crops_jax.simulate.synthetic import SyntheticWorldConfig, synthetic_world
from crops_jax.simulate.truth import AnnotationConfig
from crops_jax.simulate.users import Taste, UsersConfig, make_users
from crops_jax.simulate.world import World

__all__ = [
    "JudgedWorldConfig",
    "SimulateConfig",
    "SyntheticWorldConfig",
    "World",
    "build_world",
    "simulate",
    "simulate_day",
]

_CHANCES = ("click_relevant", "click_partial", "click_accident", "satisfied_by_click", "persistence")


@dataclass(frozen=True)
class SimulateConfig:
    """The simulated platform and its users, over any world."""

    seed: int = 0
    """Everything that happens follows from it (and from the world)."""
    calibration: str | None = None
    """JSON of behaviour aggregates; None: the file that ships with the package."""
    users: UsersConfig = field(default_factory=UsersConfig)
    """Population and taste."""
    sessions: SessionsConfig = field(default_factory=SessionsConfig)
    """Search traffic."""
    platform: PlatformConfig = field(default_factory=PlatformConfig)
    """The production search."""
    feed: FeedConfig = field(default_factory=FeedConfig)
    """The recommendation feed."""
    annotation: AnnotationConfig = field(default_factory=AnnotationConfig)
    """The simulated annotation (complete worlds only)."""
    typing: TypingConfig = field(default_factory=TypingConfig)
    """How queries are typed, and what is suggested meanwhile."""


def build_world(config: SyntheticWorldConfig | JudgedWorldConfig) -> World:
    """The world of a config. Raises InputError when a judged collection is bad."""
    match config:
        case SyntheticWorldConfig():
            return synthetic_world(config)
        case JudgedWorldConfig():
            return judged_world(config)


def _check(config: SimulateConfig) -> None:
    users, platform, sessions, feed, typing = (
        config.users, config.platform, config.sessions, config.feed, config.typing,
    )  # fmt: skip
    pool = 2 * platform.recall_each + platform.memory_recall
    rules = {
        "users.n_users and users.interests must be at least 1": users.n_users >= 1 and users.interests >= 1,
        "sessions.train_sessions and sessions.test_sessions must be at least 1": min(
            sessions.train_sessions, sessions.test_sessions
        ) >= 1,
        "sessions.validation_sessions must not be negative": sessions.validation_sessions >= 0,
        "sessions.max_queries must be at least 1": sessions.max_queries >= 1,
        f"platform: 1 <= exposed <= ranked <= 2*recall_each + memory_recall = {pool} must hold": 1
        <= platform.exposed <= platform.ranked <= pool,
        f"platform.lexical_fields must be some of {TEXT_FIELDS}": set(platform.lexical_fields) <= set(TEXT_FIELDS)
        and len(platform.lexical_fields) > 0,
        "platform.dense_width must be at least 1, and platform.dense_features 2": platform.dense_width >= 1
        and platform.dense_features >= 2,
        "feed.interest_share + feed.popular_share must not be above 1": feed.interest_share + feed.popular_share <= 1,
        "annotation.queries and annotation.pooled must be at least 1": min(
            config.annotation.queries, config.annotation.pooled
        ) >= 1,
        "typing: 1 <= shown <= considered must hold": 1 <= typing.shown <= typing.considered,
        "typing.letter_ms must not be negative": typing.letter_ms >= 0,
    }  # fmt: skip
    problems = [text for text, holds in rules.items() if not holds]
    problems += impossible_numbers(config)
    for name in ("users", "platform", "sessions", "feed", "annotation", "typing"):
        problems += impossible_numbers(getattr(config, name), _CHANCES, f"{name}.")
    if problems:
        raise InputError("SimulateConfig", problems)


def simulate(world: World, config: SimulateConfig, folder) -> dict:
    """Runs the days over `world` and writes their logs, the items, the judgments and the truth into `folder`.

    Args:
      folder: a directory to fill: a Path, or a `artifacts.folders.Folder`; files are written with `folder / name`.

    Returns:
      counts for the manifest: of the world, and for each day of events, exposures, clicks, reformulations and the
      filter bubble.

    Raises:
      InputError: lists every field of `config` that cannot be, or says what is wrong with the calibration file.
    """
    _check(config)
    production = Production(world, config.platform, config.seed)
    stage = _stage(world, config, production.pools("train"))
    counts = {"world": world.counts | write_world(stage, config.annotation, config.seed, folder)}
    write = partial(write_day, feed=config.feed, seed=config.seed, folder=folder)
    counts["train"] = write(stage, "train", TRAIN_DAY, config.sessions.train_sessions)
    later = {
        "validation": (VALIDATION_DAY, config.sessions.validation_sessions),
        "test": (TEST_DAY, config.sessions.test_sessions),
    }
    for day, (start, sessions) in later.items():
        if sessions:
            counts[day] = write(replace(stage, pools=production.pools(day)), day, start, sessions)
    return counts


def simulate_day(
    world: World, config: SimulateConfig, folder, day: int, dense: Channel | None = None,
    memory: sp.csr_matrix | None = None,
) -> dict:  # fmt: skip
    """One day of a row of days, as a log folder whose train day it is; there is no other day in it.

    Day 0 without `dense` and `memory` has the train day of `simulate`. All days have the same users; a day's first
    queries are the same whatever serves them.

    Args:
      folder: as in `simulate`.
      day: from 0; it moves the day's moments and its random streams.
      dense: the retriever that serves the day instead of the platform's own dense channel.
      memory: [Q, C], the click memory instead of the seeded one.

    Raises:
      InputError: as `simulate`.
    """
    _check(config)
    stream = "train" if day == 0 else f"day{day:02d}"
    pools = Production(world, config.platform, config.seed, dense).pools(stream, memory)
    stage = _stage(world, config, pools)
    counts = {"world": world.counts | write_world(stage, config.annotation, config.seed, folder)}
    start, sessions = TRAIN_DAY + day * DAY_MS, config.sessions.train_sessions
    write = partial(write_day, feed=config.feed, seed=config.seed, folder=folder, stream=stream)
    return counts | {"train": write(stage, "train", start, sessions)}


def _stage(world: World, config: SimulateConfig, pools: Pools) -> Stage:
    users = make_users(world, config.users, config.seed)
    return Stage(
        world, users, Taste(world, config.users), pools, read_calibration(config.calibration), config.users,
        config.platform, config.sessions,
        completions(world, config.typing, config.seed) if config.typing.enabled else None,
    )  # fmt: skip
