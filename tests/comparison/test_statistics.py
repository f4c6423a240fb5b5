"""Intervals of means over queries that have several events."""

import numpy as np
import pytest

from crops_jax.comparison.statistics import difference, estimate, mean_of_seeds
from crops_jax.errors import InputError


def case(queries=400, seed=0):
    """float64[E], object[E]: between 1 and 5 events a query, all of one query alike."""
    rng = np.random.default_rng(seed)
    of_query, events = rng.uniform(size=queries), rng.integers(1, 6, queries)
    names = np.array([f"q{i}" for i in range(queries)], object)
    return np.repeat(of_query, events), np.repeat(names, events)


def test_queries_are_drawn_with_all_their_events():
    """The interval is that of a ratio estimator over queries, wider than one of as many independent events."""
    values, queries = case()
    found = estimate(values, queries, 2000)
    assert found.value == pytest.approx(values.mean()) and (found.events, found.queries) == (len(values), 400)
    _, of_event = np.unique(queries.astype(str), return_inverse=True)
    sums, counts = np.bincount(of_event, values), np.bincount(of_event)
    residual = sums - found.value * counts
    by_query = 1.96 * np.sqrt((residual**2).sum()) / len(values)
    by_event = 1.96 * values.std() / np.sqrt(len(values))
    half = (found.high - found.low) / 2
    assert half == pytest.approx(by_query, rel=0.08) and half > 1.4 * by_event


def test_a_paired_difference_is_surer_than_two_means():
    values, queries = case()
    better = values + 0.01 + np.random.default_rng(1).normal(0, 0.02, len(values))
    found = difference(better, values, queries, 1000)
    assert found.differs and found.low > 0 and found.value == pytest.approx((better - values).mean())
    assert estimate(better, queries, 1000).low < estimate(values, queries, 1000).high, "alone they overlap"
    assert not difference(values, values, queries, 1000).differs
    assert difference(values, better, queries, 1000).high < 0


def test_events_without_truth_are_left_out():
    values, queries = np.array([0.5, np.nan, 1.0, 0.0]), np.array(["a", "a", "b", "c"], object)
    found = estimate(values, queries, 200)
    assert (found.value, found.events, found.queries) == (0.5, 3, 3)
    assert estimate(np.full(2, np.nan), queries[:2], 200) is None
    alone = estimate(values[:1], queries[:1], 200)
    assert alone.value == 0.5 and np.isnan(alone.low) and not alone.differs
    same = estimate(np.ones(4), queries, 200)
    assert (same.low, same.high) == (1, 1)


def test_seeds_are_averaged_event_by_event():
    assert mean_of_seeds([np.array([0.0, np.nan]), np.array([1.0, np.nan])])[0] == 0.5
    with pytest.raises(InputError, match="different events"):
        mean_of_seeds([np.array([0.0, np.nan]), np.array([1.0, 1.0])])
