"""The dual encoder: a query tower and a document tower into one unit sphere, and a learnable temperature.

`build(config)` describes every leaf once; `init`, `abstract`, the shardings and the parameter groups read it off.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from crops_jax.batch import IdFeatures, PackedTokens, Tokens
from crops_jax.errors import InputError
from crops_jax.models import bert, lora, qwen2, sparse_mlp
from crops_jax.models.layers import Dtype, Remat
from crops_jax.models.lora import LoraConfig
from crops_jax.sharding import RULES, Leaf, Rules, leaf_name, reshard

Tower = Literal["query", "document"]
Pooling = Literal["last", "mean", "cls"]
Backbone = qwen2.Qwen2Config | bert.BertConfig | sparse_mlp.SparseMlpConfig


@dataclass(frozen=True)
class DualEncoderConfig:
    """Two towers of one backbone."""

    backbone: Backbone = qwen2.QWEN2_5_0_5B
    """Architecture of each tower."""
    pooling: Pooling = "last"
    """Which hidden states make the embedding: the last token (EOS), the mean of all, or the first. The sparse model
    does not pool."""
    tie_towers: bool = False
    """Whether queries and documents share one tower; the paper has two."""
    tau_init: float = 0.05
    """Starting temperature (paper: 0.05)."""
    tau_min: float = 0.01
    """Lower bound of the temperature."""
    tau_max: float = 1.0
    """Upper bound of the temperature."""
    init_from: str | None = None
    """Pre-trained weights for both towers: a local folder, an installed package that carries one, or a hub id.
    None starts from random weights."""
    dtype: Dtype = "float32"
    """Compute type of the towers; master weights, norms, pooling and the loss are float32."""
    remat: Remat = "none"
    """What the backward pass recomputes: none, dots (all but matrix products and attention in
    blocks), full (whole layers)."""
    attention_scores: int | None = None
    """Attention scores (heads times squared row length) that a device holds at a time, computed again in the backward
    pass; none holds those of all its rows. On CPU, 2**19 of them stay in the cache, which halves attention's time."""
    lora: LoraConfig | None = None
    """Train low-rank adapters of chosen projections alone; none trains all weights."""

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.tau_min <= self.tau_init <= self.tau_max:
            problems.append(f"0 < tau_min <= tau_init <= tau_max; they are {self.tau_min, self.tau_init, self.tau_max}")
        if self.attention_scores is not None and self.attention_scores < 1:
            problems.append(f"attention_scores = {self.attention_scores} is not above zero")
        match self.backbone:
            case qwen2.Qwen2Config(heads=heads, kv_heads=kv) if heads % kv:
                problems.append(f"backbone.heads = {heads} is no multiple of backbone.kv_heads = {kv}")
            case bert.BertConfig(width=width, heads=heads) if width % heads:
                problems.append(f"backbone.width = {width} is no multiple of backbone.heads = {heads}")
            case sparse_mlp.SparseMlpConfig() if self.init_from is not None:
                problems.append("init_from: the sparse model has no pre-trained weights")
            case sparse_mlp.SparseMlpConfig() if self.tie_towers:
                problems.append("tie_towers: the sparse model's towers read different fields")
            case qwen2.Qwen2Config(causal=True) if self.pooling == "cls":
                problems.append("pooling 'cls' of a causal model sees the first token only; use last or mean")
        if self.lora is not None:
            problems += self.lora.problems(_projections(self.backbone))
        if problems:
            raise InputError("dual encoder config", problems)


class DualEncoder(nnx.Module):
    """The towers and log tau, a plain pytree. With tied towers there is one set of leaves, `query_tower`."""

    def __init__(self, config: DualEncoderConfig):
        self.config = config
        self.query_tower = _tower_of(config, "query")
        self.document_tower = None if config.tie_towers else _tower_of(config, "document")
        self.log_tau = nnx.data(Leaf((), (), "constant", math.log(config.tau_init), group="tau"))

    def tower(self, tower: Tower) -> Any:
        """The module that encodes queries or documents."""
        return self.query_tower if tower == "query" or self.document_tower is None else self.document_tower


def build_tower(backbone: Backbone, tower: Tower) -> Any:
    """One tower with a `Leaf` in place of every array."""
    match backbone:
        case qwen2.Qwen2Config():
            return qwen2.Qwen2(backbone)
        case bert.BertConfig():
            return bert.Bert(backbone)
        case sparse_mlp.SparseMlpConfig():
            return sparse_mlp.SparseMlp(backbone, tower)


