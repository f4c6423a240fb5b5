"""What a writer reads and writes, as tokens.

It reads `prefix </s> related </s> related </s> </s> recent </s> recent </s>`: pieces that are ended by the token that
ends a text, and one more of these between what is related to the prefix and what the user searched before. It writes a
query and the token that ends it, after that same token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crops_jax.errors import InputError
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.text.tokenizer import Tokenizer, TokenRows

_TOKENS_A_LETTER = 4  # at most, of byte-level tokens
_LETTERS_A_TOKEN = 4  # usually; more letters of a prefix than this fills all slots with are not looked at


class WriterText:
    """A tokeniser, and how many tokens a writer reads and writes."""

    def __init__(self, tokenizer: Tokenizer, config: WriterConfig):
        """Raises InputError where the tokeniser ends no text, or knows more tokens than the model has rows for."""
        problems = []
        if tokenizer.eos_id is None:
            problems.append("text.append_eos = False: a writer needs a token that ends a text (text.eos_token)")
        if tokenizer.vocab_size > config.model.vocab_size:
            problems.append(f"{tokenizer.path} has {tokenizer.vocab_size} tokens, suggest.model.vocab_size is "
                            f"{config.model.vocab_size}; set it to at least that")  # fmt: skip
        if problems:
            raise InputError("tokens of suggestions", problems)
        self.tokenizer, self.config, self.end = tokenizer, config, int(tokenizer.eos_id)

    def sources(
        self, prefixes: Sequence[str], related: Sequence[Sequence[str]], recent: Sequence[Sequence[str]]
    ) -> TokenRows:
        """int32[n, max_source_tokens] rows of n requests, and their lengths.

        Related queries come before recent ones; the first that does not fit ends the row.
        """
        slots, letters = self.config.max_source_tokens, _LETTERS_A_TOKEN * self.config.max_source_tokens
        rows = [
            (prefix[-letters:], list(near), list(before)[: self.config.recent])
            for prefix, near, before in zip(prefixes, related, recent, strict=True)
        ]
        firsts = self._pieces({prefix for prefix, _, _ in rows})
        # A text of as many tokens as there are slots does not fit behind a prefix: what more it has is not asked for.
        pieces = self._pieces({text for _, near, before in rows for text in (*near, *before)}, slots)
        ids = np.full((len(rows), slots), self.tokenizer.pad_id, np.int32)
        length = np.empty(len(rows), np.int32)
        for n, (prefix, near, before) in enumerate(rows):
            row = [*firsts[prefix][-(slots - 1) :], self.end]
            for tokens in (*(pieces[text] for text in near), [], *(pieces[text] for text in before)):
                if len(row) + len(tokens) + 1 > slots:
                    break
                row += [*tokens, self.end]
            ids[n, : len(row)], length[n] = row, len(row)
        return TokenRows(ids, length)

    def answers(self, queries: Sequence[str]) -> TokenRows:
        """int32[n, max_query_tokens] rows of queries, and their lengths, the token that ends them included."""
        return self.tokenizer.encode(queries, self.config.max_query_tokens)

    def whole_answers(self, queries: Sequence[str], most: int) -> list[tuple[int, ...] | None]:
        """The tokens of each query, the one that ends it included; None where there are more than `most`."""
        rows = self.tokenizer.encode(list(queries), most + 1)  # one more shows which are longer
        lengths = rows.length.tolist()
        return [tuple(ids[:n].tolist()) if n <= most else None for ids, n in zip(rows.ids, lengths, strict=True)]

    def texts(self, rows: np.ndarray) -> list[str]:
        """The queries of int32[n, T] rows that were written."""
        return self.tokenizer.decode(rows.tolist())

    def _pieces(self, texts: set[str], slots: int | None = None) -> dict[str, list[int]]:
        """The tokens of each text without the one that ends it; with `slots`, of a longer text the first slots - 1."""
        named = sorted(texts)
        most = 1 + _TOKENS_A_LETTER * max(map(len, named), default=0)
        rows = self.tokenizer.encode(named, max(min(most, slots or most), 2))
        return {text: ids[: n - 1].tolist() for text, ids, n in zip(named, rows.ids, rows.length.tolist(), strict=True)}
