"""BART: an encoder reads a text, a decoder writes another; learned positions, post-layer-norm blocks, exact (erf) GELU.

Letters: V vocabulary, E width, H heads, d = E/H head size, F ffn, n rows, S slots of the encoder's rows, T of the
decoder's, L layers, B texts, K beams a text. Packed rows hold several texts: a token of the decoder's text i looks at
its own text so far, and at the encoder's text i. There is no dropout.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crops_jax.models.attention import XLA, Attend, Choice, attend, attention
from crops_jax.models.config import BartConfig, Remat
from crops_jax.models.layers import Loop, add_bias, layer_norm, lookup, project, scan_layers
from crops_jax.models.pytree import nnx
from crops_jax.parallel.sharding import Leaf, Rules, leaf_name

NORM_EPS = 1e-5
_OFFSET = 2  # rows of the position embedding before the first position
_FEW = 2  # layers that are written out: as a loop, two of them take a fifth longer on a CPU, and longer to compile
_ROW, _HEADS, _COLUMNS = ("batch", None, None), ("batch", None, "kv_heads", None), ("batch", None, "ffn")


def _weight(n: int, std: float, axes: tuple[str | None, ...], *shape: int) -> Leaf:
    return nnx.data(Leaf((n, *shape), ("layers", *axes), scale=std))


def _vector(n: int, axes: tuple[str | None, ...], value: float, *shape: int) -> Leaf:
    return nnx.data(Leaf((n, *shape), ("layers", *axes), "constant", value, group="no_decay"))


class BartAttention(nnx.Module):
    """Attention and the norm after it, all layers stacked along the first axis."""

    def __init__(self, n: int, e: int, h: int, std: float):
        d = e // h
        self.q = _weight(n, std, ("embed", "kv_heads", None), e, h, d)
        self.k = _weight(n, std, ("embed", "kv_heads", None), e, h, d)
        self.v = _weight(n, std, ("embed", "kv_heads", None), e, h, d)
        self.q_bias = _vector(n, ("kv_heads", None), 0.0, h, d)
        self.k_bias = _vector(n, ("kv_heads", None), 0.0, h, d)
        self.v_bias = _vector(n, ("kv_heads", None), 0.0, h, d)
        self.o = _weight(n, std, ("kv_heads", None, "embed"), h, d, e)
        self.o_bias = _vector(n, (None,), 0.0, e)
        self.norm = _vector(n, (None,), 1.0, e)
        self.norm_bias = _vector(n, (None,), 0.0, e)


class BartFeedForward(nnx.Module):
    """The feed-forward layer and the norm after it, all layers stacked."""

    def __init__(self, n: int, e: int, f: int, std: float):
        self.up = _weight(n, std, ("embed", "ffn"), e, f)
        self.up_bias = _vector(n, ("ffn",), 0.0, f)
        self.down = _weight(n, std, ("ffn", "embed"), f, e)
        self.down_bias = _vector(n, (None,), 0.0, e)
        self.norm = _vector(n, (None,), 1.0, e)
        self.norm_bias = _vector(n, (None,), 0.0, e)


class BartEncoderLayer(nnx.Module):
    """The encoder's blocks, stacked."""

    def __init__(self, c: BartConfig):
        self.own = BartAttention(c.encoder_layers, c.width, c.encoder_heads, c.init_std)
        self.ffn = BartFeedForward(c.encoder_layers, c.width, c.encoder_ffn, c.init_std)


class BartDecoderLayer(nnx.Module):
    """The decoder's blocks, stacked; `across` looks at the encoder's output."""

    def __init__(self, c: BartConfig):
        self.own = BartAttention(c.decoder_layers, c.width, c.decoder_heads, c.init_std)
        self.across = BartAttention(c.decoder_layers, c.width, c.decoder_heads, c.init_std)
        self.ffn = BartFeedForward(c.decoder_layers, c.width, c.decoder_ffn, c.init_std)


class BartSide(nnx.Module):
    """What stands before the blocks of the encoder or of the decoder."""

    def __init__(self, c: BartConfig):
        self.positions = nnx.data(Leaf((c.max_positions + _OFFSET, c.width), (None, "embed"), scale=c.init_std))
        self.norm = nnx.data(Leaf((c.width,), (None,), "constant", 1.0, group="no_decay"))
        self.norm_bias = nnx.data(Leaf((c.width,), (None,), "constant", 0.0, group="no_decay"))


