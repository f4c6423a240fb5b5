"""Log-sum-exp over the entries that a mask keeps, at once or a tile at a time. Masked entries never cause a NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

NEG = -1e30  # "masked": finite, because logaddexp(-inf, -inf) has a NaN gradient

Sum = tuple[Array, Array]  # (top, total): a running sum of exp(x) is total * exp(top)


@jax.custom_jvp
def masked_lse(x: Array, mask: Array) -> Array:
    """log sum exp over the last axis of the entries where `mask` holds; `NEG` where it holds nowhere."""
    return lse_of(add_to_sum(no_sum(x[..., 0]), x, mask))


@masked_lse.defjvp
def _masked_lse_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Its derivative is the softmax: stated, so that one [B, N] array waits for the backward pass and not four."""
    x, mask = primals
    value = masked_lse(x, mask)
    return value, jnp.sum(softmax(x, mask, value) * jnp.where(mask, tangents[0], 0), axis=-1)


def softmax(x: Array, mask: Array, lse: Array) -> Array:
    """exp(x - lse) where `mask` holds, else 0."""
    # On both sides of exp: a masked infinity would make the gradient of the outer `where` NaN.
    return jnp.where(mask, jnp.exp(jnp.where(mask, x - lse[..., None], 0)), 0)


def no_sum(like: Array) -> Sum:
    """The sum of nothing, one for every entry of `like`."""
    return jnp.full_like(like, NEG), jnp.zeros_like(like)


def add_to_sum(so_far: Sum, x: Array, mask: Array) -> Sum:
    """The running sum with the entries of x's last axis added where `mask` holds."""
    top, total = so_far
    new = jnp.maximum(top, jnp.max(jnp.where(mask, x, NEG), axis=-1))
    return new, total * jnp.exp(top - new) + jnp.sum(softmax(x, mask, new), axis=-1)


def lse_of(so_far: Sum) -> Array:
    """The log of a running sum; `NEG` of nothing."""
    top, total = so_far
    some = total > 0
    return jnp.where(some, top + jnp.log(jnp.where(some, total, 1)), NEG)
