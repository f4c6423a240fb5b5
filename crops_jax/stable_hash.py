"""Hashes that are the same in every process, on every machine: the source of all seeded choices on log rows.

A choice made by sorting on a hash of (seed, id) depends on nothing else: not on row order, not on what other rows
there are, not on the number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_texts(texts: Iterable[str], seed: int = 0) -> np.ndarray:
    """uint64[n]: one hash a text, keyed by `seed`.

    >>> int(hash_texts(["transformer"])[0]) == int(hash_texts(["x", "transformer"])[1])
    True
    """
    key = seed.to_bytes(8, "little", signed=True)
    digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8, key=key).digest() for t in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def mix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """uint64[...]: hashes of pairs of 64-bit numbers, broadcast (the SplitMix64 finaliser over a combination)."""
    with np.errstate(over="ignore"):
        x = a.astype(np.uint64) ^ (b.astype(np.uint64) * _GOLDEN + _GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
