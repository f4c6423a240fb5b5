"""Hashes that are the same in every process, on every machine. All seeded choices on log rows come from them.

A choice made by sorting on a hash of (seed, id) depends on nothing else: not on row order, not on what other rows
there are, not on the number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_texts(texts: Iterable[str], seed: int = 0) -> np.ndarray:
    """uint64[n]: one hash a text, keyed by `seed`.

    >>> int(hash_texts(["transformer"])[0]) == int(hash_texts(["x", "transformer"])[1])
    True
    """
    key = seed.to_bytes(8, "little", signed=True)
    digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8, key=key).digest() for t in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def sample(texts: Sequence[str], most: int) -> list[str]:
    """At most `most` of these texts, chosen by their hashes, in their order.

    >>> sample(["a", "b", "c", "d", "e"], 2), sample(["a", "b"], 2)
    (['a', 'd'], ['a', 'b'])
    """
    return [texts[i] for i in np.sort(np.argsort(hash_texts(texts), kind="stable")[:most])]


def in_order(hashes: np.ndarray) -> np.ndarray:
    """int64[n] in the order of the uint64[n] hashes, for engines that have no unsigned numbers."""
    return (hashes ^ np.uint64(1 << 63)).view(np.int64)


def text_keys(texts: Iterable[str]) -> np.ndarray:
    """int64[n]: a key of 63 bits a text, never negative. Texts of one key are taken for one text.

    By chance two given texts have one key once in 1e19, and among a billion documents there is any such pair with a
    probability of 5 %. It matters where keys are compared: among a query's documents, and within a batch. There one
    document is taken for a copy of the other, and is left out of a group, or of one query's negatives in one step.
    """
    return (hash_texts(texts) >> np.uint64(1)).astype(np.int64)


def hash_column(texts: pa.Array, seed: int = 0) -> np.ndarray:
    """uint64[n]: another hash of texts, for columns with millions of distinct ones; that of a null means nothing.

    Eight bytes at a time are mixed into a hash of the length, in all texts at once.

    >>> int(hash_column(pa.array(["b"]))[0]) == int(hash_column(pa.array(["a", None, "b"]))[2])
    True
    """
    raw = texts.cast(pa.large_binary())
    _, offsets, data = raw.buffers()
    ends = np.frombuffer(offsets, np.int64)[raw.offset : raw.offset + len(raw) + 1]
    data = np.concatenate([np.frombuffer(data or b"", np.uint8), np.zeros(8, np.uint8)])
    start, left = ends[:-1], np.diff(ends)
    hashes = mix(left, np.asarray(seed, np.int64))
    rows, place = np.flatnonzero(left > 0), np.arange(8)
    while len(rows):
        word = data[start[rows, None] + place]
        word[place >= left[rows, None]] = 0  # what follows the text
        hashes[rows] = mix(hashes[rows], word.view("<u8")[:, 0])
        start, left = start + 8, left - 8
        rows = rows[left[rows] > 0]
    return hashes


def mix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """uint64[...]: hashes of pairs of 64-bit numbers, broadcast (the SplitMix64 finaliser over a combination)."""
    with np.errstate(over="ignore"):
        x = a.astype(np.uint64) ^ (b.astype(np.uint64) * _GOLDEN + _GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
