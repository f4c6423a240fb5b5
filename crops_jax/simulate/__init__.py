"""Simulated platforms: a World, users who search and watch, and the logs that this leaves behind.

`simulate(world, config, folder)` writes the log contract (see `crops_jax.schema`) for a train day and a test day, and
the truth beside it. Everything it writes is simulated behaviour; in a judged world the texts and grades are real.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from crops_jax.simulate.calibration import read_calibration
from crops_jax.simulate.feed import FeedConfig
from crops_jax.simulate.judged import JudgedWorldConfig, judged_world
from crops_jax.simulate.logs import TEST_DAY, TRAIN_DAY, write_day, write_world
from crops_jax.simulate.platform import PlatformConfig, Production
from crops_jax.simulate.sessions import SessionsConfig, Stage
from crops_jax.simulate.synthetic import SyntheticWorldConfig, synthetic_world
from crops_jax.simulate.truth import AnnotationConfig
from crops_jax.simulate.users import Taste, UsersConfig, make_users
from crops_jax.simulate.world import World

__all__ = ["JudgedWorldConfig", "SimulateConfig", "SyntheticWorldConfig", "World", "build_world", "simulate"]


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


def build_world(config: SyntheticWorldConfig | JudgedWorldConfig) -> World:
    """The world of a config. Raises InputError when a judged collection is bad."""
    match config:
        case SyntheticWorldConfig():
            return synthetic_world(config)
        case JudgedWorldConfig():
            return judged_world(config)


def simulate(world: World, config: SimulateConfig, folder) -> dict:
    """Runs both days over `world` and writes their logs, the items, the judgments and the truth into `folder`.

    Args:
      folder: a directory to fill: a Path, or a `crops_jax.artifacts.Folder`; files are written with `folder / name`.

    Returns:
      counts for the manifest: of the world, and for each day of events, exposures, clicks, reformulations and the
      filter bubble.
    """
    users = make_users(world, config.users, config.seed)
    production = Production(world, config.platform, config.seed)
    stage = Stage(
        world, users, Taste(world, config.users), production.pools("train"),
        read_calibration(config.calibration), config.users, config.platform, config.sessions,
    )  # fmt: skip
    counts = {"world": world.counts | write_world(stage, config.annotation, config.seed, folder)}
    write = partial(write_day, feed=config.feed, seed=config.seed, folder=folder)
    counts["train"] = write(stage, "train", TRAIN_DAY, config.sessions.train_sessions)
    stage = replace(stage, pools=production.pools("test"))
    counts["test"] = write(stage, "test", TEST_DAY, config.sessions.test_sessions)
    return counts
