"""Hashed ids for the sparse model: stable across machines, processes and runs.

Every field has a table of 2^bits rows. Row 0 is out-of-vocabulary and padding and is never given to a value: a
document written by a language model has no video id, takes row 0 there, and is known by its keywords and terms.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from crops_jax.errors import InputError
from crops_jax.normal_text import HAN, HIRAGANA, KATAKANA, UNSPACED, marks, normal_form


@dataclass(frozen=True)
class IdConfig:
    """Table sizes (as powers of two) and bag widths of the hashed fields."""

    query_bits: int = 16
    """log2 of the rows of the query-id table."""
    video_bits: int = 18
    """log2 of the rows of the video-id table."""
    keyword_bits: int = 14
    """log2 of the rows of the keyword table."""
    term_bits: int = 16
    """log2 of the rows of the term tables (one for queries, one for documents)."""
    max_query_terms: int = 16
    """Terms kept of a query, the first ones; the rest is cut."""
    max_doc_terms: int = 64
    """Keywords kept, and terms kept, of a document, the first ones; the rest is cut."""

    def __post_init__(self):
        bits = {n: getattr(self, n) for n in ("query_bits", "video_bits", "keyword_bits", "term_bits")}
        problems = [f"{name}: {value} is not within 1..30" for name, value in bits.items() if not 1 <= value <= 30]
        widths = {n: getattr(self, n) for n in ("max_query_terms", "max_doc_terms")}
        problems += [f"{name}: {value} is below 1" for name, value in widths.items() if value < 1]
        if problems:
            raise InputError("id config", problems)

    @property
    def query_tables(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows of the query tower's tables: (single-valued fields), (bags), in the order of `IdRows`' columns."""
        return (1 << self.query_bits,), (1 << self.term_bits,)

    @property
    def doc_tables(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows of the document tower's tables: (video id), (keywords, terms)."""
        return (1 << self.video_bits,), (1 << self.keyword_bits, 1 << self.term_bits)


class IdRows(NamedTuple):
    """Table rows of `n` queries or documents, 0 where there is nothing."""

    ids: np.ndarray  # int32[n, F]: single-valued fields
    bags: np.ndarray  # int32[n, G, M]: multi-valued fields


@lru_cache(maxsize=1 << 20)
def hashed_row(field: str, value: str, bits: int) -> int:
    """The table row of a value: 1 + (64-bit BLAKE2b of field and value) mod (2^bits - 1); never 0."""
    digest = hashlib.blake2b(f"{field}\0{value}".encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % ((1 << bits) - 1)


@cache
def _term() -> re.Pattern[str]:
    """Chinese and Japanese have no spaces: each Chinese character and each hiragana is a term, and a run of katakana,
    which mostly is a word. Elsewhere a run of letters or digits is.
    """
    katakana = rf"[{KATAKANA}][{KATAKANA}\u30fc]*"  # the mark of a long vowel is of the word
    return re.compile(rf"[{HAN}{HIRAGANA}]|{katakana}|(?:[^\W_{UNSPACED}{KATAKANA}][{marks()}]*)+")


def terms(text: str) -> list[str]:
    """The terms of the text's `normal_form` in order, each once.

    >>> terms("Drill bits for a DRILL")
    ['drill', 'bits', 'for', 'a']
    >>> terms("電動ドライバーを")
    ['電', '動', 'ドライバー', 'を']
    """
    return list(dict.fromkeys(_term().findall(normal_form(text))))


class IdHasher:
    """Turns queries and documents into table rows."""

    def __init__(self, config: IdConfig):
        self.config = config

    def encode_queries(self, queries: Sequence[str]) -> IdRows:
        """ids int32[n, 1]: the query, in its `normal_form`; bags int32[n, 1, max_query_terms]: its terms."""
        c = self.config
        rows = IdRows(np.zeros((len(queries), 1), np.int32), np.zeros((len(queries), 1, c.max_query_terms), np.int32))
        for row, query in enumerate(queries):
            name = normal_form(query)
            rows.ids[row, 0] = hashed_row("query", name, c.query_bits) if name else 0
            _fill_bag(rows.bags[row, 0], "query_term", terms(query), c.term_bits)
        return rows

    def encode_documents(self, item_ids: Sequence[int], keywords: Sequence[str], texts: Sequence[str]) -> IdRows:
        """ids int32[n, 1]: video id, row 0 for negative item ids; bags int32[n, 2, max_doc_terms]: keywords, terms.

        Args:
          item_ids: int64[n]; negative ones belong to documents a language model wrote.
          keywords: n strings of keywords separated by `|`, each taken in its `normal_form`.
          texts: n document texts (`tokenizer.document_text`).
        """
        c = self.config
        rows = IdRows(np.zeros((len(texts), 1), np.int32), np.zeros((len(texts), 2, c.max_doc_terms), np.int32))
        for row, (item_id, keyword, text) in enumerate(zip(item_ids, keywords, texts, strict=True)):
            rows.ids[row, 0] = hashed_row("video", str(item_id), c.video_bits) if item_id >= 0 else 0
            entries = [form for part in keyword.split("|") if (form := normal_form(part))]
            _fill_bag(rows.bags[row, 0], "keyword", list(dict.fromkeys(entries)), c.keyword_bits)
            _fill_bag(rows.bags[row, 1], "doc_term", terms(text), c.term_bits)
        return rows


def _fill_bag(bag: np.ndarray, field: str, values: list[str], bits: int) -> None:
    kept = values[: len(bag)]
    bag[: len(kept)] = [hashed_row(field, value, bits) for value in kept]
