"""InfoNCE in the two readings of the paper's ablations.

`infonce_binary` (Table 3, "binary label"): every document graded as positive is an anchor; the group's other
documents and all other queries' are its negatives; the group's other positives are masked. It is H-InfoNCE after the
grades are folded to {1, 0}.

`infonce_per_positive` (Table 4): one training example is one anchor with its strictly lower-graded documents. A row
is then the same as H-InfoNCE's row, but a step holds fewer documents and a document is encoded again for every anchor
above it: twice the work of H-InfoNCE in the paper. `labels.one_anchor_groups` cuts groups to such examples.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from crops_jax.batch import Batch
from crops_jax.losses.common import LossAux, anchor_weights, reduce_rows, score
from crops_jax.losses.config import InfoNCEBinaryConfig, InfoNCEPerPositiveConfig
from crops_jax.losses.h_infonce import graded_rows
from crops_jax.losses.in_batch import in_batch_lse


def infonce_binary(
    e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: InfoNCEBinaryConfig
) -> tuple[Array, LossAux]:
    """Row losses of the positives: (loss, aux). Shapes and dtypes as in `common.score`."""
    scores = score(e_query, e_doc, log_tau, batch)
    off, dropped = in_batch_lse(scores.queries, scores.docs, config.mask_duplicate_ids)
    positive = scores.valid & (scores.label >= config.min_positive_label)
    row_loss = graded_rows(scores, positive.astype(jnp.int32), off[:, None])
    weights = anchor_weights(positive.astype(row_loss.dtype), config.reduction)
    return reduce_rows(row_loss, weights, positive, scores, dropped)


def infonce_per_positive(
    e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: InfoNCEPerPositiveConfig
) -> tuple[Array, LossAux]:
    """Row losses of each group's highest grade, all of them if several share it: (loss, aux)."""
    scores = score(e_query, e_doc, log_tau, batch)
    off, dropped = in_batch_lse(scores.queries, scores.docs, config.mask_duplicate_ids)
    anchor = scores.valid & (scores.label == scores.label.max(axis=1)[:, None])
    row_loss = graded_rows(scores, scores.label, off[:, None])
    weights = anchor_weights(anchor.astype(row_loss.dtype), config.reduction)
    return reduce_rows(row_loss, weights, anchor, scores, dropped)
