"""Noise-contrastive estimation in the two readings of the paper's NCE row.

`hardest`: the ANCE paper's baseline of that name, the hardest in-batch negative of each positive. `binary`: the
estimator of Gutmann and Hyvarinen (2010), which tells a positive from noise whose probability is known.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from crops_jax.batch import Batch
from crops_jax.losses.common import LossAux, anchor_weights, reduce_rows, score
from crops_jax.losses.config import NCEConfig
from crops_jax.losses.in_batch import in_batch_pairs
from crops_jax.losses.lse import NEG


def nce(e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: NCEConfig) -> tuple[Array, LossAux]:
    """The mean over positives: (loss, aux). Noise are the documents of other queries; shapes as in `common.score`.

    hardest: softplus(max z- - z+). binary: softplus(-G(+)) + sum over the k noise documents of softplus(G(-)), with
    G = z - log(k p) and p = 1 / `noise_documents`, uniform noise.
    """
    scores = score(e_query, e_doc, log_tau, batch)
    logits, negative, dropped = in_batch_pairs(scores.queries, scores.docs, config.mask_duplicate_ids)
    positive = scores.valid & (scores.label >= config.min_positive_label)
    match config.mode:
        case "hardest":
            hardest = jnp.max(jnp.where(negative, logits, NEG), axis=1)
            row_loss = jax.nn.softplus(hardest[:, None] - scores.own)
        case "binary":
            count = negative.sum(axis=1).astype(logits.dtype)
            shift = jnp.log(jnp.maximum(count, 1)) - math.log(config.noise_documents)
            noise = jnp.sum(jnp.where(negative, jax.nn.softplus(logits - shift[:, None]), 0), axis=1)
            row_loss = jax.nn.softplus(shift[:, None] - scores.own) + noise[:, None]
    weights = anchor_weights(positive.astype(row_loss.dtype), "mean")
    return reduce_rows(row_loss, weights, positive, scores, dropped)