class Bart(nnx.Module):
    """An encoder-decoder. Built, its leaves are `Leaf`s; `init` or an import fills them."""

    def __init__(self, c: BartConfig):
        self.config = c
        self.embedding = nnx.data(Leaf((c.vocab_size, c.width), ("vocab", "embed"), scale=c.init_std))
        self.encoder_side, self.decoder_side = BartSide(c), BartSide(c)
        self.encoder, self.decoder = BartEncoderLayer(c), BartDecoderLayer(c)


def init(config: BartConfig, key: jax.Array, rules: Rules) -> Bart:
    """A model with random float32 weights, the same for every mesh; under a mesh its leaves are born sharded.

    Every leaf's key depends on its name only.
    """

    def start(path: tuple[Any, ...], leaf: Leaf) -> jax.Array:
        return leaf.draw(jax.random.fold_in(key, zlib.crc32(leaf_name(path).encode())), rules.stored(leaf))

    return jax.tree_util.tree_map_with_path(start, Bart(config))


def encode(
    model: Bart, ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *, dtype: jnp.dtype, remat: Remat,
    rules: Rules, kernel: Choice = XLA,
) -> jax.Array:  # fmt: skip
    """The encoder's output, [n, S, E] in `dtype`.

    Args:
      ids: int32[n, S].
      segment_ids: int32[n, S], 0 on padding (`attention.attend`).
      positions: int32[n, S], from 0 in every segment, below `max_positions`.
    """
    attending = attend(segment_ids, False, model.config.width // model.config.encoder_heads, kernel)

    def block(layer: BartEncoderLayer, x: jax.Array) -> jax.Array:
        return _feed_forward(layer.ffn, _look(layer.own, x, attending, rules), rules)

    x = _enter(model, model.encoder_side, ids, positions, dtype, rules)
    return scan_layers(block, model.encoder, x, loop=Loop(remat, model.config.encoder_layers <= _FEW))[0]


def decode(
    model: Bart, ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, memory: jax.Array,
    memory_segment_ids: jax.Array, *, dtype: jnp.dtype, remat: Remat, rules: Rules, kernel: Choice = XLA,
    reads: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """The decoder's output for whole texts, [n, T, E] in `dtype`: what stands at a token says what follows it.

    Args:
      ids: int32[n, T]; the other two as for `encode`.
      memory: [n, S, E], what `encode` gave.
      memory_segment_ids: int32[n, S], its segments.
      reads: int32[n, T], the segment of the memory that a token reads; None: text i of a row reads text i.
    """
    attending = attend(segment_ids, True, model.config.width // model.config.decoder_heads, kernel)
    reads = segment_ids if reads is None else reads
    meet = (reads[:, :, None] == memory_segment_ids[:, None, :]) & (memory_segment_ids[:, None, :] > 0)

    def block(layer: BartDecoderLayer, x: jax.Array) -> jax.Array:
        x = _look(layer.own, x, attending, rules)
        x = _look_across(layer.across, x, *_keys_of(layer.across, memory, rules), meet, rules)
        return _feed_forward(layer.ffn, x, rules)

    x = _enter(model, model.decoder_side, ids, positions, dtype, rules)
    return scan_layers(block, model.decoder, x, loop=Loop(remat, model.config.decoder_layers <= _FEW))[0]


def logits(model: Bart, x: jax.Array, rules: Rules) -> jax.Array:
    """float32[n, T, V] of the decoder's output: by the token embedding, which they share."""
    return project(x, model.embedding, "te,ve->tv", _ROW, rules).astype(jnp.float32)


class Cache(NamedTuple):
    """Keys and values while K beams are written for each of B texts, token by token.

    `own_*` are those of the T tokens so far; `across_*` those of the text that is read, one for all its beams.
    """

    own_k: jax.Array  # [L, B, K, T, H, d]
    own_v: jax.Array
    across_k: jax.Array  # [L, B, S, H, d]
    across_v: jax.Array
    present: jax.Array  # bool[B, S]: what of the text is no padding


def start(model: Bart, memory: jax.Array, present: jax.Array, beams: int, tokens: int, rules: Rules) -> Cache:
    """The cache before the first token.

    Args:
      memory: [B, S, E], what `encode` gave for B texts, one a row.
      tokens: T, how many will be written at most.
    """
    c = model.config
    k, v = jax.lax.map(lambda layer: _keys_of(layer, memory, rules), model.decoder.across)
    shape = (c.decoder_layers, len(memory), beams, tokens, c.decoder_heads, c.width // c.decoder_heads)
    return Cache(jnp.zeros(shape, memory.dtype), jnp.zeros(shape, memory.dtype), k, v, present)


def step(model: Bart, ids: jax.Array, place: jax.Array, cache: Cache, rules: Rules) -> tuple[jax.Array, Cache]:
    """(float32[B, K, V] logits of what follows, the cache with this token), one token of each beam further.

    Args:
      ids: int32[B, K], the token at `place`.
      place: int32, from 0, the same for all.
    """
    texts, beams = ids.shape
    tokens = cache.own_k.shape[3]
    so_far = jnp.broadcast_to(jnp.arange(tokens)[None, None, :] <= place, (texts * beams, 1, tokens))
    present = jnp.broadcast_to(cache.present[:, None, :], (texts, beams, cache.present.shape[1]))

    def one_row(a: jax.Array) -> jax.Array:
        """A beam is a row of its own."""
        return a.reshape(texts * beams, -1, *a.shape[-2:])

    def block(x: jax.Array, inputs: tuple) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        layer, own_k, own_v, k, v = inputs
        new_k, new_v = _keys_of(layer.own, x, rules)
        own_k = jax.lax.dynamic_update_index_in_dim(own_k, new_k, place, 2)
        own_v = jax.lax.dynamic_update_index_in_dim(own_v, new_v, place, 2)
        q = _queries_of(layer.own, x, rules)
        seen = attention(one_row(q[:, :, :, 0])[:, :, :, None], one_row(own_k), one_row(own_v), so_far)
        x = _after(layer.own, x, seen.reshape(q.shape), rules)
        x = _feed_forward(layer.ffn, _look_across(layer.across, x, k, v, present, rules), rules)
        return x, (own_k, own_v)

    x = _enter(model, model.decoder_side, ids, jnp.full_like(ids, place), cache.own_k.dtype, rules)
    unroll = model.config.decoder_layers <= _FEW
    x, (own_k, own_v) = jax.lax.scan(block, x, (model.decoder, *cache[:4]), unroll=unroll)
    return logits(model, x, rules), cache._replace(own_k=own_k, own_v=own_v)


def _enter(
    model: Bart, side: BartSide, ids: jax.Array, positions: jax.Array, dtype: jnp.dtype, rules: Rules
) -> jax.Array:
    x = lookup(model.embedding, ids, dtype, rules) + lookup(side.positions, positions + _OFFSET, dtype, rules)
    return layer_norm(x, side.norm, side.norm_bias, NORM_EPS)


def _keys_of(layer: BartAttention, x: jax.Array, rules: Rules) -> tuple[jax.Array, jax.Array]:
    """(keys, values) of x[n, T, E], each [n, T, H, d]."""
    k = add_bias(project(x, layer.k, "te,ehd->thd", _HEADS, rules), layer.k_bias)
    return k, add_bias(project(x, layer.v, "te,ehd->thd", _HEADS, rules), layer.v_bias)


def _queries_of(layer: BartAttention, x: jax.Array, rules: Rules) -> jax.Array:
    """[n, T, H, 1, d] of x[n, T, E]."""
    return add_bias(project(x, layer.q, "te,ehd->thd", _HEADS, rules), layer.q_bias)[:, :, :, None]


def _look(layer: BartAttention, x: jax.Array, attending: Attend, rules: Rules) -> jax.Array:
    """norm(x + attention(x)) among the tokens of x."""
    return _after(layer, x, attending(_queries_of(layer, x, rules), *_keys_of(layer, x, rules)), rules)


def _look_across(
    layer: BartAttention, x: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, rules: Rules
) -> jax.Array:
    """norm(x + attention(x, k, v)) where mask[n, T, S] holds."""
    return _after(layer, x, attention(_queries_of(layer, x, rules), k, v, mask), rules)


def _after(layer: BartAttention, x: jax.Array, seen: jax.Array, rules: Rules) -> jax.Array:
    h = add_bias(project(seen[:, :, :, 0], layer.o, "thd,hde->te", _ROW, rules), layer.o_bias)
    return layer_norm(x + h, layer.norm, layer.norm_bias, NORM_EPS)


def _feed_forward(layer: BartFeedForward, x: jax.Array, rules: Rules) -> jax.Array:
    h = jax.nn.gelu(add_bias(project(x, layer.up, "te,ef->tf", _COLUMNS, rules), layer.up_bias), approximate=False)
    h = add_bias(project(h, layer.down, "tf,fe->te", _ROW, rules), layer.down_bias)
    return layer_norm(x + h, layer.norm, layer.norm_bias, NORM_EPS)
