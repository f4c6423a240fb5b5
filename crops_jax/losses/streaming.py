"""The log-sum-exp over in-batch negatives in memory O((B + N) D): no [B, N] array, forward or backward, but [B, tile].

Forward, document tiles pass by and a running (maximum, sum) per query is kept, as in online softmax. Backward, the
tiles pass once more: with A the log-sum-exp and g its cotangent, the logit z[q, j] of a negative gets
G[q, j] = g[q] exp(z[q, j] - A[q]), so dq += G d_tile and d_tile = G' q. That makes four products of size B N D where
the plain form, which keeps its logits, needs three.

On several devices the same code runs in a ring: the devices' document shards go round, each tiled where it stands,
and in the backward pass the shard's gradient travels with it. After a full turn both are home, and no device has ever
held more than one shard. A ring of one device is the plain streaming form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from crops_jax.losses.lse import add_to_sum, lse_of, no_sum, softmax
from crops_jax.losses.pairs import Documents, Queries, pairs, product
from crops_jax.parallel.collectives import MeshAxes


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def streamed_lse(
    queries: Queries, docs: Documents, axes: MeshAxes, tile: int, mask_duplicate_ids: bool
) -> tuple[Array, Array]:
    """(A float[b], dropped int32[b, 2]): LSE of each query's negatives and what was left out (`pairs`).

    Args:
      queries: this device's queries.
      docs: all documents that its queries see, or with `axes` this device's shard of them.
      axes: mesh axes around which document shards go; () where `docs` is everything.
      tile: documents compared at a time.
    """

    def visit(state: Any, shard: Documents) -> tuple[Any, Documents]:
        return jax.lax.scan(add_tile, state, _tiles(shard, tile))[0], shard

    def add_tile(state: Any, part: Documents) -> tuple[Any, None]:
        so_far, dropped = state
        logits, negative, more = pairs(queries, part, mask_duplicate_ids)
        return (add_to_sum(so_far, logits, negative), dropped + more), None

    nothing = no_sum(queries.vector[:, 0]), jnp.zeros_like(queries.owned, shape=(queries.owned.shape[0], 2))
    (so_far, dropped), _ = _around(axes, visit, nothing, docs)
    return lse_of(so_far), dropped


def _forward(queries: Queries, docs: Documents, axes: MeshAxes, tile: int, mask_duplicate_ids: bool) -> tuple[Any, Any]:
    lse, dropped = streamed_lse(queries, docs, axes, tile, mask_duplicate_ids)
    return (lse, dropped), (queries, docs, lse)


def _backward(
    axes: MeshAxes, tile: int, mask_duplicate_ids: bool, saved: Any, cotangent: tuple[Array, Any]
) -> tuple[Queries, Documents]:
    queries, docs, lse = saved

    def visit(d_query: Array, shard: tuple[Documents, Array]) -> tuple[Array, tuple[Documents, Array]]:
        docs, d_docs = shard
        d_query, d_tiles = jax.lax.scan(pull_tile, d_query, _tiles(docs, tile))
        return d_query, (docs, d_docs + d_tiles.reshape(-1, d_docs.shape[1])[: d_docs.shape[0]])

    def pull_tile(d_query: Array, part: Documents) -> tuple[Array, Array]:
        logits, negative, _ = pairs(queries, part, mask_duplicate_ids)
        share = cotangent[0][:, None] * softmax(logits, negative, lse)
        return d_query + product("qn,nd->qd", share, part.vector), product("qn,qd->nd", share, queries.vector)

    start = jnp.zeros_like(queries.vector)
    d_query, (_, d_docs) = _around(axes, visit, start, (docs, jnp.zeros_like(docs.vector)))
    return Queries(d_query, None, None, None), Documents(d_docs, None)


streamed_lse.defvjp(_forward, _backward)


def _around(axes: MeshAxes, visit: Callable[[Any, Any], tuple[Any, Any]], state: Any, shard: Any) -> tuple[Any, Any]:
    """`state` after a `visit(state, shard) -> (state, shard)` of every device's shard, and the own shard, home again.

    The last move brings home what visits added to a shard. The forward pass adds nothing and does not need it; it moves
    all the same, so that both passes share one loop (1 / devices more traffic).
    """
    devices = jax.lax.axis_size(axes) if axes else 1
    if devices == 1:
        return visit(state, shard)
    onward = [(i, (i + 1) % devices) for i in range(devices)]

    def turn(now: Any, _: None) -> tuple[Any, None]:
        state, shard = visit(*now)
        return (state, jax.tree.map(lambda x: jax.lax.ppermute(x, axes, onward), shard)), None

    return jax.lax.scan(turn, (state, shard), length=devices)[0]


def _tiles(docs: Documents, tile: int) -> Documents:
    """The documents as [tiles, tile, ...], the last tile filled up with padding."""
    count = docs.keys.shape[0]
    tile = min(tile, count)
    fill = [(0, -count % tile), (0, 0)]
    vector, keys = jnp.pad(docs.vector, fill), jnp.pad(docs.keys, fill, constant_values=-1)
    return Documents(*[x.reshape(-1, tile, x.shape[1]) for x in (vector, keys)])
