"""Queries against documents of other groups: logits, and which of these documents are negatives.

Shape letters: b queries and n documents (those of a batch, a device or a tile), K documents of a query or known
to be positives of it, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Queries:
    """The rows of the product."""

    vector: Array  # float[b, D]; divided by tau, so that a product with a document is a logit; 0 on padding
    key: Array  # int32[b, 2]; equal keys are equal query strings
    owned: Array  # int32[b, K, 2]; keys of the group's documents and of known positives, -1 on padding
    real: Array  # bool[b]; the group has a document


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Documents:
    """Its columns: two arrays, because they travel between devices."""

    vector: Array  # float[n, D]; 0 on padding
    keys: Array  # int32[n, 4]; the owning query's key, and the document's own: -1 on padding


def pairs(queries: Queries, docs: Documents, mask_duplicate_ids: bool) -> tuple[Array, Array, Array]:
    """(logits float[b, n], negative bool[b, n], dropped int32[b, 2]): every query against every document.

    `negative` holds where the document is real and of another query string, and, with `mask_duplicate_ids`, is no
    copy of a document that the query owns. `dropped` counts what each query leaves out: those copies, and the
    documents under its own query string (its own group is among them).
    """
    query_of_doc, key = docs.keys[:, :2], docs.keys[:, 2:]
    real = queries.real[:, None] & (key[:, 0] >= 0)[None, :]
    same_query = real & _same(queries.key[:, None], query_of_doc[None, :])
    negative = real & ~same_query
    copies = jnp.zeros_like(negative)
    if mask_duplicate_ids:
        # XLA fuses these: [b, K, n] is never in memory.
        copies = negative & jnp.any(_same(queries.owned[:, :, None], key[None, None, :]), axis=1)
    dropped = jnp.stack([jnp.sum(x, axis=1, dtype=jnp.int32) for x in (copies, same_query)], axis=1)
    return product("qd,nd->qn", queries.vector, docs.vector), negative & ~copies, dropped


def _same(a: Array, b: Array) -> Array:
    """Whether keys int32[..., 2] are equal, broadcast."""
    return (a[..., 0] == b[..., 0]) & (a[..., 1] == b[..., 1])


def product(subscripts: str, a: Array, b: Array) -> Array:
    """einsum at full precision: the default on TPU and GPU rounds fp32 factors to bf16 or tf32."""
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST)
