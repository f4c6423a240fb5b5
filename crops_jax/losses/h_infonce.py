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
  - The lowest grade of a group contrasts with other groups alone; `min_anchor_label` switches such anchors off, and
    `min_in_batch_label` lets lower rungs keep their order within the group without contrasting with other groups.
  - Padding is masked on both sides and may hold NaN. A lone document in a batch of one query has loss 0, gradient 0.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array, P

from crops_jax.batch import Batch
from crops_jax.losses.common import LossAux, Scores, anchor_weights, reduce_rows, rows_like, score
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.losses.in_batch import in_batch_lse, in_batch_pairs
from crops_jax.losses.lse import NEG, masked_lse


def h_infonce(
    e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: HInfoNCEConfig
) -> tuple[Array, LossAux]:
    """H-InfoNCE in every form but N x N: (loss, aux). Shapes and dtypes as in `common.score`."""
    scores = score(e_query, e_doc, log_tau, batch)
    times = _of_rung(config.rung_temperatures, scores)
    off = jnp.zeros_like(scores.own)
    for temperature in sorted(set(config.rung_temperatures)):
        queries = replace(scores.queries, vector=scores.queries.vector / temperature)
        lse, dropped = in_batch_lse(queries, scores.docs, config.mask_duplicate_ids, config.form, config.tile)
        off = jnp.where(times == temperature, lse[:, None], off)
    off = jnp.where(scores.label >= config.min_in_batch_label, off, NEG)
    return _reduced(graded_rows(scores, scores.label, off, times), scores, dropped, config)


def graded_rows(scores: Scores, grade: Array, off: Array, times: Array | None = None) -> Array:
    """float[B, K]: D_i - z_i for every document, anchor or not, graded by int[B, K] `grade`.

    B_i = LSE over the document itself and its group's strictly lower grades; D_i = logaddexp(A_i, B_i).

    Args:
      off: float[B, K], A_i: the LSE over the query's in-batch negatives, the same in all rows of one temperature.
      times: float[B, K], by what tau is multiplied in each row; one where it is none.
    """
    lower = scores.valid[:, None, :] & (grade[:, None, :] < grade[:, :, None])  # [B, anchor, other]
    keep = lower | jnp.eye(grade.shape[1], dtype=bool)[None, :, :]
    logits = jnp.broadcast_to(scores.own[:, None, :], keep.shape)
    own = scores.own
    if times is not None:
        logits, own = logits / times[:, :, None], own / times
    within = masked_lse(logits, keep)
    return jnp.logaddexp(jnp.broadcast_to(off, within.shape), within) - own


def h_infonce_nxn(
    e_query: Array, e_doc: Array, log_tau: Array, batch: Batch, config: HInfoNCEConfig
) -> tuple[Array, LossAux]:
    """H-InfoNCE from N x N logits with the label mask built by `vmap` over rows: (loss, aux), as the paper's appendix.

    Row i of S' is the logits of the query that owns document i against all N documents, -1e30 where masked.
    """
    scores = score(e_query, e_doc, log_tau, batch)
    every, off_group, dropped = in_batch_pairs(scores.queries, scores.docs, config.mask_duplicate_ids)
    rows = scores.label.size
    queries, group = scores.label.shape
    owner = jnp.arange(rows, dtype=jnp.int32) // group
    label, valid = _everywhere(scores.label), _everywhere(scores.valid)

    def keeps(i: Array, label_i: Array, off_group_i: Array) -> Array:
        """bool[N]: the columns that row i keeps."""
        column = jnp.arange(rows, dtype=jnp.int32)
        hierarchical = (owner == i // group) & (label < label_i) & valid
        return (column == i) | hierarchical | (off_group_i & (label_i >= config.min_in_batch_label))

    def per_row(x: Array) -> Array:
        """[B, N] to [N, N]: the row of the owning query for every document."""
        return jnp.broadcast_to(x[:, None, :], (queries, group, rows)).reshape(rows, rows)

    times = _of_rung(config.rung_temperatures, scores).reshape(-1)
    logits = per_row(every) / _everywhere(times)[:, None]
    index = rows_like(jnp.arange(rows, dtype=jnp.int32), logits)
    mask = jax.vmap(keeps)(index, scores.label.reshape(-1), per_row(off_group))
    numerator = jnp.sum(jnp.where(index[:, None] == jnp.arange(rows, dtype=jnp.int32)[None, :], logits, 0), axis=-1)
    return _reduced((masked_lse(logits, mask) - numerator).reshape(queries, group), scores, dropped, config)


def _everywhere(x: Array) -> Array:
    """[B, K] as [N] with all rows on every device."""
    rows = x.reshape(-1)
    return rows if jax.typeof(rows).sharding.mesh.empty else jax.reshard(rows, P(None))


def _reduced(row_loss: Array, scores: Scores, dropped: Array, config: HInfoNCEConfig) -> tuple[Array, LossAux]:
    """The rows of the anchors, weighted by rung: every graded document from `min_anchor_label` up is one."""
    weight = _of_rung(config.rung_weights, scores)
    anchor = scores.valid & (scores.label >= max(config.min_anchor_label, 1)) & (weight > 0)
    weights = anchor_weights(jnp.where(anchor, weight, 0), config.reduction)
    return reduce_rows(row_loss, weights, anchor, scores, dropped)


def _of_rung(values: tuple[float, ...], scores: Scores) -> Array:
    """float[B, K]: the value of each document's label; of labels above the last rung, that of the last."""
    found = jnp.full_like(scores.own, values[0])
    for label, value in enumerate(values[1:], start=2):
        found = jnp.where(scores.label >= label, jnp.asarray(value, found.dtype), found)
    return found
