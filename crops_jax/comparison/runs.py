"""The runs of a comparison: which there are, which are finished, and whether the others may be gone on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from crops_jax.artifacts.manifest import MANIFEST, read_manifest
from crops_jax.baselines.config import NegativesConfig
from crops_jax.comparison.config import Comparison
from crops_jax.comparison.methods import METHODS, arm
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.runs.folder import RUN, check_folder, read_run, require_same_world, settings
from crops_jax.simulate.judged import JudgedWorldConfig


def methods_of(c: Comparison) -> list[str]:
    """The methods of a comparison that its models allow, in the order of the page."""
    return [name for name in METHODS if name in c.methods and not (METHODS[name].sparse and c.sparse is None)]


def base_of(c: Comparison, name: str) -> Experiment:
    """What the arms of a method are changes of."""
    base = c.sparse if METHODS[name].sparse else c.dense
    assert base is not None
    return base


def runs_of(c: Comparison) -> list[tuple[str, int, float]]:
    """(method, seed, factor) of every run of a comparison, those that others start from among them."""
    return [(name, seed, factor) for name in _trained_methods(c) for seed, factor in _arms(c)]


def _trained_methods(c: Comparison) -> list[str]:
    """The methods of a comparison and those that they start from."""
    return [*dict.fromkeys(part for name in methods_of(c) for part in _started_from(name))]


def _started_from(name: str) -> list[str]:
    """The methods whose runs a method starts from, and itself last."""
    start = METHODS[name].start
    return [*(_started_from(start) if start else []), name]


def _arms(c: Comparison) -> set[tuple[int, float]]:
    """(seed, factor) of the runs of a method, at most: which factor the other seeds take is not known before."""
    return {(c.seeds[0], factor) for factor in c.learning_rates} | {(seed, c.learning_rates[0]) for seed in c.seeds}


def finished(c: Comparison, name: str, seed: int, factors: Sequence[float]) -> Experiment | None:
    """A finished run of the method with the settings that it would have now, at one of the factors."""
    runs = (arm(name, base_of(c, name), seed, factor) for factor in factors)
    return next((e for e in runs if _is_finished(name, e)), None)


def _is_finished(name: str, e: Experiment) -> bool:
    try:
        found = read_manifest(e.arm_folder("train"), "train")["config"]
    except InputError:
        return False
    wanted = json.loads(json.dumps(settings(e)))
    if METHODS[name].equal_data:  # its steps are those that its shards need
        found, wanted = ({**of, "train": None} for of in (found, wanted))
    return found == wanted


def require_collections(comparisons: Sequence[Comparison]) -> None:
    """Raises InputError where a judged collection is not there whose logs are to be simulated: before other worlds."""
    judged = [c for c in comparisons if isinstance(c.dense.world, JudgedWorldConfig)]
    places = {c.title: Path(c.dense.world.collection) for c in judged
              if not (c.dense.folder("logs") / MANIFEST).is_file()}  # fmt: skip
    mend = "a recipe in data/ makes it, or leave this config out"
    gone = [f"{title}: there is no folder {place}; {mend}" for title, place in places.items() if not place.is_dir()]
    if gone:
        raise InputError("--configs", gone)


def require_own_runs(c: Comparison) -> None:
    """Raises InputError where a run is there that training would refuse to go on with: before other work, not after it.

    What its groups are made of is not asked: the shards may not be there yet.
    """
    runs = [
        (name, arm(name, base_of(c, name), seed, factor))
        for name, seed, factor in product(_trained_methods(c), c.seeds, c.learning_rates)
    ]
    require_same_world(e for _, e in runs)
    mined = {name: e for name, e in runs if isinstance(e.negatives, NegativesConfig)}
    few = {name: e.negatives.rounds for name, e in mined.items() if e.negatives.rounds > e.train.steps}
    if few:
        mend = "leave it out with what starts from it, or give more train.steps"
        raise InputError("--methods", [f"{name}: finds its negatives in {rounds} rounds, and has fewer steps; {mend}"
                                       for name, rounds in few.items()])  # fmt: skip
    for name, e in runs:
        folder = e.arm_folder("train")
        if (folder / RUN).is_file() and not _is_finished(name, e):
            if METHODS[name].equal_data:  # its steps are those that its shards need
                e = replace(e, train=read_run(folder)[0].train)
            check_folder(folder, e, {})
