"""The least time that a compiled step can take on a chip: the longest of what its products, its memory and its links
need at their published rates, if all of them work beside each other all the time.

A collective uses the links along those axes of the torus over which its devices lie. Along a ring both directions carry
half each; along a line (an axis too short to be closed, `chips.Links.ring`) the last link carries everything one way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crops_jax.cost.chips import Chip, Links
from crops_jax.cost.collectives import Sent
from crops_jax.errors import InputError


@dataclass(frozen=True)
class Roofline:
    """The least time of one step on one device, by its products, by its memory and by its links."""

    product_s: float
    hbm_bytes: int
    hbm_s: float
    link_bytes: int  # that arrive from other devices of the slice
    link_s: float
    slice_bytes: int  # that arrive from other slices
    slice_s: float | None  # None where the chip's rate between slices is not published
    model_s: float  # of the products that the model needs: without what is computed again

    @property
    def times(self) -> dict[str, float]:
        """Seconds by what takes them."""
        between = {} if self.slice_s is None else {"links between slices": self.slice_s}
        return {"products": self.product_s, "memory": self.hbm_s, "links": self.link_s, **between}

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.times, key=self.times.__getitem__)

    @property
    def least_s(self) -> float:
        """Seconds of a step at best."""
        return self.times[self.bound]

    @property
    def of_peak(self) -> float:
        """The share of the chip's peak that the model's own products have at best (MFU)."""
        return self.model_s / self.least_s


def roofline(
    chip: Chip, devices: Sequence[Any], flops: float, model_flops: float, hbm_bytes: int, sent: Iterable[Sent]
) -> Roofline:
    """The bounds of a step.

    Args:
      devices: in the order in which the compiled text counts them; with `coords`, and `slice_index` where there are
        several slices.
      flops: of its products, on one device, with what is computed again.
      model_flops: without that.
      hbm_bytes: on one device.

    Raises:
      InputError: the chip's links are not known.
    """
    if chip.links is None:
        raise InputError(chip.name, "the rates of its links are not in crops_jax/cost/chips.py; add what is published")
    busy: Counter[int] = Counter()
    arrived, from_slices = 0.0, 0.0
    for one in sent:
        if one.between_slices:
            from_slices += one.times * one.bytes
            continue
        group = one.group or tuple(range(len(devices)))
        size = _arriving(one.kind, one.bytes, len(group))
        arrived += one.times * size
        rates = _rates(chip.links, devices, group)
        for axis in rates:
            busy[axis] += one.times * size / sum(rates.values())
    between = chip.links.slices
    return Roofline(
        product_s=flops / chip.bf16_flops,
        hbm_bytes=hbm_bytes, hbm_s=hbm_bytes / chip.hbm_rate,
        link_bytes=round(arrived), link_s=max(busy.values(), default=0.0),
        slice_bytes=round(from_slices), slice_s=from_slices / between if between else None,
        model_s=model_flops / chip.bf16_flops,
    )  # fmt: skip


def _arriving(kind: str, size: int, ways: int) -> float:
    """Bytes that reach one of `ways` devices in a collective whose larger side has `size` bytes."""
    match kind:
        case "all-reduce":  # a reduce-scatter and an all-gather
            return 2 * size * (ways - 1) / ways
        case "collective-permute":
            return size
        case _:
            return size * (ways - 1) / ways


def _rates(links: Links, devices: Sequence[Any], group: tuple[int, ...]) -> dict[int, float]:
    """Axis of the torus -> bytes/s that reach a device along it, for the axes over which the group lies."""
    lengths = [len(set(along)) for along in zip(*(device.coords for device in devices), strict=True)]
    rates = {}
    for axis, length in enumerate(lengths):
        spread = {devices[i].coords[axis] for i in group}
        if len(spread) > 1:
            ring = length % links.ring == 0 and len(spread) == length
            rates[axis] = links.rate * (2 if ring else 1)
    return rates or {0: links.rate}
