"""What every in-batch loss shares: the scores of a batch, weights of its anchors, means by label.

Shape letters: B queries, K documents a query, N = B*K documents, D embedding. Groups are contiguous (batch.py).
Under an explicit mesh queries and documents are sharded on their first axis, each group whole on one device; the part
of a loss within groups needs no communication, and `in_batch` is where the global batch comes together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, P

from crops_jax.batch import Batch
from crops_jax.losses.pairs import Documents, Queries, product

LABELS = (1, 2, 3, 4, 5)

Loss = Callable[[Array, Array, Array, Batch], tuple[Array, "LossAux"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossAux:
    """What a loss tells beside its value. Per-label entries are for labels 1..5; an absent label has 0."""

    label_loss: Array  # float[5]; mean row loss of the anchors with that label
    label_cosine: Array  # float[5]; mean cosine of the query with its own documents of that label
    label_count: Array  # int32[5]; valid documents with that label
    # int32; pairs of a query and another group's document that are dropped:
    masked_duplicates: Array  # the query owns or knows the document
    masked_same_query: Array  # the other group belongs to the same query string
    row_loss: Array  # float[N]; 0 on rows that are no anchor
    row_cosine: Array  # float[N]; 0 on padding
    row_weight: Array  # float[N]; loss = sum(row_weight * row_loss)

    def metrics(self) -> dict[str, Array]:
        """The scalars worth a log line, by name."""
        per_label = {"loss": self.label_loss, "cosine": self.label_cosine, "count": self.label_count}
        named = {f"{what}_label_{label}": values[i] for what, values in per_label.items()
                 for i, label in enumerate(LABELS)}  # fmt: skip
        return named | {"masked_duplicates": self.masked_duplicates, "masked_same_query": self.masked_same_query}


@dataclass(frozen=True)
class Scores:
    """One batch as its loss sees it: the groups' own scores, and both sides of the in-batch product."""

    own: Array  # float[B, K]; cosine / tau of the query and its own documents
    cosine: Array  # float[B, K]
    valid: Array  # bool[B, K]
    label: Array  # int32[B, K]; 0 on padding
    queries: Queries
    docs: Documents


def score(e_query: Array, e_doc: Array, log_tau: Array, batch: Batch) -> Scores:
    """The scores of a batch, in at least fp32.

    Args:
      e_query: float[B, D], L2-normalised.
      e_doc: float[N, D], L2-normalised; padding rows may hold anything, NaN too.
      log_tau: float scalar; tau = exp(log_tau) is clipped after the update, never here.

    Raises:
      ValueError: N is not a multiple of B.
    """
    if e_doc.shape[0] % e_query.shape[0]:
        raise ValueError(f"{e_doc.shape[0]} documents do not make equal groups for {e_query.shape[0]} queries")
    # At least fp32: bf16 logits near 33 lie 0.125 to 0.25 apart.
    dtype = jnp.float64 if e_query.dtype == jnp.float64 else jnp.float32
    valid = _by_group(batch.valid, e_query)
    own_docs = _by_group(e_doc, e_query).astype(dtype)
    own_docs = jnp.where(valid[:, :, None], own_docs, 0)  # 0 * NaN would poison the queries' gradient
    real = valid.any(axis=1)
    vector = jnp.where(real[:, None], rows_like(e_query, e_query).astype(dtype), 0)
    inverse_tau = jnp.exp(-jnp.asarray(log_tau).astype(dtype))
    cosine = product("qd,qkd->qk", vector, own_docs)
    key = rows_like(batch.query_key, e_query)
    owned = jnp.where(valid[:, :, None], _by_group(batch.doc_key, e_query), -1)
    keys = jnp.concatenate([jnp.broadcast_to(key[:, None], owned.shape), owned], axis=-1)
    if batch.known is not None:
        owned = jnp.concatenate([owned, rows_like(batch.known, e_query)], axis=1)
    return Scores(
        own=cosine * inverse_tau,
        cosine=cosine,
        valid=valid,
        label=jnp.where(valid, _by_group(batch.label, e_query), 0),
        queries=Queries(vector * inverse_tau, key, owned, real),
        docs=Documents(own_docs.reshape(e_doc.shape), keys.reshape(-1, 4)),
    )


def rows_like(x: Any, like: Array) -> Array:
    """`x` with its first axis sharded as the first axis of `like` and the rest replicated."""
    x = jnp.asarray(x)
    if jax.typeof(x).sharding.mesh.empty and jax.typeof(like).sharding.mesh.empty:
        return x
    return jax.reshard(x, P(jax.typeof(like).sharding.spec[0], *[None] * (x.ndim - 1)))


def _by_group(x: Any, e_query: Array) -> Array:
    """[N, ...] to [B, K, ...], sharded as the queries; local, because groups are whole on their device."""
    rows, queries = x.shape[0], e_query.shape[0]
    return rows_like(x, e_query).reshape(queries, rows // queries, *x.shape[1:])


def anchor_weights(share: Array, reduction: str) -> Array:
    """float[B, K] row weights of the anchors, whose shares are `share`[B, K], zero for what is none.

    mean: share / sum of shares in the global batch; sum: share; per_query: the mean over queries with an anchor of each
    one's own mean. All zero when the batch has no anchor.
    """
    match reduction:
        case "sum":
            return share
        case "mean":
            return share / _positive(share.sum())
        case "per_query":
            of_query = share.sum(axis=1, keepdims=True)
            queries = jnp.sum(of_query > 0).astype(share.dtype)
            return share / (_positive(queries) * _positive(of_query))
        case _:
            raise ValueError(f"reduction {reduction!r} is none of mean, sum, per_query")


def _positive(x: Array) -> Array:
    """`x`, and one where it is zero: a divisor of nothing."""
    return jnp.where(x > 0, x, jnp.ones_like(x))


def reduce_rows(
    row_loss: Array, row_weight: Array, anchor: Array, scores: Scores, dropped: Array
) -> tuple[Array, LossAux]:
    """The weighted sum of row losses ([B, K] each) and everything told beside it; `dropped` as of `pairs`."""
    row_loss = jnp.where(anchor, row_loss, 0)
    loss = jnp.sum(row_loss * row_weight)
    copies, same_query = jnp.sum(dropped, axis=0, dtype=jnp.int32)
    is_label = scores.label[:, :, None] == jnp.asarray(LABELS, jnp.int32)[None, None, :]
    aux = LossAux(
        label_loss=_mean_where(row_loss, is_label & anchor[:, :, None]),
        label_cosine=_mean_where(scores.cosine, is_label),
        label_count=jnp.sum(is_label, axis=(0, 1), dtype=jnp.int32),
        masked_duplicates=copies,
        masked_same_query=same_query - jnp.sum(scores.valid, dtype=jnp.int32),  # a query's own group is not in-batch
        row_loss=row_loss.reshape(-1),
        row_cosine=jnp.where(scores.valid, scores.cosine, 0).reshape(-1),
        row_weight=row_weight.reshape(-1),
    )
    return loss, jax.lax.stop_gradient(aux)


def _mean_where(x: Array, mask: Array) -> Array:
    """Mean of x[B, K] over the rows chosen by mask[B, K, L], for each of the L columns; 0 where none is chosen."""
    total = jnp.sum(jnp.where(mask, x[:, :, None], 0), axis=(0, 1))
    return total / jnp.maximum(jnp.sum(mask, axis=(0, 1), dtype=jnp.int32), 1).astype(x.dtype)
