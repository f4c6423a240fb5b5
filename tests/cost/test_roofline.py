"""The least time of a step, worked out by hand."""

from dataclasses import dataclass
from itertools import product

import pytest

from crops_jax.cost.chips import CHIPS, Chip, Links, chip_named
from crops_jax.cost.collectives import Sent
from crops_jax.cost.roofline import roofline
from crops_jax.errors import InputError
from crops_jax.runs.plan import known_chip

CHIP = Chip("toy", ("toy",), bf16_flops=1000.0, hbm_bytes=0, hbm_rate=100.0, links=Links(10.0, ring=4, slices=1.0))


@dataclass(frozen=True)
class Device:
    coords: tuple[int, ...]


def torus(*sizes):
    return [Device(at) for at in product(*map(range, sizes))]


def sent(kind, size, group, times=1, between=False):
    return Sent(kind, "layers.project", "bf16", size, times, tuple(group), between)


def bounds(devices, *collectives):
    return roofline(CHIP, devices, flops=3000, model_flops=2000, hbm_bytes=500, sent=collectives)


def test_products_and_memory_take_what_their_rates_allow():
    found = bounds(torus(1, 1))
    assert found.times == {"products": 3.0, "memory": 5.0, "links": 0.0, "links between slices": 0.0}
    assert (found.bound, found.least_s, found.of_peak) == ("memory", 5.0, 2.0 / 5.0)


@pytest.mark.parametrize(
    ("devices", "collective", "seconds"),
    [
        # 2 devices are a line: half of 80 bytes over one link.
        (torus(1, 2), sent("all-gather", 80, (0, 1)), 4.0),
        # 4 are a ring: three quarters, from both sides.
        (torus(1, 4), sent("all-gather", 80, range(4)), 3.0),
        # A part of a ring is a line.
        (torus(1, 8), sent("reduce-scatter", 80, range(4)), 6.0),
        # A plane of two rings has four links for each device.
        (torus(4, 4), sent("all-gather", 160, range(16)), 150 / 40),
        # A sum over all goes round twice, in each of 5 runs of a loop.
        (torus(1, 4), sent("all-reduce", 80, range(4), times=5), 5 * 6.0),
        (torus(1, 2), sent("collective-permute", 80, (0, 1)), 8.0),
    ],
)
def test_links_carry_along_the_axes_over_which_a_group_lies(devices, collective, seconds):
    assert bounds(devices, collective).link_s == pytest.approx(seconds)


def test_two_axes_work_beside_each_other():
    along = (sent("all-gather", 80, (0, 1, 2, 3)), sent("all-gather", 160, (0, 4, 8, 12)))
    found = bounds(torus(4, 4), *along)
    assert (found.link_s, found.link_bytes) == (6.0, 60 + 120)


def test_what_goes_to_other_slices_has_a_rate_of_its_own():
    found = bounds(torus(1, 4), sent("all-reduce", 7, (), between=True))
    assert (found.slice_bytes, found.slice_s, found.link_s, found.bound) == (7, 7.0, 0.0, "links between slices")


def test_rates_are_known_for_every_tpu_and_others_are_refused_by_name():
    assert all(chip.links for chip in CHIPS if chip.topology)
    v5e = chip_named("TPU v5e")
    assert (v5e.hbm_rate, v5e.links.rate * 2 * 4) == (819e9, 400e9)  # its data sheet: both ways, four ports
    with pytest.raises(InputError, match=r"a plan for TPU v99: its peak, memory and rates are not in .*chips\.py; add"):
        known_chip("TPU v99")
    with pytest.raises(InputError, match="H100 SXM: the rates of its links"):
        roofline(chip_named("H100 SXM"), torus(1, 1), 1, 1, 1, [])
