"""What every in-batch loss shares: logits against the gathered batch, masks, a safe log-sum-exp, means by label.

Shape letters: B queries, K documents a query, N = B*K documents, D embedding. Groups are contiguous (batch.py).
"In-batch" means the global batch: under an explicit mesh queries and documents are sharded on their first axis, each
group whole on one device, and `all_gather_rows` is the one place where documents cross devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, P

from crops_jax.batch import Batch

NEG = -1e30  # "masked": finite, because logaddexp(-inf, -inf) has a NaN gradient
LABELS = (1, 2, 3, 4, 5)

Loss = Callable[[Array, Array, Array, Batch], tuple[Array, "LossAux"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossAux:
    """What a loss tells beside its value. Per-label entries are for labels 1..5; an absent label has 0."""

    label_loss: Array  # float[5]; mean row loss of the anchors with that label
    label_cosine: Array  # float[5]; mean cosine of the query with its own documents of that label
    label_count: Array  # int32[5]; valid documents with that label
    masked_duplicates: Array  # int32; (query, other group's document) pairs dropped: the query owns that document
    masked_same_query: Array  # int32; pairs dropped because the other group belongs to the same query string
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
    """Scaled similarities of one batch and the masks that hold for every loss."""

    logits: Array  # float[B, N]; cosine / tau, every query against every document of the global batch
    own: Array  # float[B, K]; the same numbers for the query's own documents, row by row
    cosine: Array  # float[B, K]
    off_group: Array  # bool[B, N]; document is an in-batch negative of the query (section 10.7, rules 1, 2, 8)
    valid: Array  # bool[B, K]
    label: Array  # int32[B, K]; 0 on padding
    masked_duplicates: Array  # int32
    masked_same_query: Array  # int32


def all_gather_rows(x: Array) -> Array:
    """`x` with every row on every device: the batch-wide all-gather. Without an explicit mesh, `x` itself.

    Its transpose sums the devices' cotangents and keeps each device's own rows.
    """
    sharded = any(entry is not None for entry in jax.typeof(x).sharding.spec)
    return jax.reshard(x, P(*[None] * x.ndim)) if sharded else x


def rows_like(x: Array, like: Array) -> Array:
    """`x` with its first axis sharded as the first axis of `like` and the rest replicated."""
    if jax.typeof(x).sharding.mesh.empty and jax.typeof(like).sharding.mesh.empty:
        return x
    return jax.reshard(x, P(jax.typeof(like).sharding.spec[0], *[None] * (x.ndim - 1)))


def by_group(x: Array, e_query: Array) -> Array:
    """[N, ...] to [B, K, ...], sharded as the queries; local, because groups are whole on their device."""
    rows, queries = x.shape[0], e_query.shape[0]
    return rows_like(x, e_query).reshape(queries, rows // queries, *x.shape[1:])


def score(e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, mask_duplicate_ids: bool) -> Scores:
    """Logits in at least fp32 and the masks of section 10.7.

    Args:
      e_query: float[B, D], L2-normalised.
      e_doc: float[N, D], L2-normalised; padding rows may hold anything, NaN too.
      log_tau: float scalar; tau = exp(log_tau) is clipped after the update, never here.
      mask_duplicate_ids: drop an off-group copy of a document that the query's own group holds, whatever its label.

    Raises:
      ValueError: N is not a multiple of B.
    """
    if e_doc.shape[0] % e_query.shape[0]:
        raise ValueError(f"{e_doc.shape[0]} documents do not make equal groups for {e_query.shape[0]} queries")
    e_query = rows_like(jnp.asarray(e_query), e_query)
    e_doc = rows_like(jnp.asarray(e_doc), e_query)
    # At least fp32: bf16 logits near 33 lie 0.125 to 0.25 apart.
    dtype = jnp.float64 if e_query.dtype == jnp.float64 else jnp.float32
    valid = by_group(jnp.asarray(batch.valid), e_query)
    own_docs = by_group(e_doc.astype(dtype), e_query)
    own_docs = jnp.where(valid[:, :, None], own_docs, 0)  # 0 * NaN would poison the queries' gradient
    queries = jnp.where(valid.any(axis=1)[:, None], e_query.astype(dtype), 0)
    gathered = all_gather_rows(own_docs.reshape(e_doc.shape))
    inverse_tau = jnp.exp(-jnp.asarray(log_tau).astype(dtype))
    exact = jax.lax.Precision.HIGHEST  # the default on TPU and GPU rounds fp32 products to bf16 or tf32
    logits = jnp.einsum("qd,nd->qn", queries, gathered, precision=exact) * inverse_tau
    cosine = jnp.einsum("qd,qkd->qk", queries, own_docs, precision=exact)
    off_group, duplicates, same_query = _off_group(batch, e_query, valid, mask_duplicate_ids)
    label = jnp.where(valid, by_group(jnp.asarray(batch.label), e_query), 0)
    return Scores(logits, cosine * inverse_tau, cosine, off_group, valid, label, duplicates, same_query)


def _off_group(batch: Batch, e_query: Array, valid: Array, mask_duplicate_ids: bool) -> tuple[Array, Array, Array]:
    """bool[B, N] in-batch negatives, and how many pairs the duplicate and the same-query rule dropped."""
    query_key = rows_like(jnp.asarray(batch.query_key), e_query)
    doc_key = jnp.where(valid, by_group(jnp.asarray(batch.doc_key), e_query), -1)
    own_slot = rows_like(jnp.arange(valid.shape[0], dtype=jnp.int32), e_query)
    own = [jnp.broadcast_to(x[:, None], valid.shape) for x in (own_slot, query_key)]
    facts = jnp.stack([*own, doc_key, valid.astype(jnp.int32)], axis=-1).reshape(-1, 4)
    facts = all_gather_rows(facts)  # one small collective for all integers
    group_of_doc, query_of_doc, keys, real = facts[:, 0], facts[:, 1], facts[:, 2], facts[:, 3] > 0

    real = real[None, :] & valid.any(axis=1)[:, None]
    elsewhere = real & (own_slot[:, None] != group_of_doc[None, :])
    other_query = query_key[:, None] != query_of_doc[None, :]
    same_query = jnp.sum(elsewhere & ~other_query, dtype=jnp.int32)
    off_group = elsewhere & other_query
    if not mask_duplicate_ids:
        return off_group, jnp.zeros((), jnp.int32), same_query
    owned = jnp.any(doc_key[:, :, None] == keys[None, None, :], axis=1)  # fused: no [B, K, N] array is ever made
    return off_group & ~owned, jnp.sum(off_group & owned, dtype=jnp.int32), same_query


@jax.custom_jvp
def masked_lse(x: Array, mask: Array) -> Array:
    """log sum exp over the last axis of the entries where `mask` holds; `NEG` where it holds nowhere.

    `where` stands on both sides of exp and log, so masked entries give neither value nor gradient, nor NaN.
    """
    top = jnp.max(jnp.where(mask, x, NEG), axis=-1, keepdims=True)
    total = jnp.sum(jnp.where(mask, jnp.exp(jnp.where(mask, x - top, 0)), 0), axis=-1)
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top[..., 0], NEG)


@masked_lse.defjvp
def _masked_lse_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Its derivative is the softmax: stated, so that one [B, N] array waits for the backward pass and not four."""
    x, mask = primals
    value = masked_lse(x, mask)
    share = jnp.exp(jnp.where(mask, x - value[..., None], 0))
    return value, jnp.sum(share * jnp.where(mask, tangents[0], 0), axis=-1)


