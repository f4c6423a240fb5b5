"""The optimiser: Adam with decoupled weight decay, a schedule, clipping, and a group of its own for tau.

The paper gives Adam, learning rate 2e-5 and weight decay 1e-4 (Implementation Details); it does not say whether the
decay is coupled, nor the schedule. Both are fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from crops_jax.errors import require_positive


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated."""

    learning_rate: float = 2e-5
    """Peak learning rate."""
    tau_learning_rate: float | None = None
    """Peak learning rate of log tau; none means `learning_rate`."""
    table_learning_rate: float | None = None
    """Peak learning rate of the sparse model's embedding tables; none means `learning_rate`."""
    weight_decay: float = 1e-4
    """Decay per unit learning rate (decoupled) or as an L2 term in the gradient (coupled); never on tau, biases, norms,
    nor the sparse model's tables, whose unread rows must stay where they are."""
    decay: Literal["decoupled", "coupled"] = "decoupled"
    """AdamW, or Adam on the gradient of loss + L2."""
    b1: float = 0.9
    """Adam's first-moment decay."""
    b2: float = 0.999
    """Adam's second-moment decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; none switches clipping off."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up; linear and cosine end at zero at the last step."""

    def __post_init__(self):
        require_positive("optim", self, ("learning_rate", "eps"))


def learning_rate_schedule(config: OptimConfig, total_steps: int, peak: float | None = None) -> optax.Schedule:
    """step -> learning rate, for `total_steps` updates."""
    peak = config.learning_rate if peak is None else peak
    after = max(1, total_steps - config.warmup_steps)
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
        (`dual_encoder.groups`). Only weights are decayed. The transformation is for the model without its frozen
        leaves (`dual_encoder.trainable`).
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
