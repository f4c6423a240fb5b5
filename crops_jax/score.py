"""`python -m crops_jax.score --config FILE`: scores the pairs that `mine --no-theta` left, where the accelerators are.

Reads the pairs and texts in `mined.work` and `testsets.work` and writes their scores there, part by part; nothing of
the logs is read. Each unique text is encoded once into `theta.cache`. Started as one of several processes that share
the folder, it joins the others: each encodes its share of the texts, and then scores its share of the parts, with all
of its devices. A killed run goes on: what was encoded and scored is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax

from crops_jax.artifacts.folders import made_from
from crops_jax.artifacts.manifest import same_config
from crops_jax.command_line import from_command_line
from crops_jax.config import SETS_OF_DAY, Experiment, theta_json
from crops_jax.errors import InputError, run_command
from crops_jax.mining import scoring
from crops_jax.mining.work import theta_cache
from crops_jax.models import theta
from crops_jax.models.theta import Pairs
from crops_jax.parallel import processes
from crops_jax.progress import progress, stage
from crops_jax.report.tables import several


def run(experiment: Experiment) -> dict[str, int]:
    """Scores all that waits, in every process of the run, and returns the number of parts by folder and stage.

    Raises:
      InputError: nothing was asked for, it was asked of another theta, or theta gives no usable scores.
    """
    waiting = processes.first(partial(_waiting, experiment))
    model = theta.load(experiment.theta, theta_cache(Path(experiment.workdir)))
    for folder, name in waiting:
        root = Path(folder)
        left = [Path(path) for path in processes.first(partial(_left, root, name))]
        share = jax.process_index(), jax.process_count()
        if share[1] > 1:
            model.prepare(_texts(root, name, left), scoring.of_documents(root, name), share)
            processes.wait_for_all(f"{root.name}/{name}: texts")
            model.refresh()
        own = left[share[0] :: share[1]]
        parts, what = scoring.score_parts(root, name, own, model), f"{root.name}/{name}: parts"
        for _ in progress(parts, what, total=len(own), unit="part", shown=processes.is_first()):
            pass
        processes.wait_for_all(f"{root.name}/{name}: parts")
    return {f"{Path(root).name}/{name}": len(list((Path(root) / name).glob("part-*"))) for root, name in waiting}


def _waiting(experiment: Experiment) -> list[tuple[str, str]]:
    """(work folder, stage) of all that theta was asked for."""
    roots = [experiment.folder(kind).with_name(f"{kind}.work") for kind in ("mined", *SETS_OF_DAY.values())]
    found = [(root, name) for root in roots for name in scoring.asked(root)]
    if not found:
        mend = "`python -m crops_jax.mine --config FILE --no-theta` leaves pairs to score"
        raise InputError(experiment.workdir, f"no pairs wait for theta; {mend}")
    wanted, roots = theta_json(experiment.theta), {root for root, _ in found}
    asked = {str(root): {n: v for n, v in made_from(root)["config"].items() if n in wanted} for root in roots}
    if others := sorted(root for root, config in asked.items() if not same_config(config, wanted)):
        said = "theta was asked with other settings, or its files have changed since; mine and score with the same"
        raise InputError(", ".join(others), said)
    return [(str(root), name) for root, name in found]


def _left(root: Path, name: str) -> list[str]:
    return [str(path) for path in scoring.unscored(root, name)]


def _texts(root: Path, name: str, parts: list[Path]) -> Iterator[Pairs]:
    for path in parts:
        for batch in scoring.batches(root, name, path):
            yield batch.first, batch.second


def main() -> None:
    """Scores what waits for the experiment of the command line."""
    processes.initialize()
    with processes.noticing_lost_peers():
        experiment = processes.together(partial(from_command_line, "score"))
        with stage("scoring with theta"):
            done = run(experiment)
    if processes.is_first():
        told = ", ".join(f"{name} ({several(parts, 'part')})" for name, parts in done.items())
        print(f"scored: {told}\nnext: the command that left them, python -m crops_jax.mine ... --no-theta, again")


if __name__ == "__main__":
    run_command(main, processes.leave)
