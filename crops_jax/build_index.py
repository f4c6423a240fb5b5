"""`python -m crops_jax.build_index --config FILE`: a ScaNN index over the arm's embeddings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from crops_jax.command_line import from_command_line, next_command
from crops_jax.config import Experiment
from crops_jax.errors import run_command
from crops_jax.retrieval.blocks import write_index_of
from crops_jax.runs.trained import read_embeddings


def settings(experiment: Experiment) -> dict:
    """What the index depends on, besides the embeddings."""
    return asdict(experiment.index)


def run(experiment: Experiment) -> Path:
    """Builds the index and returns its folder."""
    target, made_from = experiment.arm_folder("index"), {"embeddings": experiment.arm_folder("embeddings")}
    write_index_of(target, read_embeddings(experiment), experiment.index, made_from)
    return target


def main() -> None:
    """Builds the index of the experiment of the command line."""
    print(f"index: {run(from_command_line('build_index'))}\nnext: {next_command('evaluate')}")


if __name__ == "__main__":
    run_command(main)
