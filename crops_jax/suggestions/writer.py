"""A trained writer as something that suggests: it reads a request, and beam search writes the best queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from crops_jax.errors import InputError
from crops_jax.models.bart import Bart
from crops_jax.normal_text import normal_form
from crops_jax.progress import progress
from crops_jax.suggestions.beam import Written, write
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.suggester import SHOWN, Asked
from crops_jax.suggestions.trie import Trie, trie_of

Related = Callable[[Sequence[str]], list[list[str]]]
"""Prefixes -> the queries related to each."""


class Writer:
    """Writes suggestions (`Suggester`): the distinct queries among the best that the beam found, best first.

    A request costs the encoder once, and the decoder `beams` tokens for each token that is written.
    """

    def __init__(
        self, model: Bart, text: WriterText, related: Related | None = None, dictionary: Sequence[str] | None = None
    ):
        """Takes a model whose arrays lie on one device.

        Args:
          related: finds what the writer was trained to read beside the prefix.
          dictionary: the only queries that it may write; None: any text.

        Raises:
          InputError: the dictionary is empty, or has no query that the writer has the tokens for.
        """
        config = text.config
        self.model, self.text, self.related, self.dictionary = model, text, related, dictionary
        self.beam = replace(config.beam, max_tokens=min(config.beam.max_tokens, config.max_query_tokens))
        self.counts: dict[str, int] = {}  # of known queries: all, and those that cannot be suggested
        self._spelled: dict[tuple[int, ...], str] | None = None
        trie = None
        if dictionary is not None:
            trie, self._spelled = self._known(dictionary)
        self._write = jax.jit(partial(
            write, config=self.beam, start=text.end, end=text.end, dtype=jnp.dtype(config.dtype), trie=trie
        ))  # fmt: skip

    def _known(self, dictionary: Sequence[str]) -> tuple[Trie, dict[tuple[int, ...], str]]:
        if not dictionary:
            raise InputError("suggestions", "there is no query that may be suggested")
        spelled: dict[tuple[int, ...], str] = {}
        tokens = self.text.whole_answers(dictionary, self.beam.max_tokens)
        for row, query in zip(tokens, dictionary, strict=True):
            if row is not None:
                spelled.setdefault(row, query)
        too_long = tokens.count(None)
        self.counts = {"known": len(dictionary), "known_too_long": too_long,
                       "known_of_equal_tokens": len(dictionary) - too_long - len(spelled)}  # fmt: skip
        if not spelled:
            raise InputError("suggest.max_query_tokens", f"no known query has {self.beam.max_tokens} tokens or fewer")
        return trie_of(sorted(spelled)), spelled

    def suggest(self, asked: Asked, count: int = SHOWN) -> list[list[str]]:
        """See `Suggester`. At most `beam.suggestions` queries each; equal requests are answered once."""
        ids, length = self.sources(asked)
        if not len(ids):
            return []
        different, place = np.unique(ids, axis=0, return_inverse=True)
        lengths = np.zeros(len(different), np.int32)
        lengths[place.ravel()] = length
        found = [self._distinct(rows, there)[:count] for rows, there, _ in self.written(different, lengths)]
        return [found[n] for n in place.ravel().tolist()]

    def sources(self, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
        """(int32[n, S] rows that the model reads for n requests, int32[n] their lengths)."""
        return self.text.sources(*self.read(asked))

    def read(self, asked: Asked) -> tuple[list[str], list[list[str]], Sequence[Sequence[str]]]:
        """What is read of n requests: prefixes, as the examples have them, related queries, recent searches."""
        prefixes = [normal_form(prefix) for prefix in asked.prefixes]
        related = self.related(prefixes) if self.related is not None else [[]] * len(prefixes)
        return prefixes, related, asked.recent

    def written(self, ids: np.ndarray, length: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each row: int32[K, T] tokens, bool[K] whether there is such a text, float32[K] its score."""
        at_once, found = self.text.config.beam_requests, []
        for first in progress(list(range(0, len(ids), at_once)), "writing suggestions", unit="batch"):
            # The last batch is filled up, so that there are two shapes to compile: of one request, and of many.
            rows = np.arange(first, first + (at_once if len(ids) > 1 else 1)) % len(ids)
            present = np.arange(ids.shape[1])[None, :] < length[rows, None]
            out: Written = jax.device_get(self._write(self.model, ids[rows], present))
            found += list(zip(out.tokens, out.complete, out.score, strict=True))[: len(ids) - first]
        return found

    def queries(self, tokens: np.ndarray) -> list[str]:
        """The queries of int32[n, T] rows that were written."""
        if self._spelled is None:
            return self.text.texts(tokens)
        rows = (tuple(row[: row.index(self.text.end) + 1]) for row in tokens.tolist())
        return [self._spelled[row] for row in rows]

    def _distinct(self, tokens: np.ndarray, there: np.ndarray) -> list[str]:
        """The texts that are there, the best first; none is there twice."""
        by_form: dict[str, str] = {}
        for query in self.queries(tokens[there]):
            by_form.setdefault(normal_form(query), query)
        return [query for form, query in by_form.items() if form]
