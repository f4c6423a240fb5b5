"""Exact search over document vectors, on all devices: the reference, and what small corpora are served by.

Shape letters: n queries, C corpus documents, D embedding, k results. Vectors are L2-normalised, so the dot product is
the cosine. Equal scores are ordered by smaller id.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from crops_jax.progress import progress
from crops_jax.retrieval.ranking import NO_ITEM
from crops_jax.retrieval.vectors import check_finite, check_vectors

_QUERY_TILE = 256
_DOC_TILE = 16_384


class Exact(Protocol):
    """Exact search by vectors."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `ExactIndex.search`."""
        ...


class ExactIndex:
    """Exact search over C documents that lie on the devices, split over all of them."""

    def __init__(self, vectors: np.ndarray, ids: np.ndarray, most: int = 0):
        """Places float32[C, D] vectors with ascending int64[C] ids.

        Args:
          most: documents of the largest of several corpora whose results are merged: equal vectors then have equal
            scores in all of them, because products of one shape are computed.

        Raises:
          InputError: NaN or infinity in the vectors, or bad ids (`ranking.check_ids`).
        """
        check_vectors(vectors, ids, "exact search")
        devices = jax.device_count()
        rows = -(-max(len(ids), 1) // devices)
        self._ids, self._tile = ids, min(_DOC_TILE, -(-max(len(ids), most, 1) // devices))
        padded = np.zeros((-(-rows // self._tile) * self._tile * devices, vectors.shape[1]), np.float32)
        padded[: len(ids)] = vectors
        self._mesh = jax.make_mesh((devices,), ("corpus",))
        self._most = len(padded) // devices
        with jax.set_mesh(self._mesh):
            self._corpus = jax.device_put(padded, P("corpus", None))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k largest dot products of float32[n, D] queries, exactly: (int64[n, k] ids, float32[n, k] scores).

        Each device keeps a running top-k over tiles of its part, so that no n x C array is made, and the parts'
        winners are merged in corpus order: equal scores stay ordered by id. Rows are filled up with `NO_ITEM` and
        -inf when C < k.

        Raises:
          InputError: NaN or infinity in the queries.
        """
        check_finite(queries, "query vectors")
        found = np.full((len(queries), k), NO_ITEM)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        size, take = jnp.int32(len(self._ids)), min(k, self._most)
        with jax.set_mesh(self._mesh):
            for start in progress(range(0, len(queries), _QUERY_TILE), "exact search", unit="tile"):
                part = np.zeros((_QUERY_TILE, queries.shape[1]), np.float32)  # one shape, one compilation
                count = min(_QUERY_TILE, len(queries) - start)
                part[:count] = queries[start : start + count]
                value, place = _sharded_top_k(part, self._corpus, size, self._tile, take)
                value, place = np.asarray(value)[:count, :k], np.asarray(place)[:count, :k]
                real, width = value > -np.inf, value.shape[1]
                found[start : start + count, :width] = np.where(real, self._ids[np.where(real, place, 0)], NO_ITEM)
                scores[start : start + count, :width] = value
        return found, scores


@partial(jax.jit, static_argnums=(3, 4))
def _sharded_top_k(queries: jax.Array, corpus: jax.Array, size: jax.Array, tile: int, take: int):
    """(float32[n, take * devices or less], int32[...] corpus rows), best first, over the whole corpus."""
    split = jax.shard_map(
        partial(_local_top_k, tile=tile, take=take),
        in_specs=(P(None, None), P("corpus", None), P()),
        out_specs=(P(None, "corpus"), P(None, "corpus")),
    )
    value, place = (jax.reshard(x, P(None, None)) for x in split(jax.reshard(queries, P(None, None)), corpus, size))
    value, order = jax.lax.top_k(value, value.shape[1])  # of equal values the first stays first: the smaller id
    return value, jnp.take_along_axis(place, order, axis=1)


def _local_top_k(queries: jax.Array, part: jax.Array, size: jax.Array, *, tile: int, take: int):
    """The running top-k of one device's part of the corpus; rows at or beyond `size` are padding."""
    first = jax.lax.axis_index("corpus").astype(jnp.int32) * part.shape[0]

    def step(best: tuple[jax.Array, jax.Array], numbered: tuple[jax.Array, jax.Array]):
        index, rows = numbered
        place = first + index * tile + jnp.arange(tile, dtype=jnp.int32)
        score = jnp.einsum("nd,cd->nc", queries, rows, precision=jax.lax.Precision.HIGHEST)
        score = jnp.where((place < size)[None, :], score, -jnp.inf)
        scores = jnp.concatenate([best[0], score], axis=1)  # earlier tiles first, so ties keep corpus order
        places = jnp.concatenate([best[1], jnp.broadcast_to(place[None, :], score.shape)], axis=1)
        value, order = jax.lax.top_k(scores, take)
        return (value, jnp.take_along_axis(places, order, axis=1)), None

    tiles = part.reshape(-1, tile, part.shape[1])
    empty = (jnp.full((queries.shape[0], take), -jnp.inf), jnp.zeros((queries.shape[0], take), jnp.int32))
    empty = jax.tree.map(lambda x: jax.lax.pcast(x, "corpus", to="varying"), empty)
    best, _ = jax.lax.scan(step, empty, (jnp.arange(tiles.shape[0], dtype=jnp.int32), tiles))
    return best
