"""Texts of any length as packed rows of one length, so that few token slots are computed for nothing.

A call of the device has S shards of R rows of T slots. Each text keeps its tokens together in one row, and attends to
itself alone. Every process lays out all texts, which takes a microsecond each, and makes the shards of its own devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crops_jax.batch import PackedTokens, Tokens

_LANES = 128  # rows are a multiple of these, as the attention kernels want


@dataclass(frozen=True)
class Call:
    """What one call of the device encodes."""

    batch: PackedTokens  # the shards of this process
    texts: np.ndarray  # int[m]: which texts
    places: np.ndarray  # int[m]: the rows of the result that are theirs


def rows_of(lengths: np.ndarray, slots: int) -> np.ndarray:
    """int[n]: a row for each text, -1 for texts without tokens.

    Best fit: the longest text first, each into the fullest row that still has room.

    >>> rows_of(np.array([6, 3, 0, 7, 4]), 10).tolist()
    [1, 0, -1, 0, 1]
    """
    rows = np.full(len(lengths), -1)
    with_room: list[list[int]] = [[] for _ in range(slots + 1)]  # by room that is left
    occupied = 0  # bit r: there are rows with room r
    count = 0
    for text in np.argsort(-lengths, kind="stable"):
        length = int(lengths[text])
        if length == 0:
            break
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                occupied &= ~(1 << room)
        else:
            row, room, count = count, slots, count + 1
        with_room[room - length].append(row)
        occupied |= 1 << (room - length)
        rows[text] = row
    return rows


def calls(rows: Tokens, slots: int, budget: int, shards: int, here: Sequence[int]) -> Iterator[Call]:
    """The calls that encode all texts with tokens.

    All but the last have one shape; the last halves its rows as long as its texts fit.

    Args:
      rows: numpy leaves.
      slots: T, made longer where a text is.
      budget: token slots of a call, about.
      shards: S, parts that the devices share.
      here: the shards of this process.
    """
    lengths = np.asarray(rows.length)
    if not lengths.any():
        return
    slots = max(slots, -(-int(lengths.max()) // _LANES) * _LANES)
    row = rows_of(lengths, slots)
    most = max(1, budget // (slots * shards))  # rows of a shard
    # Shuffled, or the first calls would have few long texts and the last ones many short ones.
    total = int(row.max()) + 1
    turn = np.where(row >= 0, np.random.default_rng(0).permutation(total)[row], -1)
    call, turn = np.divmod(turn, most * shards)
    shard, place = turn % shards, turn // shards
    texts_of = [np.flatnonzero(call == c) for c in range(int(call.max()) + 1)]
    fullest = max(int(np.bincount(shard[texts], minlength=shards).max()) for texts in texts_of)
    texts_a_shard = 1 << (fullest - 1).bit_length()  # a power of two, so that few shapes are compiled
    for texts in texts_of:
        needed, size = int(place[texts].max()) + 1, most
        while size % 2 == 0 and size // 2 >= needed:
            size //= 2
        yield _call(rows, texts, shard[texts], place[texts], (shards, size, slots), texts_a_shard, here)


def _call(
    rows: Tokens,
    texts: np.ndarray,
    shard: np.ndarray,
    row: np.ndarray,
    shape: tuple[int, int, int],
    texts_a_shard: int,
    here: Sequence[int],
) -> Call:
    """The arrays of one call, of the texts in the order of their shards and rows."""
    order = np.lexsort((texts, row, shard))
    texts, shard, row = texts[order], shard[order], row[order]
    length = np.asarray(rows.length)[texts].astype(np.int64)
    new_row = np.r_[True, (np.diff(shard) != 0) | (np.diff(row) != 0)]
    before = np.cumsum(length) - length  # tokens of all texts before
    start = before - before[np.maximum.accumulate(np.where(new_row, np.arange(len(texts)), 0))]
    first_of_shard = np.searchsorted(shard, shard)
    number = np.arange(len(texts)) - first_of_shard  # of a text in its shard
    first = row * shape[2] + start

    local = {s: i for i, s in enumerate(here)}
    mine = np.isin(shard, list(local))
    where = np.array([local.get(s, -1) for s in range(shape[0])])[shard[mine]]
    batch = PackedTokens(
        *(np.zeros((len(here), *shape[1:]), np.int32) for _ in range(3)),
        *(np.zeros((len(here), texts_a_shard), np.int32) for _ in range(2)),
    )
    batch.first[where, number[mine]] = first[mine]
    batch.length[where, number[mine]] = length[mine]
    size = length[mine]
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    slot = np.repeat(where * shape[1] * shape[2] + first[mine], size) + within
    batch.ids.reshape(-1)[slot] = np.asarray(rows.ids)[np.repeat(texts[mine], size), within]
    batch.segment.reshape(-1)[slot] = np.repeat(number[mine] + 1, size)
    batch.position.reshape(-1)[slot] = within
    return Call(batch, texts, shard * texts_a_shard + number)