def anchor_weights(anchor: Array, reduction: str, dtype: jnp.dtype) -> Array:
    """float[B, K] row weights of the anchors (section 10.1); all zero when the batch has no anchor.

    mean: 1 / anchors in the global batch; sum: 1; per_query: 1 / (queries with an anchor * anchors of the query).
    """
    picked = anchor.astype(dtype)
    match reduction:
        case "sum":
            return picked
        case "mean":
            return picked / jnp.maximum(picked.sum(), 1)
        case "per_query":
            queries = jnp.maximum(anchor.any(axis=1).astype(dtype).sum(), 1)
            return picked / (queries * jnp.maximum(picked.sum(axis=1, keepdims=True), 1))
        case _:
            raise ValueError(f"reduction {reduction!r} is none of mean, sum, per_query")


def reduce_rows(row_loss: Array, row_weight: Array, anchor: Array, scores: Scores) -> tuple[Array, LossAux]:
    """The weighted sum of row losses ([B, K] each) and everything told beside it."""
    row_loss = jnp.where(anchor, row_loss, 0)
    loss = jnp.sum(row_loss * row_weight)
    is_label = scores.label[:, :, None] == jnp.asarray(LABELS, jnp.int32)[None, None, :]
    aux = LossAux(
        label_loss=_mean_where(row_loss, is_label & anchor[:, :, None]),
        label_cosine=_mean_where(scores.cosine, is_label),
        label_count=jnp.sum(is_label, axis=(0, 1), dtype=jnp.int32),
        masked_duplicates=scores.masked_duplicates,
        masked_same_query=scores.masked_same_query,
        row_loss=row_loss.reshape(-1),
        row_cosine=jnp.where(scores.valid, scores.cosine, 0).reshape(-1),
        row_weight=row_weight.reshape(-1),
    )
    return loss, jax.lax.stop_gradient(aux)


def _mean_where(x: Array, mask: Array) -> Array:
    """Mean of x[B, K] over the rows chosen by mask[B, K, L], for each of the L columns; 0 where none is chosen."""
    total = jnp.sum(jnp.where(mask, x[:, :, None], 0), axis=(0, 1))
    return total / jnp.maximum(jnp.sum(mask, axis=(0, 1), dtype=jnp.int32), 1).astype(x.dtype)
