"""All that a training run takes, made ready and checked before anything in its folder is touched."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from crops_jax.config import Experiment
from crops_jax.parallel.sharding import make_mesh
from crops_jax.runs.folder import check_folder, continues, start_identity
from crops_jax.runs.task import Task
from crops_jax.runs.tasks import task_of
from crops_jax.training.monitor import require_installed
from crops_jax.training.validation import Validation


@dataclass(frozen=True)
class TrainInputs:
    """What one process brings to a run."""

    task: Task
    mesh: Mesh
    validation: Validation | None  # none where there is no evaluation
    step: jax.stages.Lowered  # one update; its state is donated
    made_of: dict[str, str]  # the identity of what is read, by name: a run goes on with the same alone


def train_inputs(experiment: Experiment) -> TrainInputs:
    """Opens the shards and traces the step; neither weights nor optimiser state are made yet.

    Raises:
      InputError: the train folder holds another run; a package, the shards, the held-out groups or the weights to start
        from are missing or wrong; a mesh that does not fit the devices, the model or the batch; micro-batches that do
        not divide it.
    """
    require_installed(experiment.monitor)
    task, mesh = task_of(experiment), make_mesh(experiment.mesh)
    task.check(mesh)
    made_of = task.identity() | start_identity(experiment)
    folder = experiment.arm_folder("train")
    check_folder(folder, experiment, made_of)
    if not continues(folder, experiment, made_of):
        task.check_start()
    validation = task.validation(mesh)
    with jax.set_mesh(mesh):
        step = task.traced_step(mesh).lower()
    return TrainInputs(task, mesh, validation, step, made_of)
