"""GradCache: the batch that the loss sees may be larger than the one whose activations fit into memory.

Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". All texts are encoded in
micro-batches of which only the vectors are kept; the loss on all vectors gives its gradient with respect to them; then
each micro-batch is encoded once more, to carry its vectors' gradient back to the parameters, where these are summed.
In JAX this is a scan over micro-batches whose body is rematerialised: the gradient is the direct one but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from crops_jax.batch import IdFeatures, PackedTokens, Tokens
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder
from crops_jax.models.config import Tower
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.parallel.sharding import RULES, Axes, Rules
from crops_jax.training.config import GradCacheConfig

Texts = Tokens | PackedTokens | IdFeatures


def encode(model: DualEncoder, tower: Tower, texts: Texts, config: GradCacheConfig, rules: Rules = RULES) -> jax.Array:
    """`dual_encoder.encode`, in as many micro-batches as `config` has for this tower.

    Raises:
      InputError: they do not divide the texts.
    """
    parts = config.query_micro_batches if tower == "query" else config.doc_micro_batches
    if parts == 1:
        return dual_encoder.encode(model, tower, texts, rules)
    return dual_encoder.normalise(pooled(model, tower, texts, parts, rules))


def pooled(model: DualEncoder, tower: Tower, texts: Texts, parts: int, rules: Rules = RULES) -> jax.Array:
    """`dual_encoder.pooled`, float32[n, D], from `parts` micro-batches.

    Every device always has work: a micro-batch holds an equal part of the rows of each.

    Raises:
      InputError: `parts` does not divide the rows.
    """

    loop = dual_encoder.training_loop(model.config)._replace(remat="none")

    # Inside a scan the compiler cannot merge the two passes anyway.
    @partial(jax.checkpoint, prevent_cse=False)
    def vectors(model: DualEncoder, texts: Texts) -> jax.Array:
        return dual_encoder.pooled(model, tower, texts, rules, loop)

    match texts:
        case PackedTokens():
            shards, slots = texts.first.shape
            shape, layout = (shards * slots, model.config.backbone.width), rules.used(("batch", None))
            total = jnp.zeros(shape, jnp.float32, out_sharding=layout)

            # A text lies in one row: the other micro-batches give zeros for it.
            def add(total: jax.Array, part: PackedTokens) -> tuple[jax.Array, None]:
                return total + vectors(model, part), None

            return jax.lax.scan(add, total, _split_packed(texts, tower, parts))[0]
        case _:
            split = _split_rows(texts, tower, parts, rules)
            return _joined_rows(jax.lax.map(partial(vectors, model), split), rules)


def _split_rows(texts: Tokens | IdFeatures, tower: Tower, parts: int, rules: Rules) -> Any:
    """Every array [n, ...] as [parts, n/parts, ...]; no row leaves its device."""

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % parts:
            knobs = "input.batch_queries" + (", input.docs_per_query" if tower == "document" else "")
            raise _misfit(tower, parts, f"{x.shape[0]} rows of a device", knobs)
        return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])

    return jax.tree.map(lambda x: _on_each_device(split, x, ("batch",), (None, "batch"), rules), texts)


def _joined_rows(vectors: jax.Array, rules: Rules) -> jax.Array:
    """float32[parts, n/parts, D] as [n, D], back in the order of the texts."""

    def join(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] * x.shape[1], x.shape[2])

    return _on_each_device(join, vectors, (None, "batch"), ("batch",), rules)


def _on_each_device(f: Callable[[jax.Array], jax.Array], x: jax.Array, before: Axes, after: Axes, rules: Rules) -> Any:
    """`f` on every device's part of `x`: a reshape that says which part of the rows stays where."""
    if jax.sharding.get_abstract_mesh().empty:
        return f(x)
    return jax.shard_map(f, in_specs=rules.used(before), out_specs=rules.used(after))(x)


def _split_packed(texts: PackedTokens, tower: Tower, parts: int) -> PackedTokens:
    """Packed texts with a leading axis of `parts`: each has an equal part of every shard's rows, and the texts in them.

    A text keeps its number; where it lies in another part, its length is 0 here.
    """
    shards, rows, width = texts.ids.shape
    if rows % parts:
        kind = "query" if tower == "query" else "doc"
        raise _misfit(tower, parts, f"{rows} rows of a shard", f"input.packing.{kind}_rows, input.shards")

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(shards, parts, rows // parts, *x.shape[2:]), 1, 0)

    slots = rows // parts * width
    first = texts.first[None] - slots * jnp.arange(parts, dtype=jnp.int32)[:, None, None]
    inside = (first >= 0) & (first < slots)
    return PackedTokens(
        ids=split(texts.ids),
        segment=split(texts.segment),
        position=split(texts.position),
        first=first,
        length=jnp.where(inside, texts.length[None], 0),
        states=None if texts.states is None else split(texts.states),
    )


def _misfit(tower: Tower, parts: int, rows: str, knobs: str) -> InputError:
    name = "query_micro_batches" if tower == "query" else "doc_micro_batches"
    return InputError(f"gradcache.{name} = {parts}", f"does not divide the {rows}; change it, or {knobs}")
