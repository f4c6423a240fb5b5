"""Query groups -> the arrays of a `Batch`, in numpy: padded token rows, packed token rows, or hashed ids.

A shard has a fixed number of group slots; those it does not use stay empty: no text, valid False, keys of -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from crops_jax.batch import Batch, IdFeatures, PackedTokens, Tokens
from crops_jax.batches.packing import Place
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.records import Record
from crops_jax.records.tokens import document_texts, token_rows
from crops_jax.text.featurizer import Featurizer, encode_documents
from crops_jax.text.hashed_ids import IdRows
from crops_jax.text.tokenizer import Tokenizer, TokenRows


@dataclass(frozen=True)
class EncodedGroup:
    """A group with its texts as model input, one row a text, before it has a place in a batch."""

    record: Record
    query: TokenRows | IdRows  # one row
    docs: TokenRows | IdRows  # a row a document

    @cached_property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.docs.length.sum())


@dataclass(frozen=True)
class PackedShard:
    """The groups of one shard of a packed batch and where their texts lie."""

    groups: list[EncodedGroup]
    query_places: list[Place]
    doc_places: list[Place]


def encode_groups(records: Sequence[Record], featurizer: Featurizer) -> list[EncodedGroup]:
    """The groups with their texts encoded (`encode_texts`)."""
    queries, docs = encode_texts(records, featurizer)
    ends = np.cumsum([len(r) for r in records])
    return [
        EncodedGroup(r, _rows(queries, slice(i, i + 1)), _rows(docs, slice(end - len(r), end)))
        for i, (r, end) in enumerate(zip(records, ends.tolist(), strict=True))
    ]


def encode_texts(records: Sequence[Record], featurizer: Featurizer) -> tuple[TokenRows | IdRows, TokenRows | IdRows]:
    """(the queries, the documents) of groups as model input, one row a text, each side in one call; a tokeniser is
    spared where the records hold its token ids."""
    if isinstance(featurizer, Tokenizer) and all(r.tokens is not None for r in records):
        return token_rows(records, featurizer)
    queries = featurizer.encode_queries([r.query for r in records])
    order = featurizer.config.field_order if isinstance(featurizer, Tokenizer) else TEXT_FIELDS
    ids = np.concatenate([r.item_id for r in records]).tolist()
    keywords = [keyword for r in records for keyword in r.keyword]
    return queries, encode_documents(featurizer, ids, keywords, document_texts(records, order))


def _rows(rows: TokenRows | IdRows, chosen: slice) -> TokenRows | IdRows:
    return type(rows)(*[field[chosen] for field in rows])


def padded_batch(shards: Sequence[list[EncodedGroup]], group_slots: int, docs_per_query: int, pad_id: int) -> Batch:
    """A batch with a row a text: the first of every shard's `group_slots` are filled.

    Args:
      shards: the groups of each shard.
      group_slots: B/S, those of a shard.
      docs_per_query: K, document slots a group.
      pad_id: what stands in the token slots of a document slot without text.
    """
    slots = _Slots.of([[g.record for g in shard] for shard in shards], group_slots, docs_per_query)
    encoded = [g for shard in shards for g in shard]
    query = _spread([g.query for g in encoded], slots.query, len(shards) * group_slots, pad_id)
    docs = _spread([g.docs for g in encoded], slots.doc, len(shards) * group_slots * docs_per_query, pad_id)
    return slots.batch(query, docs)


def packed_batch(
    shards: Sequence[PackedShard], group_slots: int, docs_per_query: int, row_shapes: tuple, pad_id: int
) -> Batch:
    """The same batch without padding between texts (`batch.PackedTokens`).

    Args:
      row_shapes: (rows, slots) of a shard's queries and of its documents.
    """
    slots = _Slots.of([[g.record for g in shard.groups] for shard in shards], group_slots, docs_per_query)
    query_texts = [([g.query for g in s.groups], s.query_places) for s in shards]
    doc_texts = [([g.docs for g in s.groups], s.doc_places) for s in shards]
    query = _pack(query_texts, np.split(slots.query, _ends(query_texts)), group_slots, row_shapes[0], pad_id)
    docs = _pack(doc_texts, np.split(slots.doc, _ends(doc_texts)), group_slots * docs_per_query, row_shapes[1], pad_id)
    return slots.batch(query, docs)


def _ends(texts: list) -> list[int]:
    return np.cumsum([len(places) for _, places in texts]).tolist()[:-1]


@dataclass(frozen=True)
class _Slots:
    """Where the groups and documents of a batch stand, and their columns."""

    records: list[Record]
    queries: int  # B
    docs: int  # N
    query: np.ndarray  # int[groups]: rows of the queries
    doc: np.ndarray  # int[documents]: rows of the documents

    @classmethod
    def of(cls, shards: list[list[Record]], group_slots: int, docs_per_query: int) -> _Slots:
        place = [s * group_slots + i for s, shard in enumerate(shards) for i in range(len(shard))]
        records = [r for shard in shards for r in shard]
        rows = [np.arange(len(r)) + q * docs_per_query for q, r in zip(place, records, strict=True)]
        b = len(shards) * group_slots
        return cls(records, b, b * docs_per_query, np.array(place), np.concatenate(rows))

    def batch(self, query: Any, docs: Any) -> Batch:
        valid = np.zeros(self.docs, bool)
        valid[self.doc] = True
        query_key = np.full((self.queries, 2), -1, np.int32)
        query_key[self.query] = key_words(np.array([r.query_key for r in self.records], np.int64))
        doc_key = np.full((self.docs, 2), -1, np.int32)
        doc_key[self.doc] = key_words(np.concatenate([r.doc_key for r in self.records]))
        return Batch(
            query=query,
            docs=docs,
            query_key=query_key,
            doc_key=doc_key,
            label=self._column("label"),
            valid=valid,
            source=self._column("source"),
        )

    def _column(self, name: str) -> np.ndarray:
        column = np.zeros(self.docs, np.int32)
        column[self.doc] = np.concatenate([getattr(r, name) for r in self.records])
        return column


def key_words(keys: np.ndarray) -> np.ndarray:
    """int32[n, 2]: the high and the low half of int64[n] keys."""
    return np.stack([keys >> 32, keys], axis=1).astype(np.int32)


def _spread(parts: list, slot: np.ndarray, n: int, pad_id: int) -> Tokens | IdFeatures:
    """Rows of texts put into their slots among `n`; the slots between are padding."""
    rows = type(parts[0])(*[np.concatenate(field) for field in zip(*parts, strict=True)])
    first = np.full((n, *rows[0].shape[1:]), pad_id, np.int32)
    second = np.zeros((n, *rows[1].shape[1:]), np.int32)
    first[slot], second[slot] = rows
    return Tokens(first, second) if isinstance(rows, TokenRows) else IdFeatures(first, second)


def _pack(texts: list, slots: list[np.ndarray], n: int, shape: tuple[int, int], pad_id: int) -> PackedTokens:
    """The packed arrays of every shard, stacked; `slots` counts text slots over the whole batch, `n` a shard's."""
    shards = [
        _pack_shard(parts, places, slot - s * n, n, shape, pad_id)
        for s, ((parts, places), slot) in enumerate(zip(texts, slots, strict=True))
    ]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *shards)


def _pack_shard(
    parts: list[TokenRows], places: list[Place], slot: np.ndarray, n: int, shape: tuple[int, int], pad_id: int
) -> PackedTokens:
    length = np.concatenate([part.length for part in parts]).astype(np.int32)
    place = np.array(places, np.int32)
    start = place[:, 0] * shape[1] + place[:, 1]
    text = np.repeat(np.arange(len(length), dtype=np.int32), length)  # of every token
    position = np.arange(len(text), dtype=np.int32) - np.repeat(np.cumsum(length) - length, length)
    at = np.repeat(start, length) + position

    def spread(values: np.ndarray, padding: int) -> np.ndarray:
        flat = np.full(shape[0] * shape[1], padding, np.int32)
        flat[at] = values
        return flat.reshape(shape)

    first, lengths = np.zeros(n, np.int32), np.zeros(n, np.int32)
    first[slot], lengths[slot] = start, length
    tokens = [p.ids[np.arange(p.ids.shape[1]) < p.length[:, None]] for p in parts]
    ids = np.concatenate(tokens)
    return PackedTokens(spread(ids, pad_id), spread(1 + slot[text], 0), spread(position, 0), first, lengths)
