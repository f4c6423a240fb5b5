"""BM25: the lexical baseline, over the whole text of every item, by the `bm25s` package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from crops_jax.errors import InputError
from crops_jax.normal_text import UNSPACED, marks, normal_form
from crops_jax.progress import progress, quiet
from crops_jax.retrieval.config import BM25Config
from crops_jax.retrieval.ranking import NO_ITEM, check_ids, positions_of, top_k

_UNSPACED = re.compile(f"[{UNSPACED}]+")


@cache
def _word() -> re.Pattern[str]:
    return re.compile(rf"\w[\w{marks()}]*")


def tokenize(text: str) -> list[str]:
    """Words of its `normal_form`; runs of Chinese or kana, which have no spaces, as overlapping pairs of characters.

    >>> tokenize("Cordless Drill 18V"), tokenize("深度学习 intro")
    (['cordless', 'drill', '18v'], ['深度', '度学', '学习', 'intro'])
    """
    return [token for word in _word().findall(normal_form(text)) for token in _split(word)]


def _split(word: str) -> Iterator[str]:
    end = 0
    for run in _UNSPACED.finditer(word):
        if word[end : run.start()]:
            yield word[end : run.start()]
        characters, end = run.group(), run.end()
        yield from (characters[i : i + 2] for i in range(max(len(characters) - 1, 1)))
    if word[end:]:
        yield word[end:]


class BM25Searcher:
    """A `ranking.Searcher` by BM25. A document that shares no term with the query is no result."""

    def __init__(self, ids: np.ndarray, texts: Sequence[str], config: BM25Config):
        """Indexes untruncated document texts (`tokenizer.document_text`) under ascending ids int64[C].

        Raises:
          InputError: ids that are negative, repeated or not ascending, or no text with a single word.
        """
        import bm25s  # an optional dependency: a training host has no use for it

        quiet("bm25s")
        if len(ids) != len(texts):
            raise ValueError(f"{len(ids)} ids for {len(texts)} texts")
        check_ids(ids, "BM25 corpus")
        tokens = [tokenize(text) for text in progress(texts, "reading words", unit="doc")]
        if not any(tokens):
            raise InputError("BM25 corpus", f"none of {len(texts)} documents has a word: a letter or a digit")
        self.ids = np.asarray(ids, np.int64)
        self._index = bm25s.BM25(method="lucene", k1=config.k1, b=config.b)
        self._index.index(tokens, create_empty_token=False, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """float32[C]: sum over the query's tokens, with multiplicity, without the rank-neutral factor k1 + 1."""
        known = self._index.get_tokens_ids(tokenize(query))
        return self._index.get_scores_from_ids(known) if known else np.zeros(len(self.ids), np.float32)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, k], float32[n, k]) as `ranking.Searcher.search`."""
        ids, values = np.full((len(queries), k), NO_ITEM), np.full((len(queries), k), -np.inf, np.float32)
        for row, query in enumerate(progress(queries, "BM25 search", unit="query")):
            ids[row], values[row] = _best(self.scores(query), self.ids, k)
        return ids, values

    def score(self, queries: Sequence[str], item_ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """BM25 of given items, as `ranking.Searcher.score`; an item that shares no term has 0."""
        found = []
        for query, wanted in progress(zip(queries, item_ids, strict=True), "BM25 scores", len(queries), "query"):
            place = positions_of(self.ids, np.asarray(wanted, np.int64))
            found.append(np.where(place >= 0, self.scores(query)[place], -np.inf).astype(np.float32))
        return found


def _best(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    match = np.flatnonzero(scores > 0)
    found, values = top_k(scores[match][None, :], ids[match], k)
    return found[0], values[0]
