"""How long the runs of a benchmark that are left will take, by what those that are there took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from crops_jax.comparison.results import trained
from crops_jax.config import Experiment

_TOOK = ".took.jsonl"  # in a run's folder, a line a stage: hidden, for it is no artefact and two runs differ in it
_WHOLE = 1.5  # of a run whose training was not timed whole: how much longer it takes than its steps


def note(e: Experiment, stage: str, seconds: float) -> None:
    """Keeps what a stage of a run took, beside the run."""
    with _file(e).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": stage, "seconds": round(seconds, 1)}) + "\n")


def took(e: Experiment) -> float:
    """Seconds of all stages of a finished run: negatives that are mined between rounds, encoding and evaluating too."""
    try:
        lines = map(json.loads, _file(e).read_text(encoding="utf-8").splitlines())
        stages = {line["stage"]: line["seconds"] for line in lines}  # the last time of each
    except (FileNotFoundError, ValueError):  # nobody timed it, or a kill cut a line
        stages = {}
    steps = trained([[e]])["train_seconds"]
    # Of a training that was killed and went on only the last stretch is timed.
    return sum(stages.values()) if stages.get("train", 0) >= steps else _WHOLE * steps


def forecast(left: Mapping[str, int], known: Mapping[str, Sequence[float]]) -> str:
    """How long it will take, in words; nothing where no run is left.

    Args:
      left: method -> how many of its runs are left.
      known: method -> seconds of each of its runs that are there. One without is taken for a run like the others.
    """
    every = [seconds for of_method in known.values() for seconds in of_method]
    if not sum(left.values()):
        return ""
    if not every:
        return "; how long it takes is known after the first: ask again with --plan"
    seconds = sum(runs * fmean(known.get(name, every)) for name, runs in left.items())
    return f"; about {_told(seconds)} ({_told(fmean(every))} a run so far)"


def _told(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _file(e: Experiment) -> Path:
    return Path(e.workdir) / e.name / _TOOK
