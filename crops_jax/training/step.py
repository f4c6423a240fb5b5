"""One update, `(state, batch, constants) -> (state, metrics)`: one loss over the global batch, one optimiser step.

What is minimised, and over which leaves of the model, is the objective's to say. The state is donated; parameters and
optimiser state keep the shardings they were born with, the batch is sharded over the data axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

Model = Any
Constants = Any  # a pytree that a round hands to its objective; None where it has none
Metrics = dict[str, jax.Array]
StepFunction = Callable[["TrainState", Any, Constants], tuple["TrainState", Metrics]]


class Objective(Protocol):
    """What an update minimises."""

    def loss(self, model: Model, batch: Any, constants: Constants) -> tuple[jax.Array, Metrics]:
        """The scalar of a batch and what else there is to tell."""

    def trainable(self, model: Model) -> Model:
        """What has a gradient and optimiser state: the model with None in the place of frozen leaves."""

    def with_trainable(self, model: Model, parameters: Model) -> Model:
        """The model with these trainable leaves and its own frozen ones."""

    def settled(self, model: Model) -> tuple[Model, Metrics]:
        """The model after an update, put back where it must stay, and what there is to tell about it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a resumed run needs besides the data position (`batches.stream`)."""

    step: jax.Array  # int32[]
    model: Model
    opt_state: Any


def init_state(model: Model, objective: Objective, optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), model, optimiser.init(objective.trainable(model)))


def build_step(objective: Objective, optimiser: optax.GradientTransformation) -> StepFunction:
    """The update as a pure function, ready for `jax.jit(..., donate_argnums=0)`."""

    def loss_of(parameters: Model, whole: Model, batch: Any, constants: Constants) -> tuple[jax.Array, Metrics]:
        return objective.loss(objective.with_trainable(whole, parameters), batch, constants)

    def step(state: TrainState, batch: Any, constants: Constants = None) -> tuple[TrainState, Metrics]:
        parameters = objective.trainable(state.model)
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (value, told), gradient = gradient_of(parameters, state.model, batch, constants)
        update, opt_state = optimiser.update(gradient, state.opt_state, parameters)
        updated = objective.with_trainable(state.model, optax.apply_updates(parameters, update))
        updated, told_after = objective.settled(updated)
        metrics = {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(update),
            **told,
            **told_after,
        }
        return dataclasses.replace(state, step=state.step + 1, model=updated, opt_state=opt_state), metrics

    return step
