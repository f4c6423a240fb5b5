"""What a generator reads and writes, as tokens.

It reads a query (or an item's text) and the token that ends a text. It writes the T codes of an id, after that same
token and without one at the end: all ids are of one length. Code c of place t is the token V + sizes[0] + ... +
sizes[t - 1] + c, with V the tokeniser's tokens, so that each place has tokens of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.generative.item_ids import ItemIds
from crops_jax.suggestions.trie import Trie, trie_of_rows
from crops_jax.text.tokenizer import Tokenizer, TokenRows


class GeneratorText:
    """A tokeniser and the ids of a corpus."""

    def __init__(self, tokenizer: Tokenizer, ids: ItemIds, config: GeneratorConfig):
        """Raises InputError where the tokeniser ends no text, the model has too few rows, or ids of another length."""
        problems, needed = [], tokenizer.vocab_size + sum(ids.sizes)
        if tokenizer.eos_id is None:
            problems.append("text.append_eos = False: a generator needs a token that ends a text (text.eos_token)")
        if needed > config.model.vocab_size:
            problems.append(f"{tokenizer.vocab_size} tokens of text and {sum(ids.sizes)} codes; set "
                            f"suggest.model.vocab_size = {config.model.vocab_size} to at least {needed}")  # fmt: skip
        if len(ids.sizes) != config.id_tokens:
            problems.append(f"ids of {len(ids.sizes)} codes, suggest.ids gives {config.id_tokens}; make them again")
        if problems:
            raise InputError("tokens of a generator", problems)
        self.tokenizer, self.ids, self.config, self.end = tokenizer, ids, config, int(tokenizer.eos_id)
        self._first = tokenizer.vocab_size + np.cumsum([0, *ids.sizes[:-1]])
        areas = np.pad(ids.written_codes + self._first[:-1], ((0, 0), (0, 1)), constant_values=self.end)
        self.tokens = np.concatenate([ids.codes + self._first, areas]).astype(np.int32)
        """int32[C + W, T]: the tokens of every id, then of every written document, whose last one is padding."""
        self.length = np.repeat([len(ids.sizes), len(ids.sizes) - 1], [len(ids.codes), len(areas)]).astype(np.int32)
        """int32[C + W]"""

    def sources(self, texts: Sequence[str]) -> TokenRows:
        """int32[n, max_source_tokens] rows of texts, and their lengths."""
        return self.tokenizer.encode(texts, self.config.max_source_tokens)

    @cached_property
    def trie(self) -> Trie:
        """The ids of all items; of its last C nodes node i is the item of the row order[i]."""
        return trie_of_rows(self.tokens[self._order])

    @cached_property
    def _order(self) -> np.ndarray:
        """int64[C]: rows of the items by rising id."""
        return np.lexsort(self.ids.codes.T[::-1])

    @cached_property
    def _edges(self) -> np.ndarray:
        """int64[edges], rising: each edge of the trie as a number, of the node that it leaves and its token."""
        return self._edge(np.repeat(np.arange(len(self.trie.count)), self.trie.count), self.trie.token)

    def _edge(self, node: np.ndarray, token: np.ndarray) -> np.ndarray:
        return node.astype(np.int64) * self.config.model.vocab_size + token

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """int64[n]: the rows of the items whose ids are int[n, T] tokens."""
        node = np.zeros(len(tokens), np.int64)
        for column in tokens.T:
            node = self.trie.child[np.searchsorted(self._edges, self._edge(node, column))]
        return self._order[node - (len(self.trie.count) - len(self._order))]
