"""`python -m crops_jax.simulate_logs --config FILE`: a simulated platform's train day and test day, as log tables.

Only for worlds that are simulated (the demo) or judged collections with simulated users (Home Depot). A platform with
logs of its own puts its tables into the `logs` folder (data/README.md) and starts with `crops_jax.mine`.
"""

from __future__ import annotations

from pathlib import Path

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest
from crops_jax.command_line import from_command_line, next_command
from crops_jax.config import Experiment, to_json
from crops_jax.errors import InputError, run_command
from crops_jax.simulate.judged import COLLECTION, JudgedWorldConfig, collection_identity
from crops_jax.simulate.simulator import build_world, simulate


def settings(experiment: Experiment) -> dict:
    """What the logs depend on."""
    return {"world": to_json(experiment.world), "simulate": to_json(experiment.simulate)}


def inputs(experiment: Experiment) -> dict[str, Path]:
    """What the logs are made from: the judged collection, and behaviour aggregates of one's own."""
    made_from: dict[str, Path] = {}
    if isinstance(experiment.world, JudgedWorldConfig):
        made_from["collection"] = Path(experiment.world.collection)
    if experiment.simulate.calibration is not None:
        made_from["calibration"] = Path(experiment.simulate.calibration)
    return made_from


def run(experiment: Experiment) -> Path:
    """Simulates the days and returns the logs folder."""
    target = experiment.folder("logs")
    if experiment.world is None:
        raise InputError("world", "is none: the logs are a platform's own, and nothing is simulated over them")
    if target.exists() and "world" not in (read_manifest(target, "logs")["config"] or {}):
        raise InputError(str(target), "holds logs that were not simulated; give another --workdir")
    world = build_world(experiment.world)
    with write_folder(target, kind="logs", config=settings(experiment), inputs=inputs(experiment)) as out:
        out.counts.update(simulate(world, experiment.simulate, out))
        if isinstance(experiment.world, JudgedWorldConfig):
            out.counts[COLLECTION] = collection_identity(experiment.world)
    return target


def main() -> None:
    """Simulates the logs of the experiment of the command line."""
    print(f"simulated logs: {run(from_command_line('simulate_logs'))}\nnext: {next_command('mine')}")


if __name__ == "__main__":
    run_command(main)
