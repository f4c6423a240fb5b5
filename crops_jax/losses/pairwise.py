"""Pairwise logistic loss: each positive of a query against each lower-graded document of its own group.

ANCE (Xiong et al. 2021) trains on it: a softmax over one positive and one negative is softplus(f(q, d-) - f(q, d+)).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from crops_jax.batch import Batch
from crops_jax.losses.common import LossAux, reduce_rows, score
from crops_jax.losses.config import PairwiseConfig


def pairwise(
    e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: PairwiseConfig
) -> tuple[Array, LossAux]:
    """The mean over all (query, positive, negative) triples of the global batch: (loss, aux).

    A positive's row is its mean over its negatives, its weight their share of the triples. Shapes and dtypes as in
    `common.score`. Other groups' documents take no part.
    """
    scores = score(e_query, e_doc, log_tau, batch)
    anchor = scores.valid & (scores.label >= config.min_positive_label)
    lower = scores.valid[:, None, :] & (scores.label[:, None, :] < scores.label[:, :, None])  # [B, positive, negative]
    triple = (anchor[:, :, None] & lower).astype(scores.own.dtype)
    each = jax.nn.softplus(scores.own[:, None, :] - scores.own[:, :, None])
    count = triple.sum(axis=2)
    row_loss = jnp.sum(each * triple, axis=2) / jnp.maximum(count, 1)
    dropped = jnp.zeros((scores.label.shape[0], 2), jnp.int32)
    return reduce_rows(row_loss, count / jnp.maximum(count.sum(), 1), anchor, scores, dropped)
