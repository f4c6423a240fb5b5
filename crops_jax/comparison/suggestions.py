"""How well queries are suggested, and how sure that is: HR@16 and MRR@16 of what was taken, and of what was searched.

Intervals are of `statistics`, with prefixes in the place of queries: a prefix is drawn with all of its events, for it
is answered alike, or nearly so, each time it is typed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crops_jax.comparison.statistics import Difference, Estimate, difference, estimate, mean_of_seeds
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
    values, prefixes = _values(test, suggestions), np.array(test.prefixes, object)

    def of_mean(metric: str, rows: np.ndarray) -> Estimate | None:
        return estimate(mean_of_seeds(values[metric])[rows], prefixes[rows], resamples, seed)

    return _figures(test, of_mean)


def differences(test: Truth, one: BySeed, other: BySeed, resamples: int, seed: int = 0) -> list[Figure]:
    """The figures of one suggester minus those of another, both on the same draws."""
    of_one, of_other, prefixes = _values(test, one), _values(test, other), np.array(test.prefixes, object)

    def apart(metric: str, rows: np.ndarray) -> Difference | None:
        a, b = ([of_seed[rows] for of_seed in side[metric]] for side in (of_one, of_other))
        return difference(a, b, prefixes[rows], resamples, seed)

    return _figures(test, apart)


def _values(test: Truth, suggestions: BySeed) -> dict[str, list[np.ndarray]]:
    """float64[E] a seed, by metric."""
    places = [ranks(of_seed, test.queries) for of_seed in suggestions]
    return {f"HR@{SHOWN}": [*map(hits, places)], f"MRR@{SHOWN}": [*map(reciprocal_ranks, places)]}


def _figures(test: Truth, measured: Callable[[str, np.ndarray], Estimate | None]) -> list[Figure]:
    """What `measured` says of every metric (HR and MRR) and of the events (bool[E]) of every truth and split."""
    return [
        Figure(truth, split, metric, measured(metric, chosen & rows))
        for truth, rows in test.truths.items()
        for split, chosen in splits(test).items()
        if truth == "click" or not split.startswith("length")
        for metric in (f"HR@{SHOWN}", f"MRR@{SHOWN}")
    ]
