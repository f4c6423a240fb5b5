"""ADORE (Zhan et al. 2021): the query tower alone learns, on what it retrieves at every step from a fixed index.

Shapes: B queries, C corpus documents, D embedding, P known positives of a query, K retrieved documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import P

from crops_jax.baselines.config import AdoreConfig
from crops_jax.batch import Batch
from crops_jax.models import dual_encoder
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.training import gradcache
from crops_jax.training.config import GradCacheConfig
from crops_jax.training.step import Metrics


class Index(NamedTuple):
    """The constants of a run: the corpus as the document tower encodes it, and what each query is known to like."""

    vectors: jax.Array  # float32[C, D], on every device
    keys: jax.Array  # int32[Q, 2]: the query_key of each query
    positives: jax.Array  # int32[Q, P]: its rows of `vectors`, -1 where there is none


@dataclass(frozen=True)
class AdoreObjective:
    """A weighted RankNet over the retrieved documents (`training.step.Objective`)."""

    config: AdoreConfig
    micro_batches: GradCacheConfig

    def loss(self, model: DualEncoder, batch: Batch, constants: Index) -> tuple[jax.Array, Metrics]:
        """The mean over queries of `rank_loss`; the batch's own documents are not read."""
        e_query = gradcache.encode(model, "query", batch.query, self.micro_batches)
        real = batch.query_key[:, 0] >= 0
        split = jax.typeof(e_query).sharding.spec[0]
        inverse_tau = jnp.exp(-model.log_tau)

        def rows(
            e_query: jax.Array, key: jax.Array, index: Index, inverse_tau: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            place = jax.vmap(lambda k: jnp.argmax((index.keys == k[None, :]).all(axis=1)))(key)
            relevant = index.positives[place]
            return jax.vmap(lambda q, p: _of_query(q * inverse_tau, p, index.vectors, self.config))(e_query, relevant)

        if split:
            rows = jax.shard_map(rows, in_specs=(P(split), P(split), P(), P()), out_specs=P(split))
        loss, found = rows(e_query, batch.query_key, constants, inverse_tau)
        queries = jnp.maximum(real.sum(), 1).astype(loss.dtype)
        told = {"retrieved_positive_share": jnp.sum(jnp.where(real, found, 0)) / queries}
        return jnp.sum(jnp.where(real, loss, 0)) / queries, told

    def trainable(self, model: DualEncoder) -> DualEncoder:
        """The query tower."""
        return dual_encoder.trainable(model)

    def with_trainable(self, model: DualEncoder, parameters: DualEncoder) -> DualEncoder:
        """The model with these trainable leaves."""
        return dual_encoder.with_trainable(model, parameters)

    def settled(self, model: DualEncoder) -> tuple[DualEncoder, Metrics]:
        """As it is: tau is that of the run that it starts from."""
        return model, {"tau": dual_encoder.tau(model)}


def _of_query(
    query: jax.Array, positives: jax.Array, vectors: jax.Array, config: AdoreConfig
) -> tuple[jax.Array, jax.Array]:
    """(loss, whether a positive is among the K best) of one query float32[D], divided by tau."""
    top = min(config.top, vectors.shape[0])
    fixed = jax.lax.stop_gradient(query)
    _, best = jax.lax.top_k(jnp.einsum("d,cd->c", fixed, vectors, precision="highest"), top)
    relevant = jnp.any(best[:, None] == positives[None, :], axis=1)
    # Positives that were not retrieved stand behind what was, and only where none was.
    rows = jnp.concatenate([best, jnp.maximum(positives, 0)])
    present = jnp.concatenate([jnp.ones_like(best, bool), (positives >= 0) & ~relevant.any()])
    target = jnp.concatenate([relevant, jnp.ones_like(positives, bool)])
    score = jnp.einsum("d,kd->k", query, vectors[rows], precision="highest")
    return rank_loss(score, target & present, present & ~target, config.cut), relevant.any().astype(score.dtype)


def rank_loss(score: jax.Array, relevant: jax.Array, other: jax.Array, cut: int) -> jax.Array:
    """Mean over pairs of |a_i - a_j| softplus(y_j - y_i), i relevant and j not: the change of MRR that a swap makes.

    Args:
      score: float[n], y in the order in which the documents were retrieved; that order is not made again from y.
      relevant, other: bool[n]; what is neither takes no part.
      cut: a_r = 1/r for ranks up to `cut`, 0 behind.
    """
    rank = jnp.arange(1, score.shape[0] + 1, dtype=jnp.int32)
    weight = jnp.where(rank <= cut, 1 / rank.astype(score.dtype), 0)
    pair = (relevant[:, None] & other[None, :]).astype(score.dtype)
    each = jnp.abs(weight[:, None] - weight[None, :]) * jax.nn.softplus(score[None, :] - score[:, None])
    return jnp.sum(pair * each) / jnp.maximum(pair.sum(), 1)
