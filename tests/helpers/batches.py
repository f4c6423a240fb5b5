"""Batches made by hand, padded, packed or of hashed ids, and models to encode them."""

from dataclasses import replace

import jax
import numpy as np

from crops_jax.batch import Batch, IdFeatures, PackedTokens, Tokens
from crops_jax.models.config import SparseMlpConfig
from crops_jax.parallel.sharding import leaf_name
from crops_jax.text.hashed_ids import IdConfig

SPARSE = SparseMlpConfig(IdConfig(4, 5, 4, 4), table_width=8, hidden=(16,), width=8)
QUERIES, DOCS, SHARDS = 32, 64, 8


def words(keys) -> np.ndarray:
    """int32[n, 2]: keys in two words, neither of which tells them apart alone; -1 stays padding."""
    keys = np.asarray(keys)
    both = np.stack([keys % 3, keys // 3], axis=1)
    return np.where(keys[:, None] < 0, -1, both).astype(np.int32)


def packed(padded: Tokens, shards: int, rows: int, slots: int) -> PackedTokens:
    """Reference packing, one text after the other, of padded rows that belong to `shards` shards in order."""
    m = len(padded.length) // shards
    p = PackedTokens(*[np.zeros((shards, rows, slots), np.int32) for _ in range(3)],
                     *[np.zeros((shards, m), np.int32) for _ in range(2)])  # fmt: skip
    for s in range(shards):
        row, at = 0, 0
        for j in range(m):
            length = padded.length[s * m + j]
            if at + length > slots:
                row, at = row + 1, 0
            here = slice(at, at + length)
            p.ids[s, row, here] = padded.ids[s * m + j, :length]
            p.segment[s, row, here] = j + 1
            p.position[s, row, here] = np.arange(length)
            p.first[s, j], p.length[s, j] = (row * slots + at if length else 0), length
            at += length
    return p


def texts(kind: str, n: int, seed: int) -> Tokens | IdFeatures:
    rng = np.random.default_rng(seed)
    if kind == "ids":
        bags = rng.integers(0, 16, (n, 2, 3) if n == DOCS else (n, 1, 3))
        return IdFeatures(rng.integers(0, 16, (n, 1)).astype(np.int32), bags.astype(np.int32))
    rows = Tokens(rng.integers(1, 50, (n, 12)).astype(np.int32), rng.integers(1, 13, n).astype(np.int32))
    return packed(rows, SHARDS, rows=4 if n == QUERIES else 8, slots=16) if kind == "packed" else rows


def batch(kind: str) -> Batch:
    """Two documents a query; the last query of each shard has one, and the texts of padding are there all the same."""
    rng = np.random.default_rng(0)
    valid = np.ones(DOCS, bool)
    valid[7::8] = False
    return Batch(
        query=texts(kind, QUERIES, 1),
        docs=texts(kind, DOCS, 2),
        query_key=words(np.arange(QUERIES)),
        doc_key=words(np.where(valid, np.arange(DOCS), -1)),
        label=np.where(valid, rng.integers(1, 6, DOCS), 0).astype(np.int32),
        valid=valid,
        source=np.zeros(DOCS, np.int32),
    )


def moved(model):
    """The model with adapters that do something: B is no longer zero."""

    def move(path, leaf):
        if not leaf_name(path).endswith("/b"):
            return leaf
        return 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)

    return jax.tree_util.tree_map_with_path(move, model)


def one_anchor(batch: Batch, anchor: np.ndarray) -> Batch:
    """The batch with each group cut to one anchor and its strictly lower-graded documents; the rest is padding.

    Args:
      anchor: int32[B], the anchor's slot in its group, 0..K-1. An invalid slot leaves its group empty.
    """
    queries, documents = batch.sizes
    label = np.asarray(batch.label).reshape(queries, -1)
    valid = np.asarray(batch.valid).reshape(queries, -1)
    is_anchor = np.arange(documents // queries, dtype=np.int32)[None, :] == np.asarray(anchor)[:, None]
    grade = np.sum(np.where(is_anchor & valid, label, 0), axis=1)[:, None]
    keep = (valid & (is_anchor | (label < grade)) & (grade > 0)).reshape(-1)
    return replace(
        batch,
        doc_key=np.where(keep[:, None], batch.doc_key, -1),
        label=np.where(keep, batch.label, 0),
        valid=keep,
        source=np.where(keep, batch.source, 0),
    )
