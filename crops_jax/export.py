"""`python -m crops_jax.export --config FILE`: what the arm's trained model gives to the serving team."""

from __future__ import annotations

from pathlib import Path

import jax

from crops_jax.artifacts import write_folder
from crops_jax.command_line import from_command_line
from crops_jax.config import Experiment
from crops_jax.errors import run_command
from crops_jax.parallel.sharding import make_mesh
from crops_jax.runs.tasks import task_of
from crops_jax.runs.trained import settings, trained_experiment, trained_model


def run(experiment: Experiment) -> Path:
    """Exports the arm's trained model and returns the export folder."""
    trained, train = trained_experiment(experiment), experiment.arm_folder("train")
    mesh, target = make_mesh(experiment.mesh), experiment.arm_folder("export")
    with jax.set_mesh(mesh):
        model = trained_model(trained, mesh)
    with write_folder(target, kind="export", config=settings(trained), inputs={"train": train}) as out:
        task_of(trained).export(model, out)
    return target


def main() -> None:
    """Exports the experiment of the command line."""
    folder = run(from_command_line("export"))
    print(f"exported: {folder}/query_tower and {folder}/document_tower load in sentence-transformers")


if __name__ == "__main__":
    run_command(main)
