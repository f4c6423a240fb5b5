"""Negatives that are near their query: the best documents of a ranker, without the query's known positives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from crops_jax.progress import progress
from crops_jax.retrieval.ranking import NO_ITEM

Search = Callable[[np.ndarray, int], np.ndarray]  # (numbers of queries, k) -> int64[n, k] ids, best first
_QUERIES = 256  # ranked at a time


def nearest_negatives(
    search: Search, known: Sequence[np.ndarray], top: int, keys: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """For each query the ids of up to `top` nearest documents that are no known positives, nearest first.

    Args:
      search: the ranker; it may give fewer than k, filled up with `NO_ITEM`.
      known: item ids of each query's positives.
      keys: the key of each document's text: a copy of a positive is no negative.
    """
    most = max((len(items) for items in known), default=0)
    found: list[np.ndarray] = []
    for start in progress(range(0, len(known), _QUERIES), "nearest documents", unit="tile"):
        part = np.arange(start, min(start + _QUERIES, len(known)))
        for row, number in zip(search(part, top + most), part, strict=True):
            row = row[row != NO_ITEM]
            found.append(row[~np.isin(keys(row), keys(known[number]))][:top])
    return found
