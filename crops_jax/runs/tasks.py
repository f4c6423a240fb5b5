"""The one place that turns an experiment into its task."""

from __future__ import annotations

from crops_jax.baselines.config import AdoreConfig, NegativesConfig
from crops_jax.config import Experiment
from crops_jax.generative.config import GeneratorConfig
from crops_jax.runs.adore import AdoreTask
from crops_jax.runs.dual_encoder import DualEncoderTask
from crops_jax.runs.generator import GeneratorTask
from crops_jax.runs.mined_negatives import MinedNegativesTask
from crops_jax.runs.suggestion_writer import WriterTask
from crops_jax.runs.task import Task
from crops_jax.suggestions.arms import WriterConfig


def task_of(experiment: Experiment) -> Task:
    """What this experiment trains."""
    match experiment.suggest:
        case WriterConfig() as config:
            return WriterTask(experiment, config)
        case GeneratorConfig() as config:
            return GeneratorTask(experiment, config)
    match experiment.negatives:
        case None:
            return DualEncoderTask(experiment)
        case NegativesConfig() as config:
            return MinedNegativesTask(experiment, config)
        case AdoreConfig() as config:
            return AdoreTask(experiment, config)
