"""What a writer's training minimises: it learns to write what was taken, then to prefer it (RWR)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from crops_jax.models.bart import Bart
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.suggestions.batches import SuggestionBatch
from crops_jax.suggestions.likelihood import answers_log_probability
from crops_jax.suggestions.rwr import Preferences, rwr_loss
from crops_jax.training.step import Constants, Metrics


class WholeModel:
    """The half of an objective that says what is trained: all of an encoder-decoder (`training.step.Objective`)."""

    def trainable(self, model: Bart) -> Bart:
        """All of it."""
        return model

    def with_trainable(self, model: Bart, parameters: Bart) -> Bart:
        """The parameters."""
        return parameters

    def settled(self, model: Bart) -> tuple[Bart, Metrics]:
        """As it is."""
        return model, {}


@dataclass(frozen=True)
class WriterObjective(WholeModel):
    """The likelihood of what was taken, or `rwr_loss` with it (`training.step.Objective`)."""

    config: WriterConfig

    def loss(self, model: Bart, batch: SuggestionBatch, constants: Constants) -> tuple[jax.Array, Metrics]:
        """Without `rwr` the mean negative log-likelihood of a token of what was taken; else `rwr_loss`."""
        said = answers_log_probability(model, batch, self.config)
        if self.config.rwr is None:
            loss = -said[:, 0].sum() / jnp.maximum(batch.answers.length[:, 0].sum(), 1).astype(said.dtype)
            return loss, {}
        rows = Preferences(batch.reference[:, 0], batch.reference[:, 1:], batch.weight, batch.answers.length[:, 1:] > 0)
        loss, aux = rwr_loss(said[:, 0], said[:, 1:], rows, self.config.rwr)
        return loss, aux._asdict()
