"""The dual encoder: a query tower and a document tower that give unit vectors, and a learnable temperature.

`build(config)` describes every leaf once; `init`, `abstract`, the shardings and the parameter groups read it off.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from crops_jax.batch import IdFeatures, PackedTokens, Tokens
from crops_jax.models import bert, lora, qwen2, sparse_mlp
from crops_jax.models.attention import XLA, Choice, on_gpu
from crops_jax.models.config import (
    Backbone,
    BertConfig,
    DualEncoderConfig,
    Pooling,
    Qwen2Config,
    SparseMlpConfig,
    Tower,
    projections,
)
from crops_jax.models.layers import FORWARD, Loop
from crops_jax.models.pytree import nnx
from crops_jax.parallel.sharding import RULES, Leaf, Rules, leaf_name, reshard

Encoder = qwen2.Qwen2 | bert.Bert
"""A tower that reads tokens."""


class DualEncoder(nnx.Module):
    """The towers and log tau, a plain pytree. With tied towers there is one set of leaves, `query_tower`."""

    def __init__(self, config: DualEncoderConfig):
        self.config = config
        self.query_tower = _tower_of(config, "query")
        self.document_tower = None if config.tie_towers else _tower_of(config, "document")
        group = "frozen" if config.frozen.tau else "tau"
        self.log_tau = nnx.data(Leaf((), (), "constant", math.log(config.tau_init), group=group))

    def tower(self, tower: Tower) -> Any:
        """The module that encodes queries or documents."""
        return self.query_tower if tower == "query" or self.document_tower is None else self.document_tower


def build_tower(backbone: Backbone, tower: Tower) -> Any:
    """One tower with a `Leaf` in place of every array."""
    match backbone:
        case Qwen2Config():
            return qwen2.Qwen2(backbone)
        case BertConfig():
            return bert.Bert(backbone)
        case SparseMlpConfig():
            return sparse_mlp.SparseMlp(backbone, tower)


def _tower_of(config: DualEncoderConfig, tower: Tower) -> Any:
    whole = build_tower(config.backbone, tower)
    if config.lora is not None:
        whole = lora.adapt(whole, config.lora, projections(config.backbone))
    frozen, layers = tower in config.frozen.towers, config.frozen.layers

    def marked(path: tuple[Any, ...], leaf: Leaf) -> Leaf:
        stacked = leaf.axes[:1] == ("layers",)
        if frozen or (layers and (leaf.shape[0] == layers if stacked else "embedding" in leaf_name(path))):
            return replace(leaf, group="frozen")
        return replace(leaf, frozen_layers=layers) if stacked else leaf

    return jax.tree_util.tree_map_with_path(marked, whole)


def abstract(config: DualEncoderConfig) -> DualEncoder:
    """The model with a `sharding.Leaf` in place of every array: shape, dtype, logical axes, start, group."""
    return DualEncoder(config)


def init(config: DualEncoderConfig, key: jax.Array, rules: Rules = RULES) -> DualEncoder:
    """A model with random float32 weights, the same for every mesh; under a mesh its leaves are born sharded.

    Pure; quickest called as it is, because leaves of one shape then share one compilation. Every leaf's key depends
    on its name only.
    Pre-trained weights (`config.init_from`) are `hf_import.create`'s work.
    """

    def start(path: tuple[Any, ...], leaf: Leaf) -> jax.Array:
        return draw(leaf_name(path), leaf, key, rules)

    return jax.tree_util.tree_map_with_path(start, abstract(config))


def draw(name: str, leaf: Leaf, key: jax.Array, rules: Rules = RULES) -> jax.Array:
    """The random start of the leaf of this name; a frozen weight's is the one it has without adapters."""
    return leaf.draw(jax.random.fold_in(key, zlib.crc32(lora.base_name(name).encode())), rules.stored(leaf))


def parameter_groups(config: DualEncoderConfig) -> Any:
    """The parameter group of every leaf, a tree like the model: weights | no_decay | tables | tau | frozen."""
    return jax.tree.map(lambda leaf: leaf.group, abstract(config))


