"""From an experiment to its trained model, and to the tokeniser or hasher that makes the model's input."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from crops_jax.artifacts.manifest import require_made_from, verify
from crops_jax.config import Experiment, differences, to_json
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.parallel.sharding import RULES, abstract_on
from crops_jax.retrieval.vectors import Embeddings, open_embeddings
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.folder import FREE_FIELDS, PLACES_OF, read_run
from crops_jax.text.featurizer import fingerprint
from crops_jax.training.checkpoint import Checkpoints

MADE_BY_ENCODE = "python -m crops_jax.encode --config FILE"


def trained_experiment(experiment: Experiment) -> Experiment:
    """The experiment as its training run resolved it; model, text and loss are never described twice.

    Raises:
      InputError: there is no finished training run, or the command line asks for another model than was trained.
    """
    folder = experiment.ready("train")
    trained, made_of = read_run(folder)
    problems = differences(
        trained, experiment, ("model", "text", "vocabulary", "vocabulary_of"), (*FREE_FIELDS, *PLACES_OF.values())
    )
    # What was trained is read. Where it and its tokeniser lie, what it started from and how this machine computes it
    # may have changed.
    text = dataclasses.replace(trained.text, tokenizer=experiment.text.tokenizer)
    trained = dataclasses.replace(
        trained, workdir=experiment.workdir, name=experiment.name, model=experiment.model, text=text
    )
    if not problems and made_of["tokenizer"] != fingerprint(featurizer_of(trained)):
        problems.append("the tokenizer is not the one it was trained with; write it, the shards and the model again")
    if problems:
        raise InputError(f"{folder} was trained with another config", problems)
    return trained


def settings(trained: Experiment) -> dict:
    """The experiment as what is made from it names it: without its place, so that a folder may be moved."""
    whole = to_json(trained)
    return {name: whole[name] for name in whole if name not in ("workdir", "name")}


def trained_model(experiment: Experiment, mesh: Mesh) -> DualEncoder:
    """The parameters of the arm's training run on `mesh`, of the good checkpoint that `validation.select` names."""
    abstract = abstract_on(dual_encoder.abstract(experiment.model), mesh, RULES)
    with Checkpoints(experiment.arm_folder("train"), read_only=True) as checkpoints:
        return checkpoints.restore(abstract, part="model", best=experiment.validation.select != "last")[1]


def read_embeddings(experiment: Experiment) -> Embeddings:
    """The arm's embeddings, their bytes checked."""
    folder = experiment.ready("embeddings")
    require_made_from(folder, "train", experiment.ready("train"), MADE_BY_ENCODE)
    verify(folder)
    return open_embeddings(folder)
