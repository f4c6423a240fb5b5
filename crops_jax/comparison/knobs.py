"""The simulator's knobs at half and at double: does the order of methods depend on how the world was set?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crops_jax.comparison.config import Comparison
from crops_jax.comparison.methods import METHODS
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.report.tables import Table
from crops_jax.simulate.judged import JudgedWorldConfig

FACTORS = (0.5, 2.0)


@dataclass(frozen=True)
class Knob:
    """One setting of the simulated world."""

    title: str
    turn: Callable[[Experiment, float], Experiment]
    """The experiment with the setting multiplied."""
    applies: Callable[[Experiment], bool] = lambda e: True
    """Whether the experiment's world reads the setting."""
    steps: tuple[str, str] = ("x 0.5", "x 2")
    """What each of `FACTORS` does to it, in words."""

    def at(self, by: float) -> str:
        """The knob as it is turned, for a table."""
        return f"{self.title} {self.steps[FACTORS.index(by)]}"


def _noise(e: Experiment, by: float) -> Experiment:
    users, platform = e.simulate.users, e.simulate.platform
    users = replace(users, click_accident=users.click_accident * by, click_partial=users.click_partial * by)
    return replace(e, simulate=replace(e.simulate, users=users, platform=replace(platform, noise=platform.noise * by)))


def _exploration(e: Experiment, by: float) -> Experiment:
    feed = e.simulate.feed
    drawn_evenly = 1 - feed.interest_share - feed.popular_share
    feed = replace(feed, interest_share=1 - feed.popular_share - drawn_evenly * by)
    return replace(e, simulate=replace(e.simulate, feed=feed))


def _model(e: Experiment, by: float) -> Experiment:
    llm = e.simulated_llm
    assert llm is not None
    llm = replace(llm, irrelevant_rate=llm.irrelevant_rate * by, malformed_rate=llm.malformed_rate * by)
    return replace(e, simulated_llm=llm)


def _asks_simulated_model(e: Experiment) -> bool:
    return e.simulated_llm is not None and e.mining.world_knowledge.enabled


def _leaving(e: Experiment, by: float) -> Experiment:
    sessions = e.simulate.sessions
    sessions = replace(sessions, persistence=1 - (1 - sessions.persistence) * by)
    return replace(e, simulate=replace(e.simulate, sessions=sessions))


def _judged(e: Experiment, by: float) -> Experiment:
    annotation = e.simulate.annotation
    annotation = replace(annotation, pooled=max(round(annotation.pooled * by), 2))
    return replace(e, simulate=replace(e.simulate, annotation=annotation))


def _theta(e: Experiment, by: float) -> Experiment:
    threshold = e.mining.threshold
    # In the demo's world this about halves (or doubles) the irrelevant share of what passes; no rule for other worlds.
    moved = replace(threshold, alpha=round(threshold.alpha + (0.1 if by < 1 else -0.1), 3), precision=None, recall=None)
    return replace(e, mining=replace(e.mining, threshold=moved))


KNOBS = {
    "noise": Knob("noise of clicks and of production's scores", _noise),
    "exploration": Knob("share of the feed that is drawn evenly", _exploration),
    "model": Knob("errors of the simulated language model", _model, _asks_simulated_model),
    "leaving": Knob("chance to leave instead of rewording", _leaving),
    "judged": Knob("documents judged for a query", _judged, lambda e: not isinstance(e.world, JudgedWorldConfig)),
    "theta": Knob("theta's threshold alpha", _theta, steps=("+ 0.1", "- 0.1")),
}


def turned(c: Comparison, name: str, by: float) -> Comparison:
    """The comparison on the world with one knob turned, in a folder beside the world's own."""

    def change(e: Experiment) -> Experiment:
        return replace(KNOBS[name].turn(e, by), workdir=f"{c.dense.workdir}_{name}_x{by:g}")

    return replace(c, title=f"{c.title}, {KNOBS[name].at(by)}", dense=change(c.dense), sparse=None)


def sensitivity(c: Comparison, knobs: Sequence[str]) -> list[tuple[str, float, Comparison]]:
    """The world with each of these knobs at half and at double, but for knobs that this world has not.

    Raises:
      InputError: the world is not simulated, or reads none of them; no method is left in worlds with a knob turned.
    """
    if knobs and all(METHODS[name].sparse for name in c.methods):
        said = f"the sparse model is not trained again with a knob turned: name another method beside {c.methods[0]}"
        raise InputError("--methods", said)
    if knobs and c.dense.world is None:
        raise InputError("--sensitivity", f"{c.title}: a platform's own logs have no knobs")
    turns = [name for name in knobs if KNOBS[name].applies(c.dense)]
    if knobs and not turns:
        raise InputError("--knobs", f"{c.title}: this world reads none of {', '.join(knobs)}")
    return [(name, by, turned(c, name, by)) for name in turns for by in FACTORS]


def _counted(world: Mapping[str, Any], column: str) -> bool:
    """Whether every method has a value in a column; a world may hold nothing that is judged relevant, say."""
    return column in world["headline"] and all(row["metrics"][column]["all"] is not None for row in world["rows"])


def order(world: Mapping[str, Any], column: str, among: Collection[str]) -> list[str]:
    """These titles from the best to the worst method in a column."""
    rows = sorted(world["rows"], key=lambda row: -row["metrics"][column]["all"]["value"])
    return [row["title"] for row in rows if row["title"] in among]


def gone(turned_worlds: Sequence[tuple[str, float, Mapping[str, Any]]]) -> list[str]:
    """A sentence for each world in which methods lost their row: these have no column in the table of all worlds."""
    worlds = [(KNOBS[name].at(by), world["left_out"]) for name, by, world in turned_worlds]
    return [f"{world}: {' '.join(left_out)}" for world, left_out in worlds if left_out]


def sensitivity_table(base: Mapping[str, Any], turned_worlds: Sequence[tuple[str, float, Mapping[str, Any]]]) -> Table:
    """One row a world: the headline's figures of every method, and in which of them the order is not that of `base`."""
    worlds = [("as it is", base)] + [(KNOBS[name].at(by), world) for name, by, world in turned_worlds]
    everywhere = set.intersection(*({row["title"] for row in world["rows"]} for _, world in worlds))
    # The sparse model is not trained again with a knob turned.
    titles = [row["title"] for row in base["rows"] if row["title"] in everywhere]
    columns = [column for column in base["headline"] if all(_counted(world, column) for _, world in worlds)]
    cells = []
    for name, world in worlds:
        of = {row["title"]: row["metrics"] for row in world["rows"]}
        figures = [" / ".join(f"{100 * of[t][c]['all']['value']:.1f}" for c in columns) for t in titles]
        other = [column for column in columns if order(world, column, titles) != order(base, column, titles)]
        cells.append([name, *figures, ", ".join(other) or "none"])
    return Table(f"{' / '.join(columns)} with one knob turned", ["", *titles, "another order of methods in"], cells)
