"""A `ranking.Searcher` over document vectors: queries are encoded, and searched exactly.

Shape letters as in `retrieval.exact`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from crops_jax.retrieval.exact import Exact, ExactIndex
from crops_jax.retrieval.ranking import cosines, positions_of
from crops_jax.retrieval.vectors import Vectors, by_id


class Rows(Protocol):
    """float32[C, D] that is read by rows: an array, or `blocks.MappedRows`."""

    shape: tuple[int, ...]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """float32[m, D] of int[m] rows."""
        ...


class DenseSearcher:
    """A `ranking.Searcher` by exact search over document vectors."""

    def __init__(
        self,
        ids: np.ndarray,
        vectors: Rows,
        exact: Exact,
        encode_queries: Callable[[Sequence[str]], np.ndarray],
        blocks: Callable[[], Iterable[Vectors]],
    ):
        """Rising `ids` int64[C] with the vectors of each, searched by `exact`; `blocks` gives them all, part by part.

        `encode_queries` gives float32[n, D].
        """
        self.ids, self.exact, self.blocks = ids, exact, blocks
        self._vectors, self._encode_queries, self._known = vectors, encode_queries, {}

    @classmethod
    def in_memory(
        cls, ids: np.ndarray, vectors: np.ndarray, encode_queries: Callable[[Sequence[str]], np.ndarray]
    ) -> DenseSearcher:
        """Over `ids` int64[C] in any order with their `vectors` float32[C, D]."""
        ids, vectors = by_id(ids, vectors, "document vectors")
        return cls(ids, vectors, ExactIndex(vectors, ids), encode_queries, lambda: [Vectors(ids, vectors)])

    def encode(self, queries: Sequence[str]) -> np.ndarray:
        """float32[n, D]; each distinct query string is encoded once in this searcher's life."""
        new = [q for q in dict.fromkeys(queries) if q not in self._known]
        if new:
            self._known.update(zip(new, np.asarray(self._encode_queries(new), np.float32), strict=True))
        return (
            np.stack([self._known[q] for q in queries])
            if queries
            else np.zeros((0, self._vectors.shape[1]), np.float32)
        )

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, k], float32[n, k]) as `ranking.Searcher.search`."""
        return self.exact.search(self.encode(queries), k)

    def score(self, queries: Sequence[str], item_ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Cosines with given items, as `ranking.Searcher.score`."""
        found = []
        for query, wanted in zip(self.encode(queries), item_ids, strict=True):
            place = positions_of(self.ids, np.asarray(wanted, np.int64))
            found.append(np.where(place >= 0, cosines(self._vectors[place], query), -np.inf))
        return found
