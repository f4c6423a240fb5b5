"""A row of simulated days in which what a method shows becomes the log that it learns from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from crops_jax.comparison.methods import METHODS, SHOWN, arm
from crops_jax.config import Experiment
from crops_jax.errors import InputError

PLATFORM = "platform"  # the row that keeps the platform's own dense channel
_CONTROL = "_control"  # ends the name of a control's row and folder
# Sparse rows need a base of their own, ADORE trains one tower alone, and every day has as many steps.
LOOP_METHODS = tuple(
    name for name in SHOWN if not METHODS[name].sparse and not METHODS[name].equal_data and name != "adore"
)


def control_of(name: str) -> str:
    """The row of a method's control."""
    return name + _CONTROL


def is_control(row: str) -> bool:
    """Whether a row is a control: it serves, and learns from the platform's days."""
    return row.endswith(_CONTROL)


def method_of(row: str) -> str:
    """The method of a row, its own or a control's."""
    return row.removesuffix(_CONTROL)


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
    controls: tuple[str, ...] = ()
    """Methods of `methods` that run once more as controls: what a control shows is measured, and never becomes a log.
    It mines and trains on the days of the platform's own channel, and its click memory is made of those."""
    first_steps: int | None = None
    """Steps of day 0's training; none: `base.train.steps`, those of every other day. With many the curves do not show
    a model that is still learning."""
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
        problems += [f"control {name!r} is none of the loop's methods: {', '.join(self.methods)}"
                     for name in self.controls if name not in self.methods]  # fmt: skip
        if len(set(self.controls)) < len(self.controls):
            problems.append(f"controls = {self.controls}: none twice")
        if self.first_steps is not None and self.first_steps < 1:
            problems.append(f"first_steps = {self.first_steps}: day 0 trains one step at least")
        for name in ("methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                problems.append(f"{name} = {values}: at least one is needed, and none twice")
        problems += [f"seeds: {seed} is below zero" for seed in self.seeds if seed < 0]
        if self.resamples < 100:
            problems.append(f"resamples = {self.resamples}: an interval needs 100 at least")
        if problems:
            raise InputError(f"loop {self.title!r}", problems)

    def _problems_of(self, name: str) -> list[str]:
        if name not in SHOWN:
            return [f"method {name!r} is none of {', '.join(LOOP_METHODS)}"]
        if METHODS[name].sparse:
            return [f"method {name!r}: give a base with the sparse model, and the method of the same labels"]
        if METHODS[name].equal_data:
            return [f"method {name!r} takes as many steps as its shards need, and a day has base.train.steps for all"]
        if arm(name, self.base, 0, 1.0).model.frozen.towers:
            return [f"method {name!r} trains one tower alone: from random weights it would never learn"]
        return []

    @property
    def rows(self) -> tuple[str, ...]:
        """The platform, the methods, their controls. A row comes after those whose days it reads."""
        return (PLATFORM, *self.methods, *map(control_of, self.controls))

    def day(self, name: str, seed: int, day: int) -> Experiment:
        """What a row does on a day: the logs it learns from, what is mined of them, the model it trains on from there.

        The day's folder holds everything: `logs mined records train embeddings query_vectors`, of a control `served`.
        """
        base = self.base
        e = base if name == PLATFORM else arm(method_of(name), base, seed, 1.0)
        steps = base.train.steps if day or self.first_steps is None else self.first_steps
        e = replace(
            e, name=".", workdir=str(self.folder(name, seed, day)), optim=base.optim,
            train=replace(base.train, keep=1, steps=steps),
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

    def served(self, name: str, seed: int, day: int) -> Path:
        """The logs of what a row showed on a day: those it learns from, but for a control."""
        own = day > 0 and is_control(name)
        return self.folder(name, seed, day) / "served" if own else self.day(name, seed, day).folder("logs")

    def folder(self, name: str, seed: int, day: int) -> Path:
        """Where a day of a row lies."""
        return Path(self.base.workdir) / name / f"seed{seed}" / f"day_{day:02d}"
