"""Grouped-query attention over padded or packed rows: a kernel of the platform's that keeps its scores on the chip, or
XLA's products, all scores at once or in blocks of rows.

Shapes: n rows, T tokens, G KV heads, R query heads per KV head, d head size; q[n, T, G, R, d], k and v[n, T, G, d],
mask[n, T, T]. Scores and their softmax are float32 whatever the compute dtype.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from crops_jax.errors import InputError
from crops_jax.models import kernels
from crops_jax.models.config import AttentionKernel

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_MASKED = -1e30  # finite, so that a token with nothing to attend to gives a uniform softmax and not NaN
RESIDUALS = "attention_residuals"
"""Name of what the blocks' backward pass needs beside its inputs, for `jax.checkpoint`'s policies."""


class Choice(NamedTuple):
    """How attention is computed: `DualEncoderConfig`'s fields."""

    kernel: AttentionKernel = "xla"
    scores: int | None = None


XLA = Choice()


def attend(segment_ids: jax.Array, causal: bool, head_size: int, choice: Choice) -> Attend:
    """The attention of rows with these segments: (q, k, v) -> out in q's shape.

    Args:
      segment_ids: int32[n, T], 0 on padding.

    Raises:
      InputError: as `chosen`.
    """
    match chosen(choice.kernel, platform(), segment_ids.shape[1], head_size):
        case "splash":
            return partial(_by_kernel, partial(kernels.splash, causal=causal, residuals=RESIDUALS), segment_ids)
        case "triton":
            return partial(_by_kernel, partial(kernels.triton, causal=causal), segment_ids)
    mask = attention_mask(segment_ids, causal)
    return lambda q, k, v: attention(q, k, v, mask, choice.scores)


def platform() -> str:
    """Where what is traced now will run: that of the mesh, which may be a TPU that is not there; else JAX's own."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform


def on_gpu() -> bool:
    """Whether what is traced now will run on GPUs."""
    return platform() in ("gpu", "cuda")


def chosen(kernel: AttentionKernel, platform: str, tokens: int, head_size: int) -> AttentionKernel:
    """The kernel for rows of so many slots: "auto" made concrete, with a line on stderr where the platform's own kernel
    does not take them.

    Raises:
      InputError: a kernel was asked for that the platform lacks, or that does not take such rows.
    """
    own: AttentionKernel = {"tpu": "splash", "gpu": "triton", "cuda": "triton"}.get(platform, "xla")
    if kernel == "xla" or (kernel == "auto" and own == "xla"):
        return "xla"
    if kernel not in ("auto", own):
        has = f"; {own} is its own" if own != "xla" else ""
        raise InputError(f"model.attention = {kernel}", f"there is no such kernel on {platform}{has}; use auto or xla")
    refusal = (kernels.splash_refusal if own == "splash" else kernels.triton_refusal)(tokens, head_size)
    if refusal is None:
        return own
    if kernel != "auto":
        raise InputError(f"model.attention = {kernel}", f"{refusal}; change them, or use auto or xla")
    _say(f"attention: {refusal}, which {own} does not take; XLA computes it, and its scores go through memory")
    return "xla"


@cache
def _say(line: str) -> None:
    """Once: every tower and every shape is traced several times."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr)


