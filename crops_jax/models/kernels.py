"""JAX's own attention kernels, whose scores never leave the chip: splash attention on TPUs, a Triton kernel on GPUs.

Shapes as in `attention`: q[n, T, G, R, d], k and v[n, T, G, d], segment_ids int32[n, T]. A token attends to the tokens
of its own segment; those of padding (segment 0) to each other, so that none has nothing to attend to. What a padding
token gets differs from `attention.attention`'s, and nothing reads it.

Both are loaded where they are used: a run on CPU never imports Pallas.
"""

from __future__ import annotations

import warnings
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp

SPLASH_LANES = 128  # a row's slots are a multiple of these
_SPLASH_BLOCK = 512  # slots of a block: its scores, 1 MiB, lie in the fast memory
_SPLASH_HEADS = (64, 128, 256)
_TRITON_SLOTS = 16  # the least that a GPU's matrix unit takes
_TRITON_HEADS = (16, 32, 64, 128)


def splash_refusal(tokens: int, head_size: int) -> str | None:
    """Why splash attention does not take rows of this shape; None where it does.

    >>> splash_refusal(512, 64), splash_refusal(48, 64)
    (None, 'rows of 48 slots are no multiple of 128')
    """
    if tokens % SPLASH_LANES:
        return f"rows of {tokens} slots are no multiple of {SPLASH_LANES}"
    if head_size not in _SPLASH_HEADS:
        return f"a head size of {head_size} is none of {', '.join(map(str, _SPLASH_HEADS))}"
    return None


def triton_refusal(tokens: int, head_size: int) -> str | None:
    """Why the GPU's kernel does not take rows of this shape; None where it does."""
    if tokens % _TRITON_SLOTS:
        return f"rows of {tokens} slots are no multiple of {_TRITON_SLOTS}"
    if head_size not in _TRITON_HEADS:
        return f"a head size of {head_size} is none of {', '.join(map(str, _TRITON_HEADS))}"
    return None


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    causal: bool,
    residuals: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attention within segments on a TPU, in q's shape (`jax.experimental.pallas.ops.tpu.splash_attention`).

    A row of up to 512 slots is one block, so its backward pass is one kernel, which makes the scores once.

    Args:
      residuals: name of what the backward pass needs beside its inputs, for `jax.checkpoint`'s policies.
      interpret: run it step by step on a CPU, as tests do.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    n, tokens, groups, heads, head_size = q.shape
    block = gcd(tokens, _SPLASH_BLOCK)
    # Tiles have 128 columns: narrower heads are handed over with their slots in the columns, so that nothing is padded.
    layout = library.QKVLayout.SEQ_MINOR if head_size < SPLASH_LANES else library.QKVLayout.HEAD_DIM_MINOR
    sizes = library.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
        q_layout=layout, k_layout=layout, v_layout=layout,
    )  # fmt: skip
    mask = library.CausalMask((tokens, tokens)) if causal else library.FullMask((tokens, tokens))
    kernel = library.make_splash_mha(
        library.MultiHeadMask([mask] * (groups * heads)), block_sizes=sizes, head_shards=1, q_seq_shards=1,
        residual_checkpoint_name=residuals, interpret=interpret,
    )  # fmt: skip

    def of_row(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        return kernel(q, k, v, segment_ids=library.SegmentIds(segments, segments))

    # The kernel does not scale its scores.
    q = (q.astype(jnp.float32) * head_size**-0.5).astype(q.dtype).reshape(n, tokens, groups * heads, head_size)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # heads first
    return jnp.swapaxes(jax.vmap(of_row)(q, k, v, segment_ids), 1, 2).reshape(n, tokens, groups, heads, head_size)


def triton(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, causal: bool, interpret: bool = False
) -> jax.Array:
    """Attention within segments on a GPU, in q's shape (`jax.experimental.pallas.ops.gpu.attention`).

    The kernel wants as many heads in k and v as in q: they are repeated, which is small beside the scores.

    Args:
      interpret: run it step by step on a CPU, as tests do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jax 0.11 has it still, and names a package to follow it
        from jax.experimental.pallas.ops.gpu import attention as library

    n, tokens, groups, heads, head_size = q.shape
    forward = gcd(tokens, 64)
    backward = min(forward, 64 if head_size <= 64 else 32)  # its blocks of q, k, v and their cotangents have to fit
    sizes = library.BlockSizes(forward, forward, backward, backward, backward, backward)

    def every_head(x: Any) -> jax.Array:
        wide = jnp.broadcast_to(x.reshape(n, tokens, groups, -1, head_size), q.shape)
        return wide.reshape(n, tokens, groups * heads, head_size)

    out = library.mha(
        every_head(q), every_head(k), every_head(v), segment_ids,
        sm_scale=head_size**-0.5, causal=causal, block_sizes=sizes, interpret=interpret,
    )  # fmt: skip
    return out.reshape(q.shape)
