"""A trained generator as a retriever: beam search among the ids of all items.

Letters: n queries, B searched at once, K beams, T tokens of an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from crops_jax.batch import Tokens
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.generative.reading import GeneratorText
from crops_jax.models.bart import Bart
from crops_jax.progress import progress
from crops_jax.retrieval.ranking import NO_ITEM
from crops_jax.suggestions.batches import AnswersBatch, before
from crops_jax.suggestions.beam import Written, write
from crops_jax.suggestions.likelihood import answers_log_probability
from crops_jax.suggestions.trie import Trie

_PAIRS_AT_ONCE = 256  # of a query and an item, whose log-probability is asked for


class GenerativeSearcher:
    """A `ranking.Searcher`: the score of an item is log pi(its id | query), summed over the id's tokens.

    A query costs the encoder once and the decoder K * T tokens, whatever the number of items.
    """

    def __init__(self, model: Bart, text: GeneratorText):
        """Takes a model whose arrays lie on one device."""
        config = text.config
        self.ids = text.ids.items
        self._model, self._text, self._config = model, text, config
        self._trie = jax.tree.map(jnp.asarray, text.trie)
        self._write = jax.jit(partial(_write, config=config, end=text.end))
        self._score = jax.jit(partial(answers_log_probability, config=config))

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, k], float32[n, k]) as `ranking.Searcher.search`: the best that the beam found.

        A query without text is read as such, and finds what the generator writes for nothing.

        Raises:
          InputError: k items are asked for, and the beam is narrower.
        """
        if k > self._config.beams:
            said = f"a beam of {self._config.beams} finds no more items, and {k} are asked for; set it to at least {k}"
            raise InputError("suggest.beams", said)
        found, scores = np.full((len(queries), k), NO_ITEM), np.full((len(queries), k), -np.inf, np.float32)
        source, at_once = self._text.sources(queries), self._config.beam_queries
        for first in progress(range(0, len(queries), at_once), "writing item ids", unit="batch"):
            rows = np.arange(first, first + at_once) % len(queries)  # the last batch is filled up: one shape
            out: Written = jax.device_get(self._write(self._model, source.ids[rows], source.length[rows], self._trie))
            for n, (tokens, score, there) in enumerate(zip(*out, strict=True)):
                if first + n < len(queries):
                    items, best = self.ids[self._text.rows(tokens[there])], score[there]
                    order = np.lexsort((items, -best))[:k]
                    found[first + n, : len(order)], scores[first + n, : len(order)] = items[order], best[order]
        return found, scores

    def score(self, queries: Sequence[str], item_ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Log-probabilities of given items, as `ranking.Searcher.score`."""
        row = [self._text.ids.rows_of(items) for items in item_ids]
        query = np.repeat(np.arange(len(queries)), [len(rows) for rows in row])
        rows = np.concatenate([*row, np.zeros(0, np.int64)]).astype(np.int64)
        said = np.full(len(rows), -np.inf, np.float32)
        known = np.flatnonzero((rows >= 0) & (rows < len(self.ids)))
        source = self._text.sources(queries)
        for first in progress(range(0, len(known), _PAIRS_AT_ONCE), "scores of items", unit="batch"):
            pairs = known[np.arange(first, first + _PAIRS_AT_ONCE) % len(known)]
            ids = self._text.tokens[rows[pairs]][:, None]
            read = Tokens(source.ids[query[pairs]], source.length[query[pairs]])
            length = np.full(ids.shape[:2], ids.shape[2], np.int32)
            batch = AnswersBatch(read, before(ids, self._text.end), Tokens(ids, length))
            said[pairs] = np.asarray(self._score(self._model, batch))[:, 0]
        return np.split(said, np.cumsum([len(rows) for rows in row])[:-1]) if row else []


def _write(model: Bart, ids: jax.Array, length: jax.Array, trie: Trie, *, config: GeneratorConfig, end: int) -> Written:
    present = jnp.arange(ids.shape[1])[None, :] < length[:, None]
    return write(model, ids, present, config.beam, start=end, end=end, dtype=jnp.dtype(config.dtype), trie=trie)