def _by_kernel(kernel: Callable, segment_ids: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Every device runs the kernel on its own rows and heads."""
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(q, k, v, segment_ids)
    # Pallas does not say over which axes its outputs vary.
    local = jax.shard_map(kernel, out_specs=jax.typeof(q).sharding.spec, check_vma=False)
    return local(q, k, v, segment_ids)


def attention_mask(segment_ids: jax.Array, causal: bool) -> jax.Array:
    """bool[n, T, T]: token t may look at token s of its own segment (ids from 1; 0 is padding), not ahead if causal.

    A padded row of length m has segment 1 on its first m tokens; a packed row counts its texts from 1.
    """
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] > 0)
    if not causal:
        return same
    tokens = segment_ids.shape[1]
    behind = jnp.arange(tokens)[:, None] >= jnp.arange(tokens)[None, :]
    return same & behind[None]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scores: int | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v in q's shape.

    Args:
      scores: how many scores each device holds at a time, about; it works rows by rows then, and computes the scores
        again in the backward pass. None: those of all rows.
    """
    if scores is None:
        q, k, v = map(_heads_first, (q, k, v))
        weights = jax.nn.softmax(_scores(q, k, mask), axis=-1).astype(v.dtype)
        return _tokens_first(jnp.einsum("ngrts,ngsd->ngrtd", weights, v))

    def local(q: jax.Array, *others: jax.Array) -> jax.Array:
        count, tokens, groups, heads, _ = q.shape
        most = max(1, scores // (groups * heads * tokens**2))
        rows = max(size for size in range(1, min(most, count) + 1) if count % size == 0)
        blocks = [x.reshape(count // rows, rows, *x.shape[1:]) for x in (q, *others)]
        return _of_blocks(*blocks).reshape(q.shape)

    if jax.sharding.get_abstract_mesh().empty:
        return local(q, k, v, mask)
    return jax.shard_map(local, out_specs=jax.typeof(q).sharding.spec)(q, k, v, mask)


@jax.custom_vjp
def _of_blocks(*arrays: jax.Array) -> jax.Array:
    """`attention` of one block of rows after the other, along a new first axis of q, k, v and the mask."""
    return jax.lax.map(lambda block: _of_block(*block)[0], arrays)


def _of_blocks_forward(*arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # Not `jax.checkpoint` around each block: under a scan it keeps the mask, which depends on no parameter, spread over
    # all heads.
    out, normaliser = checkpoint_name(jax.lax.map(lambda block: _of_block(*block), arrays), RESIDUALS)
    return out, (*arrays, out, normaliser)


def _of_blocks_backward(saved: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
    return (*jax.lax.map(lambda block: _cotangents_of_block(*block), (*saved, cotangent)), None)


_of_blocks.defvjp(_of_blocks_forward, _of_blocks_backward)


def _of_block(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One block's attention, and the log-sum-exp of each token's scores, float32[n, G, R, T, 1]."""
    q, k, v = map(_heads_first, (q, k, v))
    scores = _scores(q, k, mask)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("ngrts,ngsd->ngrtd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return _tokens_first((out / total).astype(v.dtype)), highest + jnp.log(total)


def _cotangents_of_block(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, out: jax.Array, normaliser: jax.Array, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Those of q, k and v: the weights follow from the kept log-sum-exp, and the softmax's sum over weights and their
    cotangents is one over `out` and its own (FlashAttention, Algorithm 4). A token with nothing to attend to has none.
    """
    q, k, v, out, d_out = map(_heads_first, (q, k, v, out, d_out))
    weights = jnp.where(mask[:, None, None], jnp.exp(_scores(q, k, mask) - normaliser), jnp.float32(0))
    d_weights = jnp.einsum("ngrtd,ngsd->ngrts", d_out, v, preferred_element_type=jnp.float32)
    mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_scores = (weights * (d_weights - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
    d_q = jnp.einsum("ngrts,ngsd->ngrtd", d_scores, k)
    d_k = jnp.einsum("ngrts,ngrtd->ngsd", d_scores, q)
    d_v = jnp.einsum("ngrts,ngrtd->ngsd", weights.astype(v.dtype), d_out)
    return _tokens_first(d_q), _tokens_first(d_k), _tokens_first(d_v)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """Scaled and masked scores, float32[n, G, R, T, T], of q and k with their heads first."""
    scores = jnp.einsum("ngrtd,ngsd->ngrts", q, k, preferred_element_type=jnp.float32)
    return jnp.where(mask[:, None, None], scores * q.shape[-1] ** -0.5, jnp.float32(_MASKED))


def _heads_first(x: jax.Array) -> jax.Array:
    """x[n, T, heads..., d] as [n, heads..., T, d]: on CPU, XLA's own rearrangement of the products takes two to three
    times as long."""
    return jnp.moveaxis(x, 1, -2)


def _tokens_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -2, 1)
