"""Token rows of any length as batches of a few static shapes, over all devices of this process.

A row is padded to the smallest static length that holds it, whatever the other rows of its batch are, and for each
length a device computes batches of one number of rows. So what a row gives depends neither on its neighbours nor on how
many devices there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crops_jax.progress import bar

TEXT_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # one compiled shape each
PAIR_LENGTHS = (*range(8, 129, 8), 160, 192, 256, 320, 384, 512)  # there are many more pairs than texts
_IN_FLIGHT = 2  # batches that are under way while the next one is padded


@dataclass(frozen=True)
class Batch:
    """Rows of one static length; missing rows are empty."""

    ids: np.ndarray  # int32[rows, T]
    types: np.ndarray  # int32[rows, T]: the segment of a pair to which a token belongs; zeros for single texts
    length: np.ndarray  # int32[rows]


@dataclass(frozen=True)
class Replicated:
    """A model for `in_batches`: as it is on one device and, from the first time that it is needed, a copy on each."""

    alone: Any

    @cached_property
    def everywhere(self) -> Any:
        """The model on all devices of this process."""
        return jax.device_put(self.alone, NamedSharding(_devices(), PartitionSpec()))


def in_batches(
    run: Callable[[Any, Batch], jax.Array],
    model: Replicated,
    rows: Sequence[Sequence[int]],
    types: Sequence[Sequence[int]] | None,
    slots: int,
    longest: int,
    what: str,
    lengths: Sequence[int] = TEXT_LENGTHS,
) -> np.ndarray:
    """What `run(model, batch)` gives for each row, in the order of `rows`: float32[n, ...].

    Rows are sorted by length. Where as many full batches of one length are left as there are devices, these share them;
    else one device computes one.

    Args:
      run: compiled; its result has a row for each row of the batch.
      types: of each token; None: zeros.
      slots: token slots of a device's batch: rows times length is about constant.
      longest: length of the longest row that may come.
      what: label of the progress bar.
      lengths: the static lengths, rising.
    """
    tokens = np.fromiter(map(len, rows), np.int64, len(rows))
    sizes = [*(length for length in lengths if length < longest), longest]
    out: np.ndarray | None = None
    under_way: deque[tuple[np.ndarray, jax.Array]] = deque()
    with bar(what, total=len(rows), unit="text") as shown:

        def settle(left: int) -> None:
            nonlocal out
            while len(under_way) > left:
                chosen, found = under_way.popleft()
                values = np.asarray(found)[: len(chosen)]
                out = np.zeros((len(rows), *values.shape[1:]), np.float32) if out is None else out
                out[chosen] = values
                shown.update(len(chosen))

        for chosen, shape, shared in _cuts(tokens, slots, sizes):
            batch = _padded(rows, types, chosen, shape)
            found = run(model.everywhere, _split(batch)) if shared else run(model.alone, batch)
            under_way.append((chosen, found))
            settle(_IN_FLIGHT)
        settle(0)
    return np.zeros((0, 1), np.float32) if out is None else out


def _cuts(tokens: np.ndarray, slots: int, sizes: Sequence[int]) -> Iterator[tuple[np.ndarray, tuple[int, int], bool]]:
    """(rows of a batch, its shape, whether all devices share it), the shortest first."""
    order = np.argsort(tokens, kind="stable")
    ranked, devices = tokens[order], jax.local_device_count()
    start = 0
    while start < len(order):
        length = next(size for size in sizes if size >= ranked[start])
        of_length = int(np.searchsorted(ranked, length, "right"))
        rows = max(1, slots // length)
        shared = devices > 1 and of_length - start >= rows * devices
        count = rows * devices if shared else rows
        end = min(start + count, of_length)
        yield order[start:end], (count, length), shared
        start = end


def _padded(
    rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, chosen: np.ndarray, shape: tuple[int, int]
) -> Batch:
    batch = Batch(np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape[0], np.int32))
    for place, row in enumerate(chosen.tolist()):
        size = len(rows[row])
        batch.ids[place, :size] = rows[row]
        batch.length[place] = size
        if types is not None:
            batch.types[place, :size] = types[row]
    return batch


def _split(batch: Batch) -> Batch:
    """The batch on all devices of this process, split by rows."""
    by_rows = NamedSharding(_devices(), PartitionSpec("rows"))
    return Batch(*(jax.device_put(x, by_rows) for x in (batch.ids, batch.types, batch.length)))


@cache
def _devices() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ("rows",))
