"""Intervals of means over queries that have several events."""

import numpy as np
import pytest

from crops_jax.comparison.statistics import difference, estimate, mean_of_seeds, over_seeds, share_difference, told
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
    found = difference([better], [values], queries, 1000)
    assert found.differs and found.low > 0 and found.value == pytest.approx((better - values).mean())
    assert estimate(better, queries, 1000).low < estimate(values, queries, 1000).high, "alone they overlap"
    assert not difference([values], [values], queries, 1000).differs
    assert difference([values], [better], queries, 1000).high < 0


def test_from_three_seeds_on_a_difference_has_to_be_beyond_the_chance_of_training_too():
    values, queries = case()
    unsteady = [values + gain for gain in (0.00, 0.01, 0.05)]
    found = difference(unsteady, [values], queries, 1000)
    assert found.value == pytest.approx(0.02) == found.low, "every query gains alike"
    # Student's interval by hand: 0.02 -+ 4.30265 * sd(0, 0.01, 0.05) / sqrt(3).
    assert found.over_seeds.low == pytest.approx(
        0.02 - 4.30265 * np.std([0, 0.01, 0.05], ddof=1) / np.sqrt(3), abs=1e-6
    )
    assert not found.differs and told(found)["over_seeds"]["low"] < 0
    steady = difference([values + gain for gain in (0.019, 0.02, 0.021)], [values] * 3, queries, 1000)
    assert steady.differs and steady.over_seeds.low > 0
    assert difference(unsteady[1:], [values] * 2, queries, 1000).over_seeds is None, "two seeds say too little"
    noise = [values + 0.001 + np.random.default_rng(0).normal(0, 0.5, len(values))] * 3
    assert difference(noise, [values] * 3, queries, 1000).over_seeds.differs, "three seeds that agree"
    assert not difference(noise, [values] * 3, queries, 1000).differs, "and queries that do not"


def test_events_without_truth_are_left_out():
    values, queries = np.array([0.5, np.nan, 1.0, 0.0]), np.array(["a", "a", "b", "c"], object)
    found = estimate(values, queries, 200)
    assert (found.value, found.events, found.queries) == (0.5, 3, 3)
    assert estimate(np.full(2, np.nan), queries[:2], 200) is None
    alone = estimate(values[:1], queries[:1], 200)
    assert alone.value == 0.5 and np.isnan(alone.low) and not alone.differs
    two = estimate(values[:3], queries[:3], 200)
    assert (two.low, two.high) == (0.5, 1), "of two queries either may be drawn twice"
    same = estimate(np.ones(4), queries, 200)
    assert (same.low, same.high) == (1, 1)


def test_seeds_are_averaged_event_by_event():
    assert mean_of_seeds([np.array([0.0, np.nan]), np.array([1.0, np.nan])])[0] == 0.5
    with pytest.raises(InputError, match="different events"):
        mean_of_seeds([np.array([0.0, np.nan]), np.array([1.0, 1.0])])


def test_shares_of_different_searches_are_compared_query_by_query():
    rng = np.random.default_rng(0)
    searches = rng.integers(1, 9, (2, 500)).astype(float)
    of = rng.binomial(searches[0].astype(int), 0.4), rng.binomial(searches[1].astype(int), 0.3)
    found = share_difference((of[0], searches[0]), (of[1], searches[1]), 2000)
    assert found.value == pytest.approx(of[0].sum() / searches[0].sum() - of[1].sum() / searches[1].sum())
    # Queries are independent here, so the variances of the two shares add up.
    by_hand = 1.96 * np.sqrt(0.24 / searches[0].sum() + 0.21 / searches[1].sum())
    assert (found.high - found.low) / 2 == pytest.approx(by_hand, rel=0.1) and found.differs
    half = searches[0] / 2
    assert share_difference((half, searches[0]), (half, searches[0]), 200).high == 0
    one = np.array([3.0])
    assert np.isnan(share_difference((one, 2 * one), (one, 4 * one), 200).low), "of one query nothing can be drawn"
    pair = np.array([1.0, 3.0]), np.array([4.0, 4.0])
    assert share_difference(pair, (np.zeros(2), pair[1]), 200).low == 0.25
    missing = np.array([0.0, 2.0]), np.array([0.0, 4.0])
    some = np.array([0.0, 1.0]), np.array([0.0, 4.0])
    assert share_difference(missing, some, 200).value == 0.25, "a query that nobody asked on either day"


def test_students_interval_over_seeds():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.value == 2 and found.high - 2 == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5) == 2 - found.low
    assert np.isnan(over_seeds([1.0]).low) and over_seeds([0.5, 0.5]).low == 0.5
