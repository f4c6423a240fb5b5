"""Recall@K (paper Eq. 4) and NDCG@K (Eqs. 5 and 6); numpy only.

All metrics are fractions in [0, 1]; tables multiply by 100. Every metric gives a value a query, so that seen and
unseen queries, intervals and paired tests come from one computation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crops_jax.retrieval.ranking import NO_ITEM


@dataclass(frozen=True)
class PerQuery:
    """One metric, query by query."""

    values: np.ndarray  # float64[n]; NaN where the query has no ground truth and takes no part

    def where(self, mask: np.ndarray) -> PerQuery:
        """The queries chosen by bool[n]."""
        return PerQuery(self.values[mask])

    @property
    def mean(self) -> float | None:
        """Macro average over the queries that take part; None where there is none."""
        return float(np.nanmean(self.values)) if self.counted else None

    @property
    def counted(self) -> int:
        """Queries that take part."""
        return int(np.isfinite(self.values).sum())

    @property
    def dropped(self) -> int:
        """Queries without ground truth."""
        return len(self.values) - self.counted

    def summary(self) -> dict[str, float | int | None]:
        """{"value", "counted", "dropped"}, ready for JSON."""
        return {"value": self.mean, "counted": self.counted, "dropped": self.dropped}


def recall_at_k(retrieved: Sequence[Sequence[int]], relevant: Sequence[Sequence[int]], k: int) -> PerQuery:
    """|R_q and S_q^(k)| / |R_q| for every query (Eq. 4); a query with empty R_q is dropped and counted.

    Args:
      retrieved: ids for each query, best first; the first k *distinct* ones count, `NO_ITEM` never.
      relevant: R_q for each query; repeated ids count once, ids outside the corpus stay in the denominator.

    >>> recall_at_k([[5, 1, 9, 3], [8, 9], [1]], [[1, 2, 3], [7], []], 4).values.round(4).tolist()
    [0.6667, 0.0, nan]
    """
    values = np.full(len(relevant), np.nan)
    for q, (row, truth) in enumerate(zip(retrieved, relevant, strict=True)):
        truth = {int(i) for i in truth}
        if truth:
            values[q] = len(truth.intersection(_distinct(row)[:k])) / len(truth)
    return PerQuery(values)


def ndcg_at_k(ranked: Sequence[Sequence[float]], judged: Sequence[Sequence[float]], k: int) -> PerQuery:
    """DCG@k / IDCG@k with gain 2^label - 1 (Eqs. 5 and 6); a query whose ideal is 0 is dropped and counted.

    Args:
      ranked: labels in the system's order, unjudged as 0; a list shorter than k sums what it has.
      judged: labels of *all* judged documents of the query, in any order; the ideal is their best order.

    >>> ndcg_at_k([[2, 3, 0, 1, 3]], [[3, 3, 2, 1, 0]], 4).values.round(6).tolist()
    [0.587928]
    """
    values = np.full(len(judged), np.nan)
    for q, (row, labels) in enumerate(zip(ranked, judged, strict=True)):
        ideal = _dcg(np.sort(np.asarray(labels, np.float64))[::-1], k)
        if ideal > 0:
            values[q] = _dcg(np.asarray(row, np.float64), k) / ideal
    return PerQuery(values)


def ndcg_judged(
    ids: Sequence[np.ndarray], scores: Sequence[np.ndarray], labels: Sequence[np.ndarray], k: int
) -> PerQuery:
    """NDCG@k of the judged documents alone, ordered by the system's score, ties by smaller id.

    Args:
      ids, scores, labels: for each query, one entry a judged document, aligned; -inf scores rank last.
    """
    ranked = [np.asarray(label)[np.lexsort((i, -np.asarray(s, np.float64)))] for i, s, label
              in zip(ids, scores, labels, strict=True)]  # fmt: skip
    return ndcg_at_k(ranked, labels, k)


def ndcg_full(
    retrieved: Sequence[Sequence[int]], grades: Sequence[Mapping[int, float]], k: int
) -> tuple[PerQuery, PerQuery]:
    """NDCG@k of the whole result list, unjudged documents as label 0, and judged@k: the share of judged ones in it.

    Args:
      grades: {item id: label} of all judged documents, for each query.
    """
    lists = [_distinct(row)[:k] for row in retrieved]
    ranked = [[grade.get(i, 0.0) for i in row] for row, grade in zip(lists, grades, strict=True)]
    share = [np.mean([i in grade for i in row]) if row else 0.0 for row, grade in zip(lists, grades, strict=True)]
    ndcg = ndcg_at_k(ranked, [list(grade.values()) for grade in grades], k)
    return ndcg, PerQuery(np.where(np.isfinite(ndcg.values), np.asarray(share, np.float64), np.nan))


def _dcg(labels: np.ndarray, k: int) -> float:
    gains = np.exp2(labels[:k]) - 1
    return float(np.sum(gains / np.log2(np.arange(2, len(gains) + 2))))


def _distinct(row: Sequence[int]) -> list[int]:
    return [i for i in dict.fromkeys(np.asarray(row).tolist()) if i != NO_ITEM]
