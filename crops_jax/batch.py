"""The Batch pytree: the only door between the log half and the learning half.

Shape letters: B queries, K documents a query, N = B*K documents in the batch, T tokens.
Query groups are contiguous: the documents of query b are rows b*K .. b*K+K-1, padded at the end of the group.
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

    query: Tokens | IdFeatures  # B rows
    docs: Tokens | IdFeatures  # N rows
    query_key: Array  # int32[B]; equal keys are equal query strings, over the whole data set
    doc_key: Array  # int32[N]; equal keys are the same document, over the whole data set; -1 on padding
    owner: Array  # int32[N]; row of the owning query
    label: Array  # int32[N]; 1..5, 0 on padding (paper Table 1)
    valid: Array  # bool[N]
    source: Array  # int32[N]; bit set of `labels.SOURCES`, for metrics by source

    @property
    def sizes(self) -> tuple[int, int]:
        """(B, N)."""
        return self.query_key.shape[0], self.doc_key.shape[0]
