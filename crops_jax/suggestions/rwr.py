"""Reward-weighted ranking (RWR): a policy learns to prefer what users took, against the model that it started from.

Shapes: B rows, L losers of a row (padding where a row has fewer), T tokens, V vocabulary. The implicit reward of an
answer is beta * (log pi(y|x) - log pi_ref(y|x)), of log-probabilities summed over tokens. Both losses have three forms
(`RWRConfig.form`), with w the weight of a pair, d the margin, r+ and r- the rewards of winner and loser:

  margin      pair  softplus(w (r- - r+ + d))              list  log(1 + sum exp(w (r- - r+ + d)))
  hinge_plus  pair  softplus(w max(0, r- - r+ + d))        list  log(1 + sum exp(w max(0, r- - r+ + d)))
  printed     pair  softplus(-w max(0, r+ - r- - d))       list  log(1 + sum exp(w max(0, r- - r+ - d)))

In print, both are flat where policy and reference agree, so training would never start from there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from crops_jax.losses.lse import masked_lse
from crops_jax.suggestions.config import RWRConfig


class Preferences(NamedTuple):
    """Rows of one winner and its losers: what the loss needs besides the policy."""

    reference_winner: Array  # float[B], log pi_ref of the winner
    reference_losers: Array  # float[B, L]
    weight: Array  # float[B, L]: 1 / (difference of the rewards), within its guards
    present: Array  # bool[B, L]; a row without losers counts in the likelihood alone


class RWRAux(NamedTuple):
    """Figures beside the loss, over the rows that have losers (`sft` over all)."""

    preference: Array  # the loss without the likelihood
    sft: Array  # mean negative log-likelihood of the winners
    accuracy: Array  # share of pairs whose winner has the higher implicit reward
    gap: Array  # mean implicit reward of the winner above the loser's


def rwr_loss(winner: Array, losers: Array, rows: Preferences, config: RWRConfig) -> tuple[Array, RWRAux]:
    """The mean over rows with losers of the preference loss + sft_weight * the mean of -log pi(winner) over all rows.

    Args:
      winner: float[B], log pi of the winner under the policy (`sequence_log_probability`).
      losers: float[B, L], of the losers.
    """
    above = config.beta * (winner - rows.reference_winner)[:, None]
    below = config.beta * (losers - rows.reference_losers)
    # Padding may hold anything; what it holds reaches neither the value nor the gradient.
    lead = jnp.where(rows.present, above - below, 0)
    weight = jnp.where(rows.present, rows.weight, 0)
    each = (
        _of_list(lead, weight, rows.present, config) if config.rows == "list" else _of_pairs(lead, weight, rows, config)
    )
    some = rows.present.any(1)
    pairs = jnp.maximum(rows.present.sum(), 1)
    preference = jnp.where(some, each, 0).sum() / jnp.maximum(some.sum(), 1)
    sft = -winner.mean()
    won = jnp.where(rows.present, lead > 0, False).sum() / pairs
    aux = RWRAux(preference, sft, won.astype(winner.dtype), lead.sum() / pairs)
    return preference + config.sft_weight * sft, aux


def _of_pairs(lead: Array, weight: Array, rows: Preferences, config: RWRConfig) -> Array:
    """float[B]: the mean over a row's losers."""
    if config.form == "printed":
        exponent = -weight * jnp.maximum(lead - config.margin, 0)
    else:
        exponent = _behind(lead, weight, config)
    each = jnp.where(rows.present, jax.nn.softplus(exponent), 0)
    return each.sum(1) / jnp.maximum(rows.present.sum(1), 1)


def _of_list(lead: Array, weight: Array, present: Array, config: RWRConfig) -> Array:
    """float[B]: a winner against all its losers at once."""
    if config.form == "printed":
        exponent = weight * jnp.maximum(-lead - config.margin, 0)
    else:
        exponent = _behind(lead, weight, config)
    return jax.nn.softplus(masked_lse(exponent, present))


def _behind(lead: Array, weight: Array, config: RWRConfig) -> Array:
    """float[B, L]: how far the winner is from leading by the margin."""
    missing = config.margin - lead
    return weight * (jnp.maximum(missing, 0) if config.form == "hinge_plus" else missing)


def sequence_log_probability(logits: Array, targets: Array, present: Array) -> Array:
    """float32[...]: log pi(y|x), summed over the tokens that are present.

    Args:
      logits: float[..., T, V], at each place those of the token that follows.
      targets: int32[..., T], that token.
      present: bool[..., T]; padding does not count, whatever its logits.
    """
    logits = jnp.where(present[..., None], logits.astype(jnp.float32), 0)
    of_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.where(present, of_target - jax.nn.logsumexp(logits, axis=-1), 0).sum(-1)
