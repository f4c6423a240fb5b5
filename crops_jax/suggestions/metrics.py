"""HR@k and MRR@k of suggested queries, event by event.

A suggestion is right if it is the query that was taken, or searched next, but for what `normal_text` calls one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from crops_jax.normal_text import normal_form
from crops_jax.suggestions.suggester import SHOWN
from crops_jax.suggestions.testset import Events

_LENGTHS = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 8), (9, 12))  # characters of a prefix; longer ones are one group


def ranks(suggestions: Sequence[Sequence[str]], wanted: Sequence[str]) -> np.ndarray:
    """int64[E]: the place of the wanted query, from 1, among the distinct suggestions; 0 where it is not there.

    >>> ranks([["Lamp", "desk lamp"], ["lamp", "LAMP ", "desk lamp"], []], ["lamp", "desk  lamp", "lamp"]).tolist()
    [1, 2, 0]
    """
    found = np.zeros(len(wanted), np.int64)
    for event, (row, query) in enumerate(zip(suggestions, wanted, strict=True)):
        forms = list(dict.fromkeys(map(normal_form, row)))
        form = normal_form(query)
        found[event] = forms.index(form) + 1 if form in forms else 0
    return found


def hits(places: np.ndarray, k: int = SHOWN) -> np.ndarray:
    """float64[E]: 1 where `ranks` are within the first k, else 0; the mean is HR@k.

    >>> float(hits(np.array([1, 3, 0, 17])).mean())
    0.5
    """
    return ((places > 0) & (places <= k)).astype(np.float64)


def reciprocal_ranks(places: np.ndarray, k: int = SHOWN) -> np.ndarray:
    """float64[E]: 1 / rank where `ranks` are within the first k, else 0; the mean is MRR@k.

    >>> round(float(reciprocal_ranks(np.array([1, 3, 0, 17])).mean()), 6)
    0.333333
    """
    return hits(places, k) / np.maximum(places, 1)


def splits(test: Events) -> Mapping[str, np.ndarray]:
    """bool[E] by name: all events, prefixes seen on the train day and unseen ones, and prefixes by length."""
    named = {"all": np.ones(len(test.events), bool), "seen": test.seen, "unseen": ~test.seen}
    for low, high in _LENGTHS:
        name = f"length {low}" if low == high else f"length {low}-{high}"
        named[name] = (test.lengths >= low) & (test.lengths <= high)
    return named | {f"length {_LENGTHS[-1][1] + 1}+": test.lengths > _LENGTHS[-1][1]}
