"""Which texts share a row. A row has a fixed number of slots and takes several whole texts, so few slots stay empty.

A text keeps its tokens together in one row. Nothing here knows about tokens or batches, only about lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

Place = tuple[int, int]  # row, first slot


def place(lengths: Sequence[int], rows: int, slots: int) -> list[Place] | None:
    """Where each text lies in `rows` rows of `slots` slots, or None where they were not all placed.

    Row by row: the longest text that is left, and beside it those that fill the row best.

    >>> place([6, 3, 7, 4], rows=2, slots=10)
    [(1, 0), (0, 7), (0, 0), (1, 6)]
    """
    left = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    places: list[Place] = [(0, 0)] * len(lengths)
    for row in range(rows):
        if not left:
            break
        chosen = [0, *(1 + i for i in fullest([lengths[text] for text in left[1:]], slots - lengths[left[0]]))]
        start = 0
        for text in [left[i] for i in chosen]:
            places[text] = (row, start)
            start += lengths[text]
        if start > slots:
            return None
        for i in reversed(chosen):
            del left[i]
    return None if left else places


def fullest(lengths: Sequence[int], room: int) -> list[int]:
    """Indices of texts whose lengths come nearest to `room` without going over it, early ones first.

    Subset sums by dynamic programming: bit t of a whole number says that some of the texts so far take t slots.
    """
    if room <= 0:
        return []
    within = (2 << room) - 1
    reach = [1]
    for length in lengths:
        reach.append((reach[-1] | reach[-1] << length) & within)
        if reach[-1] >> room:
            break
    chosen, used = [], reach[-1].bit_length() - 1
    for i in range(len(reach) - 2, -1, -1):
        if not reach[i] >> used & 1:
            chosen.append(i)
            used -= lengths[i]
    return chosen[::-1]
