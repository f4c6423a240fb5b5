"""The one place that turns an experiment into its task."""

from __future__ import annotations

from crops_jax.baselines.config import AnceConfig
from crops_jax.config import Experiment
from crops_jax.runs.ance import AnceTask
from crops_jax.runs.dual_encoder import DualEncoderTask
from crops_jax.runs.task import Task


def task_of(experiment: Experiment) -> Task:
    """What this experiment trains."""
    match experiment.baseline:
        case None:
            return DualEncoderTask(experiment)
        case AnceConfig() as config:
            return AnceTask(experiment, config)
