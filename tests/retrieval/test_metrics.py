"""Metrics against worked numbers and against ir_measures."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from ir_measures import R, nDCG

from crops_jax.errors import InputError
from crops_jax.retrieval.metrics import PerQuery, ndcg_at_k, ndcg_full, ndcg_judged, recall_at_k
from crops_jax.retrieval.ranking import NO_ITEM, check_ids, top_k


def test_recall_worked_example():
    lists, truth = [[5, 1, 9, 3], [8, 9, 10, 11], [1, 2, 3, 4]], [[1, 2, 3], [7], []]
    recall = recall_at_k(lists, truth, 4)
    assert recall.summary() == {"value": pytest.approx(1 / 3), "counted": 2, "dropped": 1}
    assert recall_at_k(lists, truth, 2).values[0] == pytest.approx(1 / 3)
    assert recall.where(np.array([False, True, True])).summary() == {"value": 0.0, "counted": 1, "dropped": 1}
    assert PerQuery(np.array([np.nan])).mean is None


def test_recall_counts_distinct_ids():
    assert recall_at_k([[1, 1, 1, 2]], [[1, 1, 2, 99]], 2).values[0] == pytest.approx(2 / 3)
    assert recall_at_k([[NO_ITEM, 2]], [[2]], 1).values[0] == 1


def test_ndcg_worked_examples():
    assert ndcg_at_k([[2, 3, 0, 1, 3]], [[3, 3, 2, 1, 0]], 4).mean == pytest.approx(0.587928, abs=1e-6)
    assert ndcg_at_k([[2, 3, 0, 1]], [[2, 3, 0, 1]], 4).values[0] == pytest.approx(7.847185 / 9.392789, abs=1e-6)
    assert ndcg_at_k([[1, 2]], [[1, 2]], 4).mean == pytest.approx(0.796708, abs=1e-6)
    assert ndcg_at_k([[0], [1]], [[0, 0], [1]], 4).summary() == {"value": 1.0, "counted": 1, "dropped": 1}
    assert ndcg_at_k([[1.5]], [[1.5, 2.5]], 4).mean == pytest.approx(
        (2**1.5 - 1) / ((2**2.5 - 1) + (2**1.5 - 1) / np.log2(3))
    )


def test_judged_only_orders_by_score_then_id():
    ids, labels = [np.array([9, 4, 7])], [np.array([3.0, 0.0, 1.0])]
    assert ndcg_judged(ids, [np.array([2.0, 1.0, 1.0])], labels, 4).mean == pytest.approx(
        (7 + 1 / np.log2(4)) / (7 + 1 / np.log2(3))
    )
    best = ndcg_judged(ids, [np.array([2.0, -np.inf, -1.0])], labels, 4)
    assert best.mean == 1.0


def test_full_retrieval_counts_unjudged_as_zero():
    ndcg, share = ndcg_full([[50, 1, 51, 2, 3], [7]], [{1: 3.0, 2: 1.0, 3: 2.0}, {8: 0.0}], 4)
    ideal = 7 + 3 / np.log2(3) + 1 / np.log2(4)
    assert ndcg.values[0] == pytest.approx((7 / np.log2(3) + 1 / np.log2(5)) / ideal)
    assert share.summary() == {"value": 0.5, "counted": 1, "dropped": 1}


def test_parity_with_ir_measures():
    rng = np.random.default_rng(0)
    qrels, run, lists, truth, grades = {}, {}, [], [], []
    for q in range(30):
        judged = rng.choice(200, 15, replace=False)
        grade = {int(i): int(g) for i, g in zip(judged, rng.integers(0, 5, 15), strict=True)}
        found = rng.choice(200, 60, replace=False)
        qrels[str(q)] = {str(i): g for i, g in grade.items()}
        run[str(q)] = {str(i): float(-rank) for rank, i in enumerate(found)}
        lists.append(found), truth.append([i for i, g in grade.items() if g > 0]), grades.append(grade)
    gains = {g: 2**g - 1 for g in range(5)}
    want = ir_measures.calc_aggregate([R @ 50, nDCG(gains=gains) @ 4], qrels, run)
    assert recall_at_k(lists, truth, 50).mean == pytest.approx(want[R @ 50], abs=1e-12)
    assert ndcg_full(lists, grades, 4)[0].mean == pytest.approx(want[nDCG(gains=gains) @ 4], abs=1e-12)


def test_top_k_breaks_ties_by_smaller_id():
    ids = np.array([2, 3, 5, 8, 9])
    found, values = top_k(np.array([[1.0, 3.0, 1.0, 1.0, 2.0], [0.0, -np.inf, 0.0, -np.inf, -np.inf]]), ids, 4)
    assert found.tolist() == [[3, 9, 2, 5], [2, 5, NO_ITEM, NO_ITEM]]
    assert values[0].tolist() == [3, 2, 1, 1]
    assert top_k(np.zeros((1, 2)), np.array([4, 6]), 3)[0].tolist() == [[4, 6, NO_ITEM]]


def test_corpus_ids_are_checked():
    with pytest.raises(
        InputError, match=r"2 negative ids, such as -7(.|\n)*1 ids occur twice, such as 4(.|\n)*ascending"
    ):
        check_ids(np.array([-7, -8, 4, 4, 3]), "corpus")
