"""What a generator's training minimises: it learns to write the ids of a query's positives, by their grades."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from crops_jax.generative.config import GeneratorConfig
from crops_jax.generative.examples import GradedBatch
from crops_jax.models.bart import Bart
from crops_jax.suggestions.likelihood import answers_log_probability
from crops_jax.training.step import Constants, Metrics
from crops_jax.training.writer import WholeModel


@dataclass(frozen=True)
class GradedLikelihood(WholeModel):
    """Cross-entropy of a query's graded positives and the generator's distribution over ids."""

    config: GeneratorConfig

    def loss(self, model: Bart, batch: GradedBatch, constants: Constants) -> tuple[jax.Array, Metrics]:
        """The mean over rows with a positive of - sum_a share_a log pi(id_a | text): nats an id."""
        said = answers_log_probability(model, batch, self.config)
        share = jnp.asarray(batch.share)
        rows = jnp.maximum((share > 0).any(1).sum(), 1).astype(said.dtype)
        return -(share * said).sum() / rows, {}
