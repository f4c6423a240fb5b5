"""A discriminator without weights, for texts that no pre-trained model reads: how many words two texts share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from crops_jax.text.hashed_ids import terms


class WordOverlap:
    """`mining.relevance.Relevance` by words, `hashed_ids.terms`.

    It knows no meaning: synonyms score 0, and so does a document in other words than the query. For anonymous token
    ids there is nothing better without training on the log itself.
    """

    def scores(self, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float32[n] in [0, 1]: the share of the query's words that the document has.

        >>> WordOverlap().scores(["20 34 3 5"], ["3 7 20 99"]).tolist()
        [0.5]
        """
        return np.array([_share(_words(q), _words(t)) for q, t in zip(queries, texts, strict=True)], np.float32)

    def prepare(self, pairs: object, documents: bool, share: tuple[int, int]) -> None:
        """Nothing: words are compared as they come."""

    def refresh(self) -> None:
        """Nothing: nothing is kept."""

    def query_similarity(self, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """float32[n] in [0, 1]: the share of the shorter query's words that the other has."""
        pairs = ((_words(x), _words(y)) for x, y in zip(a, b, strict=True))
        return np.array([_share(*sorted(pair, key=len)) for pair in pairs], np.float32)


def _share(words: frozenset[str], others: frozenset[str]) -> float:
    return len(words & others) / len(words) if words else 0.0


@lru_cache(maxsize=1 << 17)
def _words(text: str) -> frozenset[str]:
    return frozenset(terms(text))
