"""`python -m crops_jax.export --config FILE`: what the arm's trained model gives to the serving team."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import MANIFEST
from crops_jax.command_line import from_command_line, next_command
from crops_jax.comparison.card import evals_of_seeds, model_facts
from crops_jax.config import Experiment
from crops_jax.errors import run_command
from crops_jax.handover.cards import CARD, model_card
from crops_jax.handover.forms import write_forms
from crops_jax.parallel.sharding import make_mesh
from crops_jax.runs.tasks import task_of
from crops_jax.runs.trained import settings as trained_settings
from crops_jax.runs.trained import trained_experiment, trained_model


def settings(experiment: Experiment) -> dict[str, Any]:
    """What the export depends on, besides the run: the experiment as it was trained, and what the command asks for."""
    return trained_settings(_to_export(experiment))


def inputs(experiment: Experiment) -> dict[str, Path]:
    """The folders that the export is made from: the run, and the figures of its card where it was evaluated."""
    train = experiment.arm_folder("train")
    figures = evals_of_seeds(experiment) if (train / MANIFEST).is_file() else []
    return {"train": train} | {f"eval of {folder.parent.name}": folder for folder in figures}


def run(experiment: Experiment) -> Path:
    """Exports the arm's trained model with its card and returns the export folder."""
    experiment.require_search()
    trained = _to_export(experiment)
    mesh, target = make_mesh(experiment.mesh), experiment.arm_folder("export")
    with jax.set_mesh(mesh):
        model = trained_model(trained, mesh)
    with write_folder(target, kind="export", config=trained_settings(trained), inputs=inputs(experiment)) as out:
        task_of(trained).export(model, out)
        write_forms(out, trained.handover.forms)
        (out / CARD).write_text(model_card(model_facts(experiment, trained)), encoding="utf-8")
    return target


def _to_export(experiment: Experiment) -> Experiment:
    # What a bundle holds beside it is no matter of the export; the title of its card is that of now.
    asked = replace(experiment.handover, evidence=True)
    return replace(trained_experiment(experiment), handover=asked, title=experiment.title)


def main() -> None:
    """Exports the experiment of the command line."""
    folder = run(from_command_line("export"))
    print(f"exported: {folder}/query_tower and {folder}/document_tower load in sentence-transformers")
    print(f"next: {next_command('bundle')}")


if __name__ == "__main__":
    run_command(main)
