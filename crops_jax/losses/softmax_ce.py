"""Softmax cross-entropy with graded targets (Magnani et al. 2022).

One softmax a query over all documents, its own and in-batch, without a label mask; the targets share probability
among the query's own documents by grade. Raising a low grade competes with the higher ones of the same group: the
defect the paper points at, kept here on purpose as its Table 4 baseline.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from crops_jax.batch import Batch
from crops_jax.losses.common import LossAux, reduce_rows, score
from crops_jax.losses.config import SoftmaxCEConfig
from crops_jax.losses.in_batch import in_batch_lse
from crops_jax.losses.lse import masked_lse


def softmax_ce(
    e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: SoftmaxCEConfig
) -> tuple[Array, LossAux]:
    """L = mean_q (D_q - sum_i p_i z_i): (loss, aux). Row i holds D_q - z_i, its weight holds p_i over the queries.

    D_q is the log-sum-exp over the query's own and in-batch documents. Shapes and dtypes as in `common.score`.
    """
    scores = score(e_query, e_doc, log_tau, batch)
    off, dropped = in_batch_lse(scores.queries, scores.docs, config.mask_duplicate_ids)
    every = jnp.logaddexp(off, masked_lse(scores.own, scores.valid))
    targets = _targets(scores.label, config, every.dtype)
    return reduce_rows(every[:, None] - scores.own, targets, scores.valid, scores, dropped)


def _targets(label: Array, config: SoftmaxCEConfig, dtype: jnp.dtype) -> Array:
    """float[B, K]: p_i of every own document, divided by the queries that have one where the mean is asked for."""
    grade = label.astype(dtype)
    gain = grade if config.gain == "linear" else jnp.exp2(grade) - 1
    total = gain.sum(axis=1, keepdims=True)
    share = gain / jnp.where(total > 0, total, 1) if config.form == "normalised" else gain
    queries = (total > 0).astype(dtype).sum()
    return share / jnp.maximum(queries, 1) if config.reduction == "mean" else share
