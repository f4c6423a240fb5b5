"""The sparse model: hashed ids, one embedding table a field, an MLP.

Letters: n rows, F single-valued fields, G multi-valued fields (bags), M ids a bag, W table width, D output width.
Row 0 of every table is out-of-vocabulary and padding; it stays zero: a padded bag slot adds nothing, and a document
that a language model wrote, which has no video or author id, still gets its vector from its keyword bags.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp

from crops_jax.batch import IdFeatures
from crops_jax.errors import InputError
from crops_jax.models.config import SparseMlpConfig
from crops_jax.models.layers import lookup
from crops_jax.models.pytree import nnx
from crops_jax.parallel.sharding import Leaf, Rules


class SparseMlp(nnx.Module):
    """One sparse tower. Built, its leaves are `Leaf`s; `init` fills them."""

    def __init__(self, c: SparseMlpConfig, tower: Literal["query", "document"]):
        fields, bags = c.ids.query_tables if tower == "query" else c.ids.doc_tables
        self.fields, self.bags = len(fields), len(bags)

        def table(rows: int) -> Leaf:
            axes = ("vocab", "embed")
            return Leaf((rows, c.table_width), axes, scale=c.init_std, group="tables", zero_row=True)

        tables = (*fields, *bags)
        widths = (len(tables) * c.table_width, *c.hidden, c.width)
        pairs = list(pairwise(widths))
        self.tables = nnx.data([table(rows) for rows in tables])
        self.weights = nnx.data([Leaf((i, o), (None, None), scale=(2 / i) ** 0.5) for i, o in pairs])
        self.biases = nnx.data([Leaf((o,), (None,), "constant", 0.0, group="no_decay") for _, o in pairs])


def forward(model: SparseMlp, features: IdFeatures, *, dtype: jnp.dtype, rules: Rules) -> jax.Array:
    """The tower's output before normalisation, [n, D] in `dtype`; a row of zero ids gives the biases' image.

    Bags are averaged over their non-zero ids. Gradients reach only the rows that were looked up, and never row 0.
    """
    _check(model, features)
    count = model.fields
    parts = [_embed(model.tables[f], features.ids[:, f : f + 1], dtype, rules) for f in range(count)]
    parts += [_embed(model.tables[count + g], features.bags[:, g], dtype, rules) for g in range(model.bags)]
    x = jnp.concatenate(parts, axis=-1)
    for depth, (w, b) in enumerate(zip(model.weights, model.biases, strict=True)):
        x = jax.nn.relu(x) if depth else x
        x = x @ w.astype(dtype) + b.astype(dtype)[None]
    return x


def _check(model: SparseMlp, features: IdFeatures) -> None:
    found, wanted = (features.ids.shape[1], features.bags.shape[1]), (model.fields, model.bags)
    if found != wanted:
        raise InputError("id features", f"(fields, bags) = {found}, but the tower has tables for {wanted}")


def _embed(table: jax.Array, ids: jax.Array, dtype: jnp.dtype, rules: Rules) -> jax.Array:
    """Mean embedding over the non-zero ids of each row, [n, W]; zeros for a row without ids."""
    known = ids > 0
    rows = jnp.where(known[:, :, None], lookup(table, ids, dtype, rules), jnp.zeros((), dtype))
    return rows.sum(axis=1) / jnp.maximum(known.sum(axis=1, keepdims=True), 1).astype(dtype)
