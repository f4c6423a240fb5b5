"""Training a dual encoder: its objective, and what a batch of it holds.

Shapes: B queries, N = B*K documents, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from crops_jax.batch import Batch, IdFeatures, PackedTokens, Tokens
from crops_jax.cost.flops import Texts, train_step_flops
from crops_jax.labels import LETTERS
from crops_jax.losses.build import build_loss
from crops_jax.losses.config import LossConfig
from crops_jax.models import dual_encoder
from crops_jax.models.config import DualEncoderConfig
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.training import gradcache
from crops_jax.training.config import ALL_AT_ONCE, GradCacheConfig
from crops_jax.training.step import Constants, Metrics
from crops_jax.training.throughput import BatchCounts

Rows = Tokens | PackedTokens | IdFeatures


@dataclass(frozen=True)
class DualEncoderObjective:
    """Both towers and one loss over the global batch (`training.step.Objective`)."""

    config: LossConfig
    micro_batches: GradCacheConfig = ALL_AT_ONCE

    def loss(self, model: DualEncoder, batch: Batch, constants: Constants) -> tuple[jax.Array, Metrics]:
        """The loss of a batch, and what `LossAux` tells.

        Raises:
          InputError: when it is traced, if `micro_batches` do not divide the batch.
        """
        e_query = gradcache.encode(model, "query", batch.query, self.micro_batches)
        e_doc = gradcache.encode(model, "document", batch.docs, self.micro_batches)
        loss = build_loss(self.config)
        value, aux = loss(e_query, e_doc, model.log_tau, batch)
        told = {**aux.metrics(), **_cosine_by_source(aux.row_cosine, batch)}
        if widths := model.config.widths:
            shorter = {w: loss(_first(e_query, w), _first(e_doc, w), model.log_tau, batch)[0] for w in widths}
            told |= {f"loss_{w}": of_width for w, of_width in shorter.items()}
            value = (value + sum(shorter.values())) / (1 + len(widths))
        return value, told

    def trainable(self, model: DualEncoder) -> DualEncoder:
        """The model without its frozen leaves."""
        return dual_encoder.trainable(model)

    def with_trainable(self, model: DualEncoder, parameters: DualEncoder) -> DualEncoder:
        """The model with these trainable leaves."""
        return dual_encoder.with_trainable(model, parameters)

    def settled(self, model: DualEncoder) -> tuple[DualEncoder, Metrics]:
        """The model with tau within its bounds: put back after the update, so that the loss never cuts its gradient."""
        clipped = dual_encoder.clip_tau(model)
        return clipped, {"tau": dual_encoder.tau(clipped)}


def _first(vectors: jax.Array, width: int) -> jax.Array:
    """The first numbers of unit vectors, brought back to length one."""
    return dual_encoder.normalise(vectors[:, :width])


def _cosine_by_source(cosine: jax.Array, batch: Batch) -> Metrics:
    """Mean cosine of the documents that a source vouches for; a document of several sources counts for each."""
    means = {}
    for bit, name in enumerate(LETTERS):
        chosen = (batch.valid & ((batch.source >> bit) & 1).astype(bool)).astype(cosine.dtype)
        means[f"cosine_{name}"] = jnp.sum(cosine * chosen) / jnp.maximum(jnp.sum(chosen), 1)
    return means


def count(model: DualEncoderConfig, batch: Batch) -> BatchCounts:
    """What a batch (numpy, the rows of one process) holds and costs."""
    query, doc = real_lengths(batch.query, batch.query_key[:, 0] >= 0), real_lengths(batch.docs, batch.valid)
    slots = _slots(batch.query) + _slots(batch.docs)
    return BatchCounts(
        queries=len(query),
        pairs=int((batch.label > 0).sum()),
        tokens={"query": int(query.sum()), "doc": int(doc.sum())} if slots else {},
        slots=slots,
        flops=train_step_flops(model, real_texts(query), real_texts(doc)),
    )


def real_lengths(rows: Rows, present: np.ndarray) -> np.ndarray:
    """int[texts]: tokens of every real text; a row of hashed ids is one."""
    match rows:
        case Tokens(length=length) | PackedTokens(length=length):
            return length[length > 0]
        case IdFeatures():
            return np.ones(int(present.sum()), int)


def real_texts(lengths: np.ndarray) -> Texts:
    """What a tower has to read: every token and, for each, the tokens of its own text, be they packed or padded."""
    tokens = int(lengths.sum())
    context = round(int((lengths.astype(np.int64) ** 2).sum()) / max(tokens, 1))
    return Texts(tokens, context, len(lengths))


def all_slots(rows: Rows) -> Texts:
    """Every slot that a tower computes, of a text or not."""
    match rows:
        case PackedTokens(ids=ids, first=first):
            return Texts(ids.size, ids.shape[-1], first.size)
        case Tokens(ids=ids):
            return Texts(ids.size, ids.shape[-1], ids.shape[0])
        case IdFeatures(ids=ids):
            return Texts(ids.shape[0], 1, ids.shape[0])


def _slots(rows: Rows) -> int:
    return 0 if isinstance(rows, IdFeatures) else rows.ids.size
