"""What the sources say of a day's queries: how many each one reaches, and what the exposure log alone would hide.

Counted where groups are made, from all candidates before any cap. A part holds whole queries, so the counts of parts
add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from crops_jax.labels import LETTERS, SOURCES, LabelsConfig, label_tables, source_bits

EXPOSED = ("P0", "X3")  # sources whose documents the platform has shown for the query
_BINS = (0, 1, 2, 3, 5, 9, 17, 33, 65)  # lower ends of the numbers of documents a query


def _sets() -> np.ndarray:
    return np.zeros(1 << len(SOURCES), np.int64)


@dataclass
class Coverage:
    """(query, document) pairs and queries by the sources that hold for them, whether these take part or not."""

    pairs: np.ndarray = field(default_factory=_sets)  # int64[2^sources]
    queries: np.ndarray = field(default_factory=_sets)  # likewise: sources that have any document of the query
    positives: Counter[int] = field(default_factory=Counter)  # positives of a query -> queries
    hidden: Counter[int] = field(default_factory=Counter)  # positives never exposed for a query -> queries

    def count(self, query: np.ndarray, bits: np.ndarray, labels: LabelsConfig) -> None:
        """Counts pairs, those of a query together.

        Args:
          query: int64[P], numbers of the queries.
          bits: int32[P], all sources that hold for each pair.
        """
        if not len(query):
            return
        order = np.argsort(query, kind="stable")
        starts = np.flatnonzero(np.diff(query[order], prepend=-1))
        positive, hidden = _positive(labels)
        self.pairs += np.bincount(bits, minlength=len(self.pairs))
        self.queries += np.bincount(np.bitwise_or.reduceat(bits[order], starts), minlength=len(self.queries))
        for counter, which in ((self.positives, positive), (self.hidden, hidden)):
            of_query = np.add.reduceat(which[bits[order]].astype(np.int64), starts)
            found, queries = np.unique(of_query, return_counts=True)
            counter.update(dict(zip(found.tolist(), queries.tolist(), strict=True)))

    def add(self, other: Coverage) -> None:
        """Takes what another part counted."""
        self.pairs += other.pairs
        self.queries += other.queries
        self.positives.update(other.positives)
        self.hidden.update(other.hidden)

    def to_json(self) -> dict[str, Any]:
        """As the manifest of a part has it; `from_json` reads it."""
        return {
            "pairs": self.pairs.tolist(),
            "queries": self.queries.tolist(),
            "positives": self.positives,
            "hidden": self.hidden,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Coverage:
        """What `to_json` gave."""
        counters = [Counter({int(n): q for n, q in data[name].items()}) for name in ("positives", "hidden")]
        return Coverage(np.array(data["pairs"]), np.array(data["queries"]), *counters)

    def report(self, labels: LabelsConfig) -> dict[str, Any]:
        """The report, JSON-able.

        `positives_never_exposed` counts positives of the arm that no search of the query has shown: what a log of
        exposures hides. `conflicts` counts pairs on whose label the arm's sources do not agree, by the labels; the
        highest is taken.
        """
        sets = np.arange(len(self.pairs))
        label_of, _ = label_tables(labels)
        label = label_of[sets & source_bits(*labels.sources)]
        positive, hidden = _positive(labels)
        queries = int(self.queries.sum())
        return {
            "queries": queries,
            "pairs": int(self.pairs[label > 0].sum()),
            "sources": {
                letter: {
                    "queries": int(self.queries[_holds(letter)].sum()),
                    "pairs": int(self.pairs[_holds(letter)].sum()),
                    "positives_never_exposed": int(self.pairs[_holds(letter) & hidden].sum()),
                }
                for letter in labels.sources
            },
            "labels": {
                str(n): int(self.pairs[label == n].sum()) for n in sorted({*label.tolist()} - {0}, reverse=True)
            },
            "positives": int(self.pairs[positive].sum()),
            "positives_never_exposed": int(self.pairs[hidden].sum()),
            "queries_by_positives": _binned(self.positives),
            "queries_by_positives_never_exposed": _binned(self.hidden),
            "conflicts": self._conflicts(labels),
        }

    def _conflicts(self, labels: LabelsConfig) -> dict[str, int]:
        found: Counter[str] = Counter()
        for number in np.flatnonzero(self.pairs).tolist():
            given = sorted({labels.levels[s] for i, s in enumerate(LETTERS) if number >> i & 1 and s in labels.sources})
            if len(given) > 1:
                found[f"{given[-1]} over {' '.join(map(str, given[-2::-1]))}"] += int(self.pairs[number])
        return dict(sorted(found.items(), reverse=True))


def _holds(letter: str) -> np.ndarray:
    """bool[2^sources]: the sets with a source."""
    return (np.arange(1 << len(SOURCES)) >> LETTERS.index(letter) & 1).astype(bool)


def _positive(labels: LabelsConfig) -> tuple[np.ndarray, np.ndarray]:
    """bool[2^sources] of every set: whether its document is a positive, and one that was never exposed."""
    sets = np.arange(1 << len(SOURCES))
    positive = label_tables(labels)[0][sets & source_bits(*labels.sources)] >= labels.min_positive
    return positive, positive & ((sets & source_bits(*EXPOSED)) == 0)


def _binned(counter: Mapping[int, int]) -> dict[str, int]:
    """Queries by number of documents, in bins that double."""
    found = dict.fromkeys(_BINS, 0)
    for number, queries in counter.items():
        found[max(low for low in _BINS if low <= number)] += queries
    names = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in pairwise(_BINS)]
    return dict(zip([*names, f"{_BINS[-1]} and more"], found.values(), strict=True))
