"""H-InfoNCE (paper Eq. 3): every document contrasts with the lower-graded ones of its group and with other groups.

A document i of query q with grade l_i >= 1 is an anchor once, for its own query. Its row of the softmax keeps itself,
the documents of its group with a strictly lower grade, and all documents of other queries; documents of its group
with an equal or higher grade are masked, so that they are never pushed away by a lower one.

The in-batch part of a row depends on its query alone, so its log-sum-exp A_q is computed once a query; the rest of
the loss stays within groups. Four forms with equal values and gradients:
  `factored`   A_q from B x N logits: memory is smaller than the paper's by the factor K. The default.
  `streaming`  A_q from tiles of documents: O((B + N) D) memory. For when 4 * B * N bytes a device are too many.
  `ring`       as streaming, while the devices' documents go round: no device ever holds all N of them.
  `nxn`        the paper's: a label mask made by `vmap` over the rows of N x N logits. The test oracle.

Rules where the paper is silent (options of the config, or fixed here):
  - An off-group copy of a document that the query's own group holds is no negative (`mask_duplicate_ids`).
  - Two groups with the same query string (two searches for it) are one owner in the off-group test: neither sees the
    other's documents as negatives. The within-group part stays per group: a search's anchors contrast with the lower
    grades of that search, not with those of the other one, whose documents take part in its own rows.
  - The lowest grade of a group contrasts with other groups alone; `min_anchor_label` switches such anchors off.
  - Padding is masked on both sides and may hold NaN. A lone document in a batch of one query has loss 0, gradient 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, P

from crops_jax.batch import Batch
from crops_jax.losses.common import LossAux, Scores, anchor_weights, reduce_rows, rows_like, score
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.losses.in_batch import in_batch_lse, in_batch_pairs
from crops_jax.losses.lse import masked_lse


def h_infonce(
    e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: HInfoNCEConfig
) -> tuple[Array, LossAux]:
    """H-InfoNCE in every form but N x N: (loss, aux). Shapes and dtypes as in `common.score`."""
    scores = score(e_query, e_doc, log_tau, batch)
    off, dropped = in_batch_lse(scores.queries, scores.docs, config.mask_duplicate_ids, config.form, config.tile)
    anchor = _anchors(scores, config)
    row_loss = graded_rows(scores, scores.label, off)
    return reduce_rows(row_loss, anchor_weights(anchor, config.reduction, row_loss.dtype), anchor, scores, dropped)


def graded_rows(scores: Scores, grade: Array, off: Array) -> Array:
    """float[B, K]: D_i - z_i for every document, anchor or not, graded by int[B, K] `grade`.

    `off`[B] is A_q, the LSE over the query's in-batch negatives, shared by its rows; B_i = LSE over the document
    itself and its group's strictly lower grades; D_i = logaddexp(A_q, B_i).
    """
    lower = scores.valid[:, None, :] & (grade[:, None, :] < grade[:, :, None])  # [B, anchor, other]
    keep = lower | jnp.eye(grade.shape[1], dtype=bool)[None, :, :]
    within = masked_lse(jnp.broadcast_to(scores.own[:, None, :], keep.shape), keep)  # B, [B, K]
    return jnp.logaddexp(jnp.broadcast_to(off[:, None], within.shape), within) - scores.own


def h_infonce_nxn(
    e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: HInfoNCEConfig
) -> tuple[Array, LossAux]:
    """H-InfoNCE from N x N logits with the label mask built by `vmap` over rows: (loss, aux), as the paper's appendix.

    Row i of S' is the logits of the query that owns document i against all N documents, -1e30 where masked.
    """
    scores = score(e_query, e_doc, log_tau, batch)
    every, off_group, dropped = in_batch_pairs(scores.queries, scores.docs, config.mask_duplicate_ids)
    anchor = _anchors(scores, config)
    rows = scores.label.size
    queries, group = scores.label.shape
    owner = jnp.arange(rows, dtype=jnp.int32) // group
    label, valid = _everywhere(scores.label), _everywhere(scores.valid)

    def keeps(i: Array, label_i: Array, off_group_i: Array) -> Array:
        """bool[N]: the columns that row i keeps."""
        column = jnp.arange(rows, dtype=jnp.int32)
        hierarchical = (owner == i // group) & (label < label_i) & valid
        return (column == i) | hierarchical | off_group_i

    def per_row(x: Array) -> Array:
        """[B, N] to [N, N]: the row of the owning query for every document."""
        return jnp.broadcast_to(x[:, None, :], (queries, group, rows)).reshape(rows, rows)

    logits = per_row(every)
    index = rows_like(jnp.arange(rows, dtype=jnp.int32), logits)
    mask = jax.vmap(keeps)(index, scores.label.reshape(-1), per_row(off_group))
    numerator = jnp.sum(jnp.where(index[:, None] == jnp.arange(rows, dtype=jnp.int32)[None, :], logits, 0), axis=-1)
    row_loss = (masked_lse(logits, mask) - numerator).reshape(queries, group)
    return reduce_rows(row_loss, anchor_weights(anchor, config.reduction, row_loss.dtype), anchor, scores, dropped)


def _everywhere(x: Array) -> Array:
    """[B, K] as [N] with all rows on every device."""
    rows = x.reshape(-1)
    return rows if jax.typeof(rows).sharding.mesh.empty else jax.reshard(rows, P(None))


def _anchors(scores: Scores, config: HInfoNCEConfig) -> Array:
    """bool[B, K]: the documents that have a row in the loss; grade 0 (padding) never has one."""
    return scores.valid & (scores.label >= max(config.min_anchor_label, 1))
