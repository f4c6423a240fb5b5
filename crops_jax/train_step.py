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

from crops_jax import losses
from crops_jax.batch import Batch
from crops_jax.labels import SOURCES
from crops_jax.losses import LossConfig
from crops_jax.models import dual_encoder
from crops_jax.models.dual_encoder import DualEncoder

Metrics = dict[str, jax.Array]
StepFunction = Callable[["TrainState", Batch], tuple["TrainState", Metrics]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a resumed run needs besides the data position, which is `step`."""

    step: jax.Array  # int32[]
    model: DualEncoder
    opt_state: Any


def init_state(model: DualEncoder, optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(step=jnp.zeros((), jnp.int32), model=model, opt_state=optimiser.init(model))


def build_step(loss: LossConfig, optimiser: optax.GradientTransformation) -> StepFunction:
    """The update as a pure function, ready for `jax.jit(..., donate_argnums=0)`."""
    objective = losses.build(loss)

    def loss_of(parameters: DualEncoder, batch: Batch):
        e_query = dual_encoder.encode(parameters, "query", batch.query)
        e_doc = dual_encoder.encode(parameters, "document", batch.docs)
        return objective(e_query, e_doc, parameters.log_tau, batch)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (value, aux), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.model, batch)
        update, opt_state = optimiser.update(gradient, state.opt_state, state.model)
        # tau is clipped after the update, so that its gradient is never cut inside the loss (10.7, case 9).
        updated = dual_encoder.clip_tau(optax.apply_updates(state.model, update))
        metrics = {
            "loss": value,
            "tau": dual_encoder.tau(updated),
            "gradient_norm": optax.tree.norm(gradient),
            **aux.metrics(),
            **_cosine_by_source(aux.row_cosine, batch),
        }
        return dataclasses.replace(state, step=state.step + 1, model=updated, opt_state=opt_state), metrics

    return step


def _cosine_by_source(cosine: jax.Array, batch: Batch) -> Metrics:
    """Mean cosine of the documents that a source vouches for; a document of several sources counts for each."""
    means = {}
    for bit, name in enumerate(SOURCES):
        chosen = (batch.valid & ((batch.source >> bit) & 1).astype(bool)).astype(cosine.dtype)
        means[f"cosine_{name}"] = jnp.sum(cosine * chosen) / jnp.maximum(jnp.sum(chosen), 1)
    return means
