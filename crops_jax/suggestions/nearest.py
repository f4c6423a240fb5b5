"""The queries whose vectors are nearest to a vector, by comparing it with all of them.

Shapes: N queries of a dictionary, D numbers of a vector, n vectors that are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from crops_jax.errors import InputError

Encode = Callable[[Sequence[str]], np.ndarray]
"""n texts -> float[n, D]."""
_NUMBERS_AT_ONCE = 1 << 24  # of cosines, 64 MB


class Dictionary(Protocol):
    """Queries with vectors, of which some are near to a vector: `NearestQueries`, or a `SemanticIndex`."""

    @property
    def queries(self) -> Sequence[str]:
        """N different texts."""
        ...

    @property
    def vectors(self) -> np.ndarray:
        """float32[N, D]."""
        ...

    def lookup(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """int64[n, k] rows of the nearest queries, the nearest first; -1 where there are no more."""
        ...


@dataclass(frozen=True)
class NearestQueries:
    """A dictionary that is searched as a whole: exact, at a cost of N D for each vector."""

    queries: Sequence[str]  # N different texts
    vectors: np.ndarray  # float32[N, D], of length one

    def lookup(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """int64[n, k] rows of the queries with the highest cosine (ties: the lower row); -1 beyond the dictionary."""
        found = np.full((len(vectors), k), -1, np.int64)
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, len(self.vectors)))
        for start in range(0, len(vectors), at_once):
            cosines = unit(vectors[start : start + at_once]) @ self.vectors.T
            for row, of_vector in enumerate(cosines, start):
                best = highest(of_vector, k)
                found[row, : len(best)] = best
        return found


def nearest_queries(queries: Sequence[str], encode: Encode) -> NearestQueries:
    """A dictionary of `queries` with the vectors that `encode` gives them.

    Raises:
      InputError: the vectors are not theirs, or not finite.
    """
    return NearestQueries(tuple(queries), unit(encoded(encode, queries, "vectors of the dictionary")))


def encoded(encode: Encode, texts: Sequence[str], place: str) -> np.ndarray:
    """float32[n, D] of n texts.

    Raises:
      InputError: what `encode` returns has another shape, or is not finite.
    """
    vectors = np.asarray(encode(texts), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise InputError(place, f"have the shape {vectors.shape}; {len(texts)} texts need a row each")
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(1))):
        raise InputError(place, f"{len(bad)} are not finite, the first is of {texts[bad[0]]!r}; the encoder is damaged")
    return vectors


def highest(values: np.ndarray, k: int) -> np.ndarray:
    """int64[min(k, n)]: where the k highest of float[n] stand, the highest first (ties: the first).

    >>> highest(np.array([0.5, 0.9, 0.5, 0.1]), 2).tolist()
    [1, 0]
    """
    rows = np.arange(len(values))
    if 0 < k < len(values):
        rows = np.flatnonzero(values >= np.partition(values, len(values) - k)[len(values) - k])
    return rows[np.argsort(-values[rows], kind="stable")[:k]]


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32[n, D] brought to length one; a vector of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
