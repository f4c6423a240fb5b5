"""One update, `(state, batch) -> (state, metrics)`: both towers, one loss over the global batch, one optimiser step.

Shapes: B queries, N = B*K documents, D embedding. The state is donated; parameters and optimiser state keep the
shardings they were born with, the batch is sharded over the data axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from crops_jax.batch import Batch
from crops_jax.labels import LETTERS
from crops_jax.losses.build import build_loss
from crops_jax.losses.config import LossConfig
from crops_jax.models import dual_encoder
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.training import gradcache
from crops_jax.training.config import ALL_AT_ONCE, GradCacheConfig

Metrics = dict[str, jax.Array]
StepFunction = Callable[["TrainState", Batch], tuple["TrainState", Metrics]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a resumed run needs besides the data position (`batches.stream`)."""

    step: jax.Array  # int32[]
    model: DualEncoder
    opt_state: Any


def init_state(model: DualEncoder, optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    parameters = dual_encoder.trainable(model)
    return TrainState(step=jnp.zeros((), jnp.int32), model=model, opt_state=optimiser.init(parameters))


def build_step(
    loss: LossConfig, optimiser: optax.GradientTransformation, micro_batches: GradCacheConfig = ALL_AT_ONCE
) -> StepFunction:
    """The update as a pure function, ready for `jax.jit(..., donate_argnums=0)`.

    Raises:
      InputError: when it is traced, if `micro_batches` do not divide the batch.
    """
    objective = build_loss(loss)

    def loss_of(parameters: DualEncoder, whole: DualEncoder, batch: Batch):
        model = dual_encoder.with_trainable(whole, parameters)
        e_query = gradcache.encode(model, "query", batch.query, micro_batches)
        e_doc = gradcache.encode(model, "document", batch.docs, micro_batches)
        return objective(e_query, e_doc, model.log_tau, batch)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        parameters = dual_encoder.trainable(state.model)
        (value, aux), gradient = jax.value_and_grad(loss_of, has_aux=True)(parameters, state.model, batch)
        update, opt_state = optimiser.update(gradient, state.opt_state, parameters)
        # tau is clipped after the update, so that its gradient is never cut inside the loss.
        updated = dual_encoder.with_trainable(state.model, optax.apply_updates(parameters, update))
        updated = dual_encoder.clip_tau(updated)
        metrics = {
            "loss": value,
            "tau": dual_encoder.tau(updated),
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(update),
            **aux.metrics(),
            **_cosine_by_source(aux.row_cosine, batch),
        }
        return dataclasses.replace(state, step=state.step + 1, model=updated, opt_state=opt_state), metrics

    return step


def _cosine_by_source(cosine: jax.Array, batch: Batch) -> Metrics:
    """Mean cosine of the documents that a source vouches for; a document of several sources counts for each."""
    means = {}
    for bit, name in enumerate(LETTERS):
        chosen = (batch.valid & ((batch.source >> bit) & 1).astype(bool)).astype(cosine.dtype)
        means[f"cosine_{name}"] = jnp.sum(cosine * chosen) / jnp.maximum(jnp.sum(chosen), 1)
    return means