def trainable(model: DualEncoder) -> DualEncoder:
    """What has a gradient and optimiser state: None in the place of every frozen leaf, the upper layers of others."""

    def part(leaf: jax.Array, described: Leaf) -> jax.Array | None:
        if described.group == "frozen":
            return None
        return leaf[described.frozen_layers :] if described.frozen_layers else leaf

    return jax.tree.map(part, model, abstract(model.config))


def with_trainable(model: DualEncoder, parameters: DualEncoder) -> DualEncoder:
    """The model with these trainable leaves and its own frozen ones."""

    def whole(new: jax.Array | None, old: jax.Array) -> jax.Array:
        if new is None:
            return old
        below = old.shape[0] - new.shape[0] if new.ndim else 0
        return jnp.concatenate([jax.lax.stop_gradient(old[:below]), new]) if below else new

    return jax.tree.map(whole, parameters, model, is_leaf=lambda x: x is None)


def untied(model: DualEncoder, config: DualEncoderConfig) -> DualEncoder:
    """A model with two towers that both hold what the one tower of `model` holds."""
    both = DualEncoder(config)
    both.query_tower, both.log_tau = model.query_tower, model.log_tau
    both.document_tower = jax.tree.map(jnp.copy, model.query_tower)  # a step donates its arrays: none twice
    return both


def tau(model: DualEncoder) -> jax.Array:
    """The temperature exp(log tau), float32[]."""
    return jnp.exp(model.log_tau)


def clip_tau(model: DualEncoder) -> DualEncoder:
    """The model with log tau put back into [tau_min, tau_max]; call it after every update."""
    low, high = math.log(model.config.tau_min), math.log(model.config.tau_max)
    clipped = jnp.clip(model.log_tau, low, high)
    new = jax.tree.map(lambda leaf: leaf, model)
    new.log_tau = clipped
    return new


def encode(
    model: DualEncoder,
    tower: Tower,
    texts: Tokens | PackedTokens | IdFeatures,
    rules: Rules = RULES,
    loop: Loop | None = None,
) -> jax.Array:
    """Unit vectors float32[n, D], text for text; a slot without text (length 0) gives zeros.

    Normalisation is float32 whatever the compute dtype.

    Args:
      loop: how the layers are run through, instead of as in a training step (`training_loop`).
    """
    return normalise(pooled(model, tower, texts, rules, loop))


def training_loop(config: DualEncoderConfig) -> Loop:
    """How the layers are run through where a gradient is taken, on the devices that are traced for."""
    unroll = on_gpu() if config.unroll == "auto" else config.unroll == "yes"
    return Loop(config.remat, unroll)


def pooled(
    model: DualEncoder,
    tower: Tower,
    texts: Tokens | PackedTokens | IdFeatures,
    rules: Rules = RULES,
    loop: Loop | None = None,
) -> jax.Array:
    """The towers' vectors before normalisation, float32[n, D]; zeros for a slot without text. Arguments as `encode`."""
    config, encoder = model.config, model.tower(tower)
    dtype = jnp.dtype(config.dtype)
    if isinstance(texts, IdFeatures):
        known = (texts.ids > 0).any(axis=1) | (texts.bags > 0).any(axis=(1, 2))
        vector = sparse_mlp.forward(encoder, texts, dtype=dtype, rules=rules).astype(jnp.float32)
        return jnp.where(known[:, None], vector, jnp.zeros_like(vector))
    hidden, _ = hidden_states(
        encoder, texts, dtype=dtype, loop=loop or training_loop(config), rules=rules,
        attention=Choice(config.attention, config.attention_scores), frozen_layers=config.frozen_layers(tower),
        layers_done=config.frozen.layers,
    )  # fmt: skip
    if isinstance(texts, PackedTokens):
        return pool_packed(hidden, texts, config.pooling, rules)
    return pool(hidden, texts.length, config.pooling, rules)


