"""BERT: learned positions, token types, post-layer-norm blocks, exact (erf) GELU; the family MiniLM belongs to.

Letters: V vocabulary, E width, H heads, d = E/H head size, F ffn, n rows, T tokens. There is no dropout: contrastive
fine-tuning here is deterministic given the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from crops_jax.models.attention import XLA, Attend, Choice, attend
from crops_jax.models.config import BertConfig
from crops_jax.models.layers import Loop, add_bias, layer_norm, lookup, project, scan_layers
from crops_jax.models.pytree import nnx
from crops_jax.parallel.sharding import Leaf, Rules


class BertLayer(nnx.Module):
    """The blocks' parameters, all layers stacked along the first axis."""

    def __init__(self, c: BertConfig):
        n, e, h, d, f = c.layers, c.width, c.heads, c.width // c.heads, c.ffn

        def weight(axes: tuple[str | None, ...], *shape: int) -> Leaf:
            return nnx.data(Leaf((n, *shape), ("layers", *axes), scale=c.init_std))

        def vector(axes: tuple[str | None, ...], value: float, *shape: int) -> Leaf:
            return nnx.data(Leaf((n, *shape), ("layers", *axes), "constant", value, group="no_decay"))

        self.q = weight(("embed", "kv_heads", None), e, h, d)
        self.k = weight(("embed", "kv_heads", None), e, h, d)
        self.v = weight(("embed", "kv_heads", None), e, h, d)
        self.q_bias = vector(("kv_heads", None), 0.0, h, d)
        self.k_bias = vector(("kv_heads", None), 0.0, h, d)
        self.v_bias = vector(("kv_heads", None), 0.0, h, d)
        self.o = weight(("kv_heads", None, "embed"), h, d, e)
        self.o_bias = vector((None,), 0.0, e)
        self.attention_norm = vector((None,), 1.0, e)
        self.attention_norm_bias = vector((None,), 0.0, e)
        self.up = weight(("embed", "ffn"), e, f)
        self.up_bias = vector(("ffn",), 0.0, f)
        self.down = weight(("ffn", "embed"), f, e)
        self.down_bias = vector((None,), 0.0, e)
        self.ffn_norm = vector((None,), 1.0, e)
        self.ffn_norm_bias = vector((None,), 0.0, e)


class Bert(nnx.Module):
    """A BERT encoder without pooler. Built, its leaves are `Leaf`s; `init` or an import fills them."""

    def __init__(self, c: BertConfig):
        self.config = c
        self.embedding = nnx.data(Leaf((c.vocab_size, c.width), ("vocab", "embed"), scale=c.init_std))
        self.position_embedding = nnx.data(Leaf((c.max_positions, c.width), (None, "embed"), scale=c.init_std))
        self.type_embedding = nnx.data(Leaf((c.token_types, c.width), (None, "embed"), scale=c.init_std))
        self.embedding_norm = nnx.data(Leaf((c.width,), (None,), "constant", 1.0, group="no_decay"))
        self.embedding_norm_bias = nnx.data(Leaf((c.width,), (None,), "constant", 0.0, group="no_decay"))
        self.layers = BertLayer(c)


def forward(
    model: Bert,
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
    token_types: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Hidden states of the last block, [n, T, E] in `dtype`; with `keep` also each block's output, [L, n, T, E].

    Args:
      ids: int32[n, T].
      segment_ids: int32[n, T], 0 on padding (`attention.attend`).
      positions: int32[n, T], from 0 in every segment, below `max_positions`.
      states: [n, T, E], what comes into the layers in the place of the embeddings, from layers below these.
      token_types: int32[n, T], which text of a pair a token belongs to; None: all of type 0.
    """
    config = model.config
    attending = attend(segment_ids, False, config.width // config.heads, attention)

    def block(layer: BertLayer, x: jax.Array) -> jax.Array:
        return _block(layer, x, attending, config, rules)

    def embedded() -> jax.Array:
        x = lookup(model.embedding, ids, dtype, rules)
        x = x + lookup(model.position_embedding, positions, dtype, rules)
        types = jnp.zeros_like(ids) if token_types is None else token_types
        x = x + lookup(model.type_embedding, types, dtype, rules)
        return layer_norm(x, model.embedding_norm, model.embedding_norm_bias, config.norm_eps)

    x = embedded() if states is None else states.astype(dtype)
    return scan_layers(block, model.layers, x, loop=loop, keep=keep, frozen=frozen_layers)


def _block(layer: BertLayer, x: jax.Array, attending: Attend, config: BertConfig, rules: Rules) -> jax.Array:
    """One block: norm(x + attention(x)), then norm(. + ffn(.))."""
    row, heads, columns = ("batch", None, None), ("batch", None, "kv_heads", None), ("batch", None, "ffn")
    q = add_bias(project(x, layer.q, "te,ehd->thd", heads, rules), layer.q_bias)
    k = add_bias(project(x, layer.k, "te,ehd->thd", heads, rules), layer.k_bias)
    v = add_bias(project(x, layer.v, "te,ehd->thd", heads, rules), layer.v_bias)
    h = attending(q[:, :, :, None], k, v)[:, :, :, 0]
    h = add_bias(project(h, layer.o, "thd,hde->te", row, rules), layer.o_bias)
    x = layer_norm(x + h, layer.attention_norm, layer.attention_norm_bias, config.norm_eps)
    h = add_bias(project(x, layer.up, "te,ef->tf", columns, rules), layer.up_bias)
    h = jax.nn.gelu(h, approximate=False)
    h = add_bias(project(h, layer.down, "tf,fe->te", row, rules), layer.down_bias)
    return layer_norm(x + h, layer.ffn_norm, layer.ffn_norm_bias, config.norm_eps)
