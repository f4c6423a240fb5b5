"""The ids that a generator writes, as a folder of its arm: made of the vectors of the encoder that it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from crops_jax.artifacts import require_made_from
from crops_jax.config import Experiment, to_json
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.generative.item_ids import ItemIds, read_item_ids, write_item_ids
from crops_jax.runs.trained import read_embeddings

_MADE_BY = "python -m crops_jax.pipeline --configs FILE..."


def generator_of(experiment: Experiment) -> GeneratorConfig:
    """The config of an arm that writes item ids.

    Raises:
      InputError: it does not.
    """
    if not isinstance(experiment.suggest, GeneratorConfig):
        raise InputError(f"arm {experiment.name!r}", "writes no item ids; suggest is to be a GeneratorConfig")
    return experiment.suggest


def settings(experiment: Experiment) -> dict[str, Any]:
    """What the ids depend on, besides the vectors."""
    return {"ids": to_json(generator_of(experiment).ids)}


def inputs(experiment: Experiment) -> dict[str, Path]:
    """The vectors that they are made from."""
    return {"embeddings": experiment.arm("embeddings", generator_of(experiment).encoder)}


def run(experiment: Experiment) -> Path:
    """Codes the items and returns the folder.

    Raises:
      InputError: the encoder's vectors are missing or damaged, or of another model than its arm has now.
    """
    config, target = generator_of(experiment), experiment.arm_folder("item_ids")
    embeddings = read_embeddings(replace(experiment, name=config.encoder)).read()
    write_item_ids(
        target, embeddings.ids, embeddings.vectors, config.ids, settings(experiment), inputs(experiment)
    )  # fmt: skip
    return target


def ready_item_ids(experiment: Experiment) -> ItemIds:
    """The ids of an arm, its bytes checked.

    Raises:
      InputError: they are missing or damaged, or were made of other vectors than the encoder has now.
    """
    folder = experiment.ready("item_ids")
    require_made_from(folder, "embeddings", inputs(experiment)["embeddings"], _MADE_BY)
    return read_item_ids(folder)
