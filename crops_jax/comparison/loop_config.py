"""A row of simulated days in which what a method shows becomes the log that it learns from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from crops_jax.comparison.methods import METHODS, arm
from crops_jax.config import Experiment
from crops_jax.errors import InputError

PLATFORM = "platform"  # the row that keeps the platform's own dense channel


@dataclass(frozen=True)
class Loop:
    """Which methods, over how many days, on which world."""

    title: str
    """The world's name."""
    about: str
    """What a reader has to know of it."""
    base: Experiment
    """CroPS as printed, of which every method is a change: world, model, and what a day trains (`train.steps`).
    A day has `simulate.sessions.train_sessions` sessions."""
    days: int = 10
    """Simulated days, with the first, which the platform serves for all."""
    methods: tuple[str, ...] = ("fs_lr", "crops")
    """Names of `comparison.methods`; the others are compared with the first."""
    seeds: tuple[int, ...] = (0,)
    """Every seed has users, sessions and weights of its own. The world stays."""
    resamples: int = 2000
    """Resamples of the queries behind an interval; unused from three seeds on."""

    def __post_init__(self):
        problems = [p for name in self.methods for p in self._problems_of(name)]
        if self.days < 3:
            problems.append(f"days = {self.days}: the day that the platform serves, and two to compare")
        if self.base.world is None:
            problems.append("base.world is none: a platform's own logs cannot be served again")
        for name in ("methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                problems.append(f"{name} = {values}: at least one is needed, and none twice")
        if self.resamples < 100:
            problems.append(f"resamples = {self.resamples}: an interval needs 100 at least")
        if problems:
            raise InputError(f"loop {self.title!r}", problems)

    def _problems_of(self, name: str) -> list[str]:
        if name not in METHODS:
            return [f"method {name!r} is none of {', '.join(METHODS)}"]
        if METHODS[name].sparse:
            return [f"method {name!r}: give a base with the sparse model, and the method of the same labels"]
        if arm(name, self.base, 0, 1.0).model.frozen.towers:
            return [f"method {name!r} trains one tower alone: from random weights it would never learn"]
        return []

    def day(self, name: str, seed: int, day: int) -> Experiment:
        """What a method does on a day: its logs, what is mined of them, and the model that it trains on from there.

        The day's folder holds everything: `logs mined records train embeddings query_vectors`.
        """
        base = self.base
        e = base if name == PLATFORM else arm(name, base, seed, 1.0)
        e = replace(
            e, name=".", workdir=str(self.folder(name, seed, day)), train=replace(base.train, keep=1), optim=base.optim,
            simulate=replace(base.simulate, seed=base.simulate.seed + seed),
        )  # fmt: skip
        if name == PLATFORM:
            return e
        before = str(self.folder(name, seed, day - 1) / "train") if day else None
        e = replace(e, model=replace(e.model, init_from=before))
        if base.vocabulary is None:
            return e
        # Checkpoints fit one tokeniser: that of the day which all methods share.
        tokenizer = self.folder(PLATFORM, seed, 0) / "tokenizer" / "tokenizer.json"
        return replace(e, vocabulary=None, text=replace(e.text, tokenizer=str(tokenizer)))

    def folder(self, name: str, seed: int, day: int) -> Path:
        """Where a day of a method lies."""
        return Path(self.base.workdir) / name / f"seed{seed}" / f"day_{day:02d}"
