"""All that a training run takes, made ready and checked before anything in its folder is touched."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import optax
from jax.sharding import Mesh

from crops_jax.training import optim
from crops_jax.runs.abstract import abstract_batch, abstract_state
from crops_jax.config import Experiment
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.text.featurizer import fingerprint as featurizer_fingerprint
from crops_jax.batches.stream import TrainBatches
from crops_jax.models import dual_encoder, hf_import
from crops_jax.training.monitor import require_installed
from crops_jax.records import RecordsReader
from crops_jax.parallel.sharding import RULES, make_mesh, rows_here
from crops_jax.runs.folder import continues
from crops_jax.training.step import build_step
from crops_jax.training.validation import Validation


@dataclass(frozen=True)
class TrainInputs:
    """What one process brings to a run."""

    mesh: Mesh
    batches: TrainBatches  # as far as this process feeds them
    validation: Validation | None  # none where there is no evaluation
    optimiser: optax.GradientTransformation
    step: jax.stages.Lowered  # one update; its state is donated
    made_of: dict[str, str]  # the identity of what is read, by name: a run goes on with the same alone


def train_inputs(experiment: Experiment) -> TrainInputs:
    """Opens the shards and traces the step; neither weights nor optimiser state are made yet.

    Raises:
      InputError: a package, the shards, the held-out groups or the weights to start from are missing or wrong; a mesh
        that does not fit the devices, the model or the batch; micro-batches that do not divide it.
    """
    require_installed(experiment.monitor)
    mesh = make_mesh(experiment.mesh)
    RULES.check(mesh, dual_encoder.abstract(experiment.model))
    shards = experiment.input.shards
    RULES.check_rows(mesh, shards, "input.shards")
    records, featurizer, config = experiment.ready("records"), featurizer_of(experiment), experiment.validation
    batches = TrainBatches(RecordsReader(records), featurizer, experiment.input, rows_here(mesh, shards))
    made_of = {"shards": batches.reader.fingerprint(), "tokenizer": featurizer_fingerprint(featurizer)}
    if experiment.model.init_from is not None and not continues(experiment.arm_folder("train"), experiment, made_of):
        hf_import.checked_entries(hf_import.find_source(experiment.model.init_from), experiment.model.backbone)
    validation = None
    if config.every:
        validation = Validation(RecordsReader(records, "validation"), featurizer, config, experiment.encode, mesh)
    optimiser = optim.build(experiment.optim, dual_encoder.parameter_groups(experiment.model), experiment.train.steps)
    with jax.set_mesh(mesh):
        update = jax.jit(build_step(experiment.loss, optimiser, experiment.gradcache), donate_argnums=0)
        step = update.lower(abstract_state(experiment, optimiser, mesh), abstract_batch(experiment, mesh))
    return TrainInputs(mesh, batches, validation, optimiser, step, made_of)
