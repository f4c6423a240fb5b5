"""The Batch pytree, the only thing that passes from the log half to the learning half.

Shape letters: B queries, K documents a query, N = B*K documents in the batch, T tokens.
Query groups are contiguous: the documents of query b are rows b*K .. b*K+K-1, padded at the end of the group.

A key is the 63 bits of a record's key in two words, the high one first. It is not negative; -1 is padding.

A batch is made of S shards of B/S groups, each filled from its own part of the global order; devices take whole shards,
so S is a multiple of the devices that the batch is split over, and the batch does not depend on how many these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

Array = Any  # numpy on the host, jax.Array inside a step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """Padded token rows. Padding follows the text; lengths are carried because PAD equals EOS in Qwen2."""

    ids: Array  # int32[n, T]
    length: Array  # int32[n]; 0 marks a padding row
    states: Array | None = None  # float32[n, T, E]; what frozen lower layers made of the tokens, where that is kept


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedTokens:
    """The same texts without padding: several in a row, each attending to itself alone, with positions of its own.

    Text j of shard s is the j-th text of that shard's n/S: rows s*n/S .. of what `encode` returns. Its tokens are
    consecutive in one row of the shard.
    """

    ids: Array  # int32[S, R, T]; R rows a shard
    segment: Array  # int32[S, R, T]; 1 + the text's number in its shard, 0 on padding
    position: Array  # int32[S, R, T]; from 0 in every text
    first: Array  # int32[S, n/S]; where the text starts in the shard's R*T slots
    length: Array  # int32[S, n/S]; 0 marks a slot without text
    states: Array | None = None  # float32[S, R, T, E]; as in `Tokens`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class IdFeatures:
    """Hashed ids for the sparse model; row 0 of every table is out-of-vocabulary and stays zero."""

    ids: Array  # int32[n, F]: single-valued fields
    bags: Array  # int32[n, G, M]: multi-valued fields, padded with 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """One training batch: B query groups of K document slots."""

    query: Tokens | PackedTokens | IdFeatures  # B texts
    docs: Tokens | PackedTokens | IdFeatures  # N texts
    query_key: Array  # int32[B, 2]; equal keys are equal query strings, over the whole data set
    doc_key: Array  # int32[N, 2]; equal keys are the same document, over the whole data set
    label: Array  # int32[N]; 1..5, 0 on padding (paper Table 1)
    valid: Array  # bool[N]
    source: Array  # int32[N]; bit set of `labels.SOURCES`, for metrics by source
    known: Array | None = None  # int32[B, P, 2]; keys of positives that the query has anywhere, -1 fills up

    @property
    def sizes(self) -> tuple[int, int]:
        """(B, N)."""
        return self.query_key.shape[0], self.doc_key.shape[0]