def _tower_of(config: DualEncoderConfig, tower: Tower) -> Any:
    plain = build_tower(config.backbone, tower)
    return plain if config.lora is None else lora.adapt(plain, config.lora, _projections(config.backbone))


def _projections(backbone: Backbone) -> dict[str, int]:
    """Names of the projections that LoRA may adapt, and how many axes of each are inputs."""
    match backbone:
        case qwen2.Qwen2Config():
            return qwen2.PROJECTIONS
        case bert.BertConfig():
            return bert.PROJECTIONS
        case sparse_mlp.SparseMlpConfig():
            return {}


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


def groups(config: DualEncoderConfig) -> Any:
    """The parameter group of every leaf, a tree like the model: weights | no_decay | tables | tau | frozen."""
    return jax.tree.map(lambda leaf: leaf.group, abstract(config))


def trainable(model: DualEncoder) -> DualEncoder:
    """The model with None in the place of every frozen leaf: what has a gradient and optimiser state."""
    return jax.tree.map(lambda leaf, group: None if group == "frozen" else leaf, model, groups(model.config))


def with_trainable(model: DualEncoder, parameters: DualEncoder) -> DualEncoder:
    """The model with these trainable leaves and its own frozen ones."""
    return jax.tree.map(lambda new, old: old if new is None else new, parameters, model, is_leaf=lambda x: x is None)


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
    model: DualEncoder, tower: Tower, texts: Tokens | PackedTokens | IdFeatures, rules: Rules = RULES
) -> jax.Array:
    """Unit vectors float32[n, D], text for text; a slot without text (length 0) gives zeros.

    Normalisation is float32 whatever the compute dtype.
    """
    return normalise(pooled(model, tower, texts, rules))


def pooled(
    model: DualEncoder,
    tower: Tower,
    texts: Tokens | PackedTokens | IdFeatures,
    rules: Rules = RULES,
    remat: Remat | None = None,
) -> jax.Array:
    """The towers' vectors before normalisation, float32[n, D]; zeros for a slot without text.

    Args:
      remat: instead of the config's.
    """
    config, encoder = model.config, model.tower(tower)
    dtype = jnp.dtype(config.dtype)
    if isinstance(texts, IdFeatures):
        known = (texts.ids > 0).any(axis=1) | (texts.bags > 0).any(axis=(1, 2))
        vector = sparse_mlp.forward(encoder, texts, dtype=dtype, rules=rules).astype(jnp.float32)
        return jnp.where(known[:, None], vector, jnp.zeros_like(vector))
    hidden, _ = hidden_states(
        encoder, texts, dtype=dtype, remat=remat or config.remat, rules=rules, attention_scores=config.attention_scores
    )
    if isinstance(texts, PackedTokens):
        return pool_packed(hidden, texts, config.pooling, rules)
    return pool(hidden, texts.length, config.pooling, rules)


def hidden_states(
    encoder: qwen2.Qwen2 | bert.Bert,
    texts: Tokens | PackedTokens,
    *,
    dtype: jnp.dtype,
    remat: Remat = "none",
    rules: Rules = RULES,
    attention_scores: int | None = None,
    keep: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """A tower's token states [rows, T, E]; with `keep` also every block's output [L, rows, T, E]."""
    match texts:
        case PackedTokens(ids=ids, segment=segment_ids, position=positions):
            rows = rules.used(("batch", None))
            shape = (ids.shape[0] * ids.shape[1], ids.shape[2])
            ids, segment_ids, positions = (_reshaped(x, shape, rows) for x in (ids, segment_ids, positions))
        case Tokens(ids=ids, length=length):
            places = jnp.arange(ids.shape[1], dtype=jnp.int32)
            positions = reshard(jnp.broadcast_to(places[None], ids.shape), rules.used(("batch", None)))
            segment_ids = (positions < length[:, None]).astype(jnp.int32)
    match encoder:
        case qwen2.Qwen2():
            forward = qwen2.forward
        case bert.Bert():
            forward = bert.forward
    return forward(
        encoder, ids, segment_ids, positions,
        dtype=dtype, remat=remat, rules=rules, attention_scores=attention_scores, keep=keep,
    )  # fmt: skip


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
