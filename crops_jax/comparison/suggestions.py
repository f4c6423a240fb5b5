"""How well queries are suggested, and how sure that is: HR@16 and MRR@16 of what was taken, and of what was searched.

Intervals are of `statistics`, with prefixes in the place of queries: a prefix is drawn with all of its events, for it
is answered alike, or nearly so, each time it is typed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crops_jax.comparison.statistics import Estimate, estimate, mean_of_seeds
from crops_jax.suggestions.metrics import hits, ranks, reciprocal_ranks, splits
from crops_jax.suggestions.suggester import SHOWN
from crops_jax.suggestions.testset import NextSearches, TakenSuggestions


@dataclass(frozen=True)
class Figure:
    """One figure of a suggester, or the difference of two."""

    truth: str  # a name of `TakenSuggestions.truths` or `NextSearches.truths`
    split: str  # a name of `suggestions.metrics.splits`
    metric: str
    estimate: Estimate | None  # its `queries` are prefixes; None: no event is of this kind


Truth = TakenSuggestions | NextSearches
BySeed = Sequence[Sequence[Sequence[str]]]
"""[seed][event]: suggestions, the best first."""


def figures(test: Truth, suggestions: BySeed, resamples: int, seed: int = 0) -> list[Figure]:
    """The figures of a suggester that answered the events of a test set; of several seeds, of their mean.

    By the length of the prefix those of what was taken alone.

    Args:
      resamples: draws of the prefixes behind an interval.
    """
    return _figures(test, _values(test, suggestions), resamples, seed)


def differences(test: Truth, one: BySeed, other: BySeed, resamples: int, seed: int = 0) -> list[Figure]:
    """The figures of one suggester minus those of another, both on the same draws."""
    of_one, of_other = _values(test, one), _values(test, other)
    apart = {metric: of_one[metric] - of_other[metric] for metric in of_one}
    return _figures(test, apart, resamples, seed)


def _values(test: Truth, suggestions: BySeed) -> dict[str, np.ndarray]:
    places = [ranks(of_seed, test.queries) for of_seed in suggestions]
    return {
        f"HR@{SHOWN}": mean_of_seeds([hits(of_seed) for of_seed in places]),
        f"MRR@{SHOWN}": mean_of_seeds([reciprocal_ranks(of_seed) for of_seed in places]),
    }


def _figures(test: Truth, values: dict[str, np.ndarray], resamples: int, seed: int) -> list[Figure]:
    prefixes = np.array(test.prefixes, object)
    return [
        Figure(truth, split, metric, estimate(of[chosen & rows], prefixes[chosen & rows], resamples, seed))
        for truth, rows in test.truths.items()
        for split, chosen in splits(test).items()
        if truth == "click" or not split.startswith("length")
        for metric, of in values.items()
    ]
