"""The optimiser: Adam with decoupled weight decay, a schedule, clipping, and a group of its own for tau.

The paper gives Adam, learning rate 2e-5 and weight decay 1e-4 (Implementation Details); it does not say whether the
decay is coupled, nor the schedule. Both are fields.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from crops_jax.training.config import OptimConfig


def learning_rate_schedule(config: OptimConfig, total_steps: int, peak: float | None = None) -> optax.Schedule:
    """step -> learning rate, for a run of `total_steps` updates.

    Raises:
      InputError: as `OptimConfig.schedule_length`.
    """
    peak = config.learning_rate if peak is None else peak
    after = config.schedule_length(total_steps) - config.warmup_steps
    match config.schedule:
        case "constant":
            body = optax.constant_schedule(peak)
        case "linear":
            body = optax.linear_schedule(peak, 0.0, after)
        case "cosine":
            body = optax.cosine_decay_schedule(peak, after)
    if config.warmup_steps == 0:
        return body
    return optax.join_schedules([optax.linear_schedule(0.0, peak, config.warmup_steps), body], [config.warmup_steps])


def build(config: OptimConfig, groups: Any, total_steps: int) -> optax.GradientTransformation:
    """The gradient transformation for a dual encoder's parameters.

    Args:
      groups: a tree like the model with each leaf's group: weights | no_decay | tables | tau | frozen
        (`dual_encoder.parameter_groups`). Only weights are decayed. The transformation is for the model without its
        frozen leaves (`dual_encoder.trainable`).

    Raises:
      InputError: the schedule does not fit a run of `total_steps` updates (`OptimConfig.schedule_length`).
    """
    rates = {
        "weights": config.learning_rate,
        "no_decay": config.learning_rate,
        "tables": config.table_learning_rate,
        "tau": config.tau_learning_rate,
    }
    adam = {
        name: _adam(config, name == "weights", learning_rate_schedule(config, total_steps, rate))
        for name, rate in rates.items()
    }
    trained = jax.tree.map(lambda group: None if group == "frozen" else group, groups)
    update = optax.multi_transform(adam, trained)
    return update if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _adam(config: OptimConfig, decayed: bool, schedule: optax.Schedule) -> optax.GradientTransformation:
    scale = optax.scale_by_adam(config.b1, config.b2, config.eps)
    rate = optax.scale_by_learning_rate(schedule)
    if not decayed:
        return optax.chain(scale, rate)
    l2 = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(scale, l2, rate) if config.decay == "decoupled" else optax.chain(l2, scale, rate)
