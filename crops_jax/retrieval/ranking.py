"""The interface of a retriever for the evaluation, and the one rule for equal scores: the smaller id first.

numpy only, so that BM25 needs no accelerator library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from crops_jax.errors import InputError

_ROUNDING = 1e-5  # of a float32 sum over a vector, and more
NO_ITEM = np.iinfo(np.int64).min  # fills a row of results that is shorter than k; never an id


class Searcher(Protocol):
    """A retriever over a corpus of items: BM25 or a dense one, the same to every metric."""

    ids: np.ndarray
    """int64[C], ascending: the corpus."""

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, k] ids, float32[n, k] scores), best first, ties by smaller id, `NO_ITEM` and -inf at the end."""
        ...

    def score(self, queries: Sequence[str], item_ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32[m_i] for the m_i items given for query i; -inf for an item outside the corpus."""
        ...


def check_ids(ids: np.ndarray, place: str) -> None:
    """Corpus ids must be unique, ascending and real items: documents a language model wrote are never retrieved.

    Raises:
      InputError: lists each rule that is broken, with counts and examples.
    """
    problems = []
    if np.any(ids < 0):
        negative = ids[ids < 0]
        problems.append(f"{len(negative)} negative ids, such as {negative[0]}: written documents are never indexed")
    step = np.diff(ids)
    if np.any(step == 0):
        problems.append(f"{int((step == 0).sum())} ids occur twice, such as {ids[:-1][step == 0][0]}")
    if np.any(step < 0):
        problems.append("ids are not ascending, so that equal scores cannot be ordered by id")
    if problems:
        raise InputError(place, problems)


def top_k(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of float[n, C] as (int64[n, k], float32[n, k]), ties by smaller id.

    Args:
      ids: int64[C], ascending. Scores of -inf are no results.
    """
    take = min(k, len(ids))
    found, values = np.full((len(scores), k), NO_ITEM), np.full((len(scores), k), -np.inf, np.float32)
    for row, score in enumerate(scores):
        # The partition cuts through equal scores at random: take all above the k-th value, then its smallest ids.
        bound = np.partition(score, len(score) - take)[len(score) - take] if take else np.inf
        above = np.flatnonzero(score > bound)
        equal = np.flatnonzero(score == bound)[: take - len(above)]
        best = np.concatenate([above, equal])
        best = best[np.lexsort((best, -score[best]))]
        best = best[score[best] > -np.inf]
        found[row, : len(best)], values[row, : len(best)] = ids[best], score[best]
    return found, values


def cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """float32[m]: each of float32[m, D] with float32[D]; equal vectors have equal cosines.

    A product of matrices sums a row by where it stands, so that of two equal ones either may come out ahead.
    """
    return (vectors * query).sum(axis=1, dtype=np.float32)


def nearest(queries: np.ndarray, vectors: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` of the cosines of float32[n, D] with float32[C, D]: equal vectors by smaller id.

    The product of the matrices finds those that may be among the k best, `cosines` orders them.
    """
    found, values = np.full((len(queries), k), NO_ITEM), np.full((len(queries), k), -np.inf, np.float32)
    if take := min(k, len(ids)):
        for row, rough in enumerate(queries @ vectors.T):
            bound = np.partition(rough, len(rough) - take)[len(rough) - take]
            near = np.flatnonzero(rough >= bound - _ROUNDING * max(1.0, abs(float(bound))))
            best = top_k(cosines(vectors[near], queries[row])[None], ids[near], k)
            found[row], values[row] = (part[0] for part in best)
    return found, values


def best_of(results: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what searches over different documents found: (int64[n, k], float32[n, k]), ties by smaller id.

    Args:
      results: (int64[n, m], float32[n, m]) of each, filled up with `NO_ITEM` and -inf.
    """
    ids, scores = (np.concatenate(parts, axis=1) for parts in zip(*results, strict=True))
    best = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, best, axis=1), np.take_along_axis(scores, best, axis=1)


def positions_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64: where each wanted id stands in the ascending `ids`; -1 where it is absent."""
    if not len(ids):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[place] == wanted, place, -1)
