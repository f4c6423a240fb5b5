"""k-means, and k-means with clusters of equal size. N vectors, K centroids, D numbers each.

Products and sums run on the device; sums are products with a one-hot matrix, which add in the same order every time.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_ROWS = 8_192  # vectors at a time
_SAMPLE = 64  # vectors for each centroid, among which the first centroids are drawn


class Pass(NamedTuple):
    """Vectors beside their nearest centroids."""

    codes: np.ndarray  # int32[N]
    distance: np.ndarray  # float32[N], squared
    sums: np.ndarray  # float64[K, D], of the vectors of each centroid
    counts: np.ndarray  # int64[K]


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> Pass:
    """Each vector's nearest centroid (ties: the lower number)."""
    k, width = centroids.shape
    codes, distance = np.zeros(len(vectors), np.int32), np.zeros(len(vectors), np.float32)
    sums, counts = np.zeros((k, width)), np.zeros(k, np.int64)
    for rows, block, real in _blocks(vectors):
        found, far, total, many = _nearest(block, real, centroids)
        codes[rows], distance[rows] = np.asarray(found)[: len(codes[rows])], np.asarray(far)[: len(codes[rows])]
        sums += np.asarray(total, np.float64)
        counts += np.asarray(many).astype(np.int64)
    return Pass(codes, distance, sums, counts)


def distances(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """float32[N, K], squared."""
    parts = [np.asarray(_distances(block, centroids))[: int(real.sum())] for _, block, real in _blocks(vectors)]
    return np.concatenate(parts) if parts else np.zeros((0, len(centroids)), np.float32)


def _blocks(vectors: np.ndarray):
    """(rows, vectors padded to one of few shapes, which of them are real)."""
    size = min(_ROWS, max(8, 1 << max(len(vectors) - 1, 0).bit_length()))
    for start in range(0, len(vectors), size):
        block = np.asarray(vectors[start : start + size], np.float32)
        missing = size - len(block)
        yield slice(start, start + size), np.pad(block, ((0, missing), (0, 0))), np.arange(size) < len(block)


@jax.jit
def _distances(x: jax.Array, centroids: jax.Array) -> jax.Array:
    product = jnp.matmul(x, centroids.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum((x * x).sum(1)[:, None] - 2 * product + (centroids * centroids).sum(1)[None, :], 0)


@jax.jit
def _nearest(x: jax.Array, real: jax.Array, centroids: jax.Array) -> tuple[jax.Array, ...]:
    far = _distances(x, centroids)
    codes = jnp.argmin(far, axis=1).astype(jnp.int32)
    mine = jax.nn.one_hot(codes, len(centroids), dtype=x.dtype) * real[:, None].astype(x.dtype)
    sums = jnp.matmul(mine.T, x, precision=jax.lax.Precision.HIGHEST)
    return codes, jnp.min(far, axis=1), sums, mine.sum(0)


@partial(jax.jit, static_argnums=(1,))
def _spread(x: jax.Array, k: int, key: jax.Array) -> jax.Array:
    """k rows of x that lie far from each other (k-means++): each is drawn by its distance to those before."""
    first, key = jax.random.split(key)

    def draw(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, far = state
        row = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(far))
        away = ((x - x[row][None, :]) ** 2).sum(1)
        return rows.at[i].set(row.astype(rows.dtype)), jnp.minimum(far, away)

    row = jax.random.randint(first, (), 0, len(x))
    rows = jnp.zeros(k, jnp.int32).at[0].set(row)
    rows, _ = jax.lax.fori_loop(1, k, draw, (rows, ((x - x[row][None, :]) ** 2).sum(1)))
    return x[rows]


def k_means(vectors: np.ndarray, k: int, iterations: int, seed: int) -> np.ndarray:
    """float32[K, D] centroids after at most so many rounds; fewer where nothing changes any more.

    A centroid without vectors moves to the vector that is farthest from its own. Where there are fewer different
    vectors than centroids, some centroids stay unused.
    """
    rng = np.random.default_rng(seed)
    sample = vectors[np.sort(rng.permutation(len(vectors))[: _SAMPLE * k])]
    centroids = np.asarray(_spread(np.asarray(sample, np.float32), k, jax.random.key(seed)))
    before = None
    for _ in range(iterations):
        found = nearest(vectors, centroids)
        if before is not None and np.array_equal(found.codes, before):
            break
        before, centroids = found.codes, means(found, centroids, vectors)
    return centroids


def means(found: Pass, centroids: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The centroids moved to the means of their vectors, and those without to the vectors that are farthest away."""
    moved = found.sums / np.maximum(found.counts, 1)[:, None]
    moved = np.where((found.counts > 0)[:, None], moved, centroids).astype(np.float32)
    idle = np.flatnonzero(found.counts == 0)
    far = np.argsort(-found.distance, kind="stable")[: len(idle)]
    far = far[found.distance[far] > 0]
    moved[idle[: len(far)]] = vectors[far]
    return moved


def balanced_k_means(vectors: np.ndarray, k: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(float32[K, D] centroids, int32[N] codes) with at most ceil(N / K) vectors a code.

    An iteration costs N K D for the distances, and the rounds of `assign_evenly`: each looks once at N codes, sorts the
    vectors of those codes that too many ask, and reads K distances of each vector that is sent on. The host holds
    two float32[N, K], and a copy of the rows that are sent on in a round.
    """
    centroids, before = k_means(vectors, k, iterations, seed), None
    codes = assign_evenly(distances(vectors, centroids))
    for _ in range(iterations):
        if before is not None and np.array_equal(codes, before):
            break
        counts = np.bincount(codes, minlength=k)
        sums = np.stack([np.bincount(codes, vectors[:, d], k) for d in range(vectors.shape[1])], axis=1)
        centroids = np.where((counts > 0)[:, None], sums / np.maximum(counts, 1)[:, None], centroids)
        centroids = centroids.astype(np.float32)
        before, codes = codes, assign_evenly(distances(vectors, centroids))
    return centroids, codes


def assign_evenly(distance: np.ndarray) -> np.ndarray:
    """int32[N]: pairs in the order of their distance; a vector takes the first code that is not full yet.

    A code is full with ceil(N / K) vectors. It is done without sorting the N * K pairs: each vector asks its nearest
    code, a code keeps the nearest of those that ask and sends the others on. As both sides order by one distance, this
    ends in the same assignment (the stable one is unique; ties: the vector, then the code with the lower number).
    """
    n, k = distance.shape
    room = -(-n // k) if n else 0
    left = distance.astype(np.float32, copy=True)
    codes = np.argmin(left, axis=1).astype(np.int32)
    while (crowded := np.bincount(codes, minlength=k) > room).any():
        rows = np.flatnonzero(crowded[codes])  # who stays with a code that has room for all who ask it needs no sorting
        order = rows[np.lexsort((distance[rows, codes[rows]], codes[rows]))]
        start = np.searchsorted(codes[order], np.arange(k))
        sent_on = order[np.arange(len(order)) - start[codes[order]] >= room]
        left[sent_on, codes[sent_on]] = np.inf
        codes[sent_on] = np.argmin(left[sent_on], axis=1)
    return codes
