"""`python -m crops_jax.build_index --config FILE`: a ScaNN index over the arm's embeddings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from crops_jax.command_line import from_command_line
from crops_jax.config import Experiment
from crops_jax.errors import run_command
from crops_jax.logs.tables import read_table
from crops_jax.retrieval.corpus import ID_TABLE
from crops_jax.retrieval.index import write_index
from crops_jax.runs.trained import read_embeddings


def settings(experiment: Experiment) -> dict:
    """What the index depends on, besides the embeddings."""
    return asdict(experiment.index)


def run(experiment: Experiment) -> Path:
    """Builds the index and returns its folder."""
    ids, vectors = read_embeddings(experiment)
    target, embeddings = experiment.arm_folder("index"), experiment.arm_folder("embeddings")
    names = read_table(embeddings / ID_TABLE) if (embeddings / ID_TABLE).is_file() else None
    write_index(target, ids, vectors, experiment.index, {"embeddings": embeddings}, names)
    return target


def main() -> None:
    """Builds the index of the experiment of the command line."""
    print(f"index: {run(from_command_line('build_index'))}\nnext: python -m crops_jax.evaluate --config FILE")


if __name__ == "__main__":
    run_command(main)
