"""Pairwise logistic losses: a document against each lower-graded one, softplus(z of the lower - z of the higher).

Recipes of the literature are settings of one mean over pairs:
  ANCE (Xiong et al. 2021)          positives against the negatives of their own group alone.
  STAR (Zhan et al. 2021)           positives against all documents of the batch.
  FS-LR (Zheng et al. 2024)         every graded document against all lower ones, in-batch documents being the lowest.
  FS-LR with LambdaRank's weights   the same, each pair weighted by what swapping the two would change in NDCG.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, P

from crops_jax.batch import Batch
from crops_jax.losses.common import LossAux, Scores, reduce_rows, rows_like, score
from crops_jax.losses.config import PairwiseConfig
from crops_jax.losses.in_batch import in_batch_pairs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Columns:
    """What a query's documents are compared with: its own documents and, where asked for, those of other queries."""

    logit: Array  # float[B, M]
    grade: Array  # int32[B, M]; 0 for other queries' documents
    present: Array  # bool[B, M]
    weight: Array  # float[B, M]


def pairwise(
    e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: PairwiseConfig
) -> tuple[Array, LossAux]:
    """The mean over the pairs of the global batch, or LambdaRank's sum over a query's, averaged: (loss, aux).

    A document's row is the mean of its pairs, its weight their share. B * K * (K + N) numbers are made where in-batch
    documents take part. Shapes and dtypes as in `common.score`.
    """
    scores = score(e_query, e_doc, log_tau, batch)
    columns, dropped = _columns(scores, config)
    anchor = scores.valid & (scores.label >= config.min_anchor_label)
    lower = columns.present[:, None, :] & (columns.grade[:, None, :] < scores.label[:, :, None])  # [B, K, M]
    pair = jnp.where(anchor[:, :, None] & lower, columns.weight[:, None, :], 0)
    if config.lambda_rank:
        pair = pair * jax.lax.stop_gradient(_swap_gain(columns, scores.own.shape[1]))
    each = pair * jax.nn.softplus(columns.logit[:, None, :] - scores.own[:, :, None])
    weight = pair.sum(axis=2)
    row_loss = each.sum(axis=2) / jnp.where(weight > 0, weight, 1)
    queries = anchor.any(axis=1).sum().astype(weight.dtype)
    share = weight / jnp.maximum(queries if config.lambda_rank else weight.sum(), jnp.finfo(weight.dtype).tiny)
    return reduce_rows(row_loss, share, anchor, scores, dropped)


def _columns(scores: Scores, config: PairwiseConfig) -> tuple[_Columns, Array]:
    """The columns, and the counts of what was left out (as of `pairs`)."""
    ones = jnp.ones_like(scores.own)
    own = _Columns(scores.own, scores.label, scores.valid, ones)
    if not config.in_batch:
        return own, jnp.zeros((scores.label.shape[0], 2), jnp.int32)
    logits, negative, dropped = in_batch_pairs(scores.queries, scores.docs, config.mask_duplicate_ids)
    off = _Columns(logits, jnp.zeros_like(logits, jnp.int32), negative, jnp.full_like(logits, config.in_batch_weight))
    parts = zip(vars(own).values(), vars(off).values(), strict=True)
    return _Columns(*[jnp.concatenate([rows_like(a, logits), b], axis=1) for a, b in parts]), dropped


def _swap_gain(columns: _Columns, own: int) -> Array:
    """float[B, own, M]: |2^l - 2^m| |1/log2(1 + r_l) - 1/log2(1 + r_m)| / IDCG, ranks r by the current logits.

    Args:
      own: the first columns are the query's own documents.
    """
    split = jax.typeof(columns.logit).sharding.spec[0]
    gain = partial(_swap_gain_here, own=own)
    # Sorting wants all its arrays laid out alike, also those that it makes itself: on each device it has one layout.
    return jax.shard_map(gain, in_specs=P(split), out_specs=P(split))(columns) if split else gain(columns)


def _swap_gain_here(columns: _Columns, own: int) -> Array:
    lowest = jnp.where(columns.present, columns.logit, -jnp.inf)
    order = jnp.argsort(-lowest, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1, stable=True) + 1
    discount = 1 / jnp.log2(1 + rank.astype(columns.logit.dtype))
    gain = jnp.exp2(columns.grade.astype(columns.logit.dtype))
    places = 1 / jnp.log2(2 + jnp.arange(columns.grade.shape[1], dtype=columns.logit.dtype))
    best = jnp.sort(jnp.where(columns.present, gain - 1, 0), axis=1)[:, ::-1]
    ideal = jnp.sum(best * places[None, :], axis=1)
    swap = jnp.abs(gain[:, :own, None] - gain[:, None, :]) * jnp.abs(discount[:, :own, None] - discount[:, None, :])
    return swap / jnp.where(ideal > 0, ideal, 1)[:, None, None]
