"""HR@16 and MRR@16 in their parts, with intervals over prefixes."""

import math
from dataclasses import replace

import numpy as np
import pytest

from crops_jax.comparison.suggestion_page import Answers, compared, legend
from crops_jax.comparison.suggestions import differences, figures
from crops_jax.suggestions.testset import NextSearches, SuggestionTest, TakenSuggestions

PLACES = [1, 3, 0, 17]  # of the wanted query; 0: it is not there
LISTS = [[f"q{n}" if n + 1 != place else "Wanted " for n in range(20)] for place in PLACES]


def asked(prefixes, ordered, seen):
    n = len(prefixes)
    lengths = np.array([len(p) for p in prefixes], np.int32)
    ids, seen = [f"e{i}" for i in range(n)], np.array(seen, bool)
    return TakenSuggestions(
        ids, [None] * n, prefixes, ["wanted"] * n, seen, lengths, [[]] * n, ordered=np.array(ordered, bool)
    )


FOUR = asked(["w", "wa", "wa", "wanted thing or so"], [1, 0, 0, 1], [1, 1, 0, 0])


def values(rows):
    return {(r.truth, r.split, r.metric): r.estimate and r.estimate.value for r in rows}


def test_the_worked_numbers_and_their_parts():
    found = values(figures(FOUR, [LISTS], 50))
    assert found["click", "all", "HR@16"] == 0.5 and found["click", "all", "MRR@16"] == pytest.approx(1 / 3)
    assert found["order", "all", "HR@16"] == 0.5 and found["order", "all", "MRR@16"] == 0.5
    assert found["click", "seen", "HR@16"] == 1.0 and found["click", "unseen", "HR@16"] == 0.0
    assert found["click", "seen", "MRR@16"] == pytest.approx(2 / 3)
    assert found["order", "seen", "MRR@16"] == 1.0
    by_length = {split: value for (truth, split, metric), value in found.items()
                 if (truth, metric) == ("click", "HR@16") and split.startswith("length")}  # fmt: skip
    assert by_length == {"length 1": 1.0, "length 2": 0.5, "length 3": None, "length 4-5": None, "length 6-8": None,
                         "length 9-12": None, "length 13+": 0.0}  # fmt: skip


def test_two_suggestions_that_were_taken_in_one_request_are_two():
    none = np.zeros(0, bool)
    test = SuggestionTest(replace(FOUR, events=["a", "b", "b", "c"]), NextSearches(
        [], [], [], [], none, np.zeros(0, np.int32), [], taken=none, shown=none), 0, 0, 0)  # fmt: skip
    told = legend(compared([Answers("One", "baseline", [LISTS], 1.0)], test, 50))
    assert "4 suggestions that were taken, of 3 prefixes (2 of these led to an order, 2 have a prefix" in told


def test_a_prefix_is_one_draw_with_all_of_its_events():
    """A hundred events of one prefix are no surer than one; a hundred of as many prefixes are."""
    hit, miss = ["wanted"], ["another"]
    rows = [(f, f.estimate) for f in figures(asked(["w"] * 100, [1] * 100, [1] * 100), [[hit, miss] * 50], 200)]
    of_one = next(e for f, e in rows if (f.truth, f.split, f.metric) == ("click", "all", "HR@16"))
    assert (of_one.value, of_one.events, of_one.queries) == (0.5, 100, 1) and math.isnan(of_one.low)
    many = asked([f"w{n}" for n in range(100)], [1] * 100, [1] * 100)
    first, *_ = figures(many, [[hit, miss] * 50], 2_000)
    # The mean of 100 draws of 0 and 1: 0.5 -+ 1.96 * 0.05.
    assert (first.estimate.low, first.estimate.high) == pytest.approx((0.402, 0.598), abs=0.015)
    apart, *_ = differences(many, [[hit, miss] * 50], [[hit, hit] * 50], 200)
    assert apart.estimate.value == -0.5 and apart.estimate.differs
    seeds, *_ = figures(many, [[hit, miss] * 50, [hit, hit] * 50], 200)
    assert seeds.estimate.value == 0.75
    same, *_ = differences(many, [[hit, miss] * 50], [[hit, miss] * 50], 200)
    assert (same.estimate.value, same.estimate.low, same.estimate.high) == (0, 0, 0)
