"""`python -m crops_jax.simulate_logs --config FILE`: a simulated platform's train day and test day, as log tables.

Only for worlds that are simulated (the demo) or judged collections with simulated users (Home Depot). A platform with
logs of its own puts its tables into the `logs` folder (data/README.md) and starts with `crops_jax.mine`.
"""

from __future__ import annotations

from pathlib import Path

from crops_jax.artifacts import write_folder
from crops_jax.config import Experiment, from_command_line, to_json
from crops_jax.errors import run_command
from crops_jax.simulate import build_world, simulate


def settings(experiment: Experiment) -> dict:
    """What the logs depend on."""
    return {"world": to_json(experiment.world), "simulate": to_json(experiment.simulate)}


def run(experiment: Experiment) -> Path:
    """Simulates both days and returns the logs folder."""
    target = experiment.folder("logs")
    world = build_world(experiment.world)
    with write_folder(target, kind="logs", config=settings(experiment)) as out:
        out.counts.update(simulate(world, experiment.simulate, out))
    return target


def main() -> None:
    """Simulates the logs of the experiment of the command line."""
    print(f"simulated logs: {run(from_command_line('simulate_logs'))}\nnext: python -m crops_jax.mine --config FILE")


if __name__ == "__main__":
    run_command(main)