def hidden_states(
    encoder: Encoder,
    texts: Tokens | PackedTokens,
    *,
    dtype: jnp.dtype,
    loop: Loop = FORWARD,
    rules: Rules = RULES,
    attention: Choice = XLA,
    frozen_layers: int = 0,
    layers_done: int = 0,
    keep: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """A tower's token states [rows, T, E]; with `keep` also every block's output [L, rows, T, E].

    Args:
      frozen_layers: no gradient passes below so many layers.
      layers_done: lower layers that texts with `states` have been through, and that are left out for them.
    """
    states = texts.states
    match texts:
        case PackedTokens(ids=ids, segment=segment_ids, position=positions):
            rows = rules.used(("batch", None))
            shape = (ids.shape[0] * ids.shape[1], ids.shape[2])
            ids, segment_ids, positions = (_reshaped(x, shape, rows) for x in (ids, segment_ids, positions))
            if states is not None:
                states = _reshaped(states, (*shape, states.shape[-1]), rules.used(("batch", None, None)))
        case Tokens(ids=ids, length=length):
            places = jnp.arange(ids.shape[1], dtype=jnp.int32)
            positions = reshard(jnp.broadcast_to(places[None], ids.shape), rules.used(("batch", None)))
            segment_ids = (positions < length[:, None]).astype(jnp.int32)
    if states is not None:
        encoder, frozen_layers = with_layers(encoder, slice(layers_done, None)), frozen_layers - layers_done
    match encoder:
        case qwen2.Qwen2():
            forward = qwen2.forward
        case bert.Bert():
            forward = bert.forward
    return forward(
        encoder, ids, segment_ids, positions,
        dtype=dtype, loop=loop, rules=rules, attention=attention, frozen_layers=frozen_layers,
        keep=keep, states=states,
    )  # fmt: skip


def with_layers(encoder: Encoder, chosen: slice) -> Encoder:
    """The encoder with some of its layers alone."""
    cut = jax.tree.map(lambda leaf: leaf, encoder)
    cut.layers = jax.tree.map(lambda leaf: leaf[chosen], encoder.layers)
    return cut


def pool(hidden: jax.Array, length: jax.Array, pooling: Pooling, rules: Rules = RULES) -> jax.Array:
    """One float32[n, E] vector a row from states [n, T, E]; by length, so padding of any value cannot leak in."""
    place = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None]
    inside = place < length[:, None]
    match pooling:
        case "last":
            weight = (place == length[:, None] - 1).astype(jnp.float32)
        case "cls":
            weight = (inside & (place == 0)).astype(jnp.float32)
        case "mean":
            weight = inside.astype(jnp.float32) / jnp.maximum(length, 1).astype(jnp.float32)[:, None]
    hidden = hidden.astype(jnp.float32)
    return jnp.einsum("nt,nte->ne", weight, hidden, precision="highest", out_sharding=rules.used(("batch", None)))


def pool_packed(hidden: jax.Array, texts: PackedTokens, pooling: Pooling, rules: Rules = RULES) -> jax.Array:
    """The same from packed states [S*R, T, E]: float32[n, E] in the order of the texts, without leaving a shard."""
    shards, slots = texts.first.shape
    states = _reshaped(hidden, (shards, -1, hidden.shape[-1]), rules.used(("batch", None, None)))

    def of_shard(states: jax.Array, segment: jax.Array, first: jax.Array, length: jax.Array) -> jax.Array:
        if pooling == "mean":
            total = jnp.zeros((slots + 1, states.shape[1]), jnp.float32).at[segment].add(states.astype(jnp.float32))
            return total[1:] / jnp.maximum(length, 1).astype(jnp.float32)[:, None]
        place = first if pooling == "cls" else first + length - 1
        chosen = states.at[place].get(mode="clip").astype(jnp.float32)
        return jnp.where(length[:, None] > 0, chosen, 0)

    segment = _reshaped(texts.segment, (shards, -1), rules.used(("batch", None)))
    vectors = jax.vmap(of_shard)(states, segment, texts.first, texts.length)
    return _reshaped(vectors, (shards * slots, states.shape[-1]), rules.used(("batch", None)))


def _reshaped(x: jax.Array, shape: tuple[int, ...], spec: jax.P | None) -> jax.Array:
    """A reshape that keeps whole shards together, so that its layout has to be said and nothing moves."""
    return jnp.reshape(x, shape, out_sharding=spec)


def normalise(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zero stays zero, with a zero gradient rather than NaN."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, jnp.ones_like(square)))
