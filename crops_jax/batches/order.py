"""The order of an epoch: a permutation whose places are computed one by one, so that no table is kept."""

from __future__ import annotations

import numpy as np

from crops_jax.stable_hash import mix

_ROUNDS = 8


def permuted(positions: np.ndarray, size: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """int64[n]: where `positions` go under the permutation of range(size) keyed by (seed, epoch).

    A Feistel network on the smallest even number of bits that covers `size`, walked until the value falls inside:
    one position costs the same whatever `size` is, and no table is kept. `epoch` may differ by position.

    >>> sorted(permuted(np.arange(5), 5, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4]
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    key = mix(np.array([seed], np.int64).astype(np.uint64), np.asarray(epoch, np.int64).astype(np.uint64))
    keys = [np.broadcast_to(mix(key, np.array([r], np.uint64)), np.shape(positions)) for r in range(_ROUNDS)]
    value = np.array(positions, np.uint64)
    outside = np.ones(len(value), bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right, round_key[outside]) & mask)
        value[outside] = left << half | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)


def numbers_at(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """int64[n]: which of `size` records stand at these places of an endless run of epochs, each in an order of its own.

    >>> sorted(numbers_at(np.arange(3, 6), 3, seed=0).tolist())
    [0, 1, 2]
    """
    epoch, within = np.divmod(np.asarray(places, np.int64), size)
    return permuted(within, size, seed, epoch)
