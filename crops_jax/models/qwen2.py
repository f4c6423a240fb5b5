"""Qwen2: RMSNorm, rotary positions, grouped-query attention with q/k/v bias, SwiGLU; causal or bidirectional.

Letters: V vocabulary, E width, G KV heads, R query heads per KV head, d head size, F ffn, n rows, T tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from crops_jax.models.attention import XLA, Attend, Choice, attend
from crops_jax.models.config import Qwen2Config
from crops_jax.models.layers import Loop, add_bias, lookup, project, rms_norm, rope_angles, rotate, scan_layers, swiglu
from crops_jax.models.pytree import nnx
from crops_jax.parallel.sharding import Leaf, Rules


class Qwen2Layer(nnx.Module):
    """The blocks' parameters, all layers stacked along the first axis."""

    def __init__(self, c: Qwen2Config):
        n, e, g, r, d, f = c.layers, c.width, c.kv_heads, c.heads // c.kv_heads, c.head_size, c.ffn

        def weight(axes: tuple[str | None, ...], *shape: int) -> Leaf:
            return nnx.data(Leaf((n, *shape), ("layers", *axes), scale=c.init_std))

        def vector(axes: tuple[str | None, ...], value: float, *shape: int) -> Leaf:
            return nnx.data(Leaf((n, *shape), ("layers", *axes), "constant", value, group="no_decay"))

        self.attention_norm = vector((None,), 1.0, e)
        self.q = weight(("embed", "kv_heads", None, None), e, g, r, d)
        self.k = weight(("embed", "kv_heads", None), e, g, d)
        self.v = weight(("embed", "kv_heads", None), e, g, d)
        self.q_bias = vector(("kv_heads", None, None), 0.0, g, r, d)
        self.k_bias = vector(("kv_heads", None), 0.0, g, d)
        self.v_bias = vector(("kv_heads", None), 0.0, g, d)
        self.o = weight(("kv_heads", None, None, "embed"), g, r, d, e)
        self.ffn_norm = vector((None,), 1.0, e)
        self.gate = weight(("embed", "ffn"), e, f)
        self.up = weight(("embed", "ffn"), e, f)
        self.down = weight(("ffn", "embed"), f, e)


class Qwen2(nnx.Module):
    """A Qwen2 encoder without a language-model head. Built, its leaves are `Leaf`s; `init` or an import fills them."""

    def __init__(self, config: Qwen2Config):
        self.config = config
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.data(Leaf(shape, ("vocab", "embed"), scale=config.init_std))
        self.layers = Qwen2Layer(config)
        self.final_norm = nnx.data(Leaf((config.width,), (None,), "constant", 1.0, group="no_decay"))


def forward(
    model: Qwen2,
    ids: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    *,
    dtype: jnp.dtype,
    loop: Loop,
    rules: Rules,
    attention: Choice = XLA,
    frozen_layers: int = 0,
    keep: bool = False,
    states: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Hidden states after the last norm, [n, T, E] in `dtype`; with `keep` also each block's output, [L, n, T, E].

    Args:
      ids: int32[n, T].
      segment_ids: int32[n, T], 0 on padding (`attention.attend`).
      positions: int32[n, T], from 0 in every segment.
      states: [n, T, E], what comes into the layers in the place of the embeddings, from layers below these.
    """
    config = model.config
    attending = attend(segment_ids, config.causal, config.head_size, attention)
    angles = rope_angles(positions, config.head_size, config.rope_theta)

    def block(layer: Qwen2Layer, x: jax.Array) -> jax.Array:
        return _block(layer, x, attending, angles, config, rules, loop.unroll)

    x = lookup(model.embedding, ids, dtype, rules) if states is None else states.astype(dtype)
    x, kept = scan_layers(block, model.layers, x, loop=loop, keep=keep, frozen=frozen_layers)
    return rms_norm(x, model.final_norm, config.norm_eps), kept


def _block(
    layer: Qwen2Layer,
    x: jax.Array,
    attending: Attend,
    angles: tuple[jax.Array, jax.Array],
    config: Qwen2Config,
    rules: Rules,
    unrolled: bool,
) -> jax.Array:
    """One block: x + attention(norm(x)), then + ffn(norm(.))."""
    row, heads, columns = ("batch", None, None), ("batch", None, "kv_heads", None), ("batch", None, "ffn")
    h = rms_norm(x, layer.attention_norm, config.norm_eps)
    q = add_bias(project(h, layer.q, "te,egrd->tgrd", (*heads, None), rules), layer.q_bias)
    k = add_bias(project(h, layer.k, "te,egd->tgd", heads, rules), layer.k_bias)
    v = add_bias(project(h, layer.v, "te,egd->tgd", heads, rules), layer.v_bias)
    h = attending(rotate(q, *angles), rotate(k, *angles), v)
    x = x + project(h, layer.o, "tgrd,grde->te", row, rules)
    h = rms_norm(x, layer.ffn_norm, config.norm_eps)
    gate, up = (project(h, w, "te,ef->tf", columns, rules) for w in (layer.gate, layer.up))
    return x + project(swiglu(gate, up, unrolled), layer.down, "tf,fe->te", row, rules)
