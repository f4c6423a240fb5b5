"""Published facts about accelerators: dense bfloat16 peak, memory, and the rates of memory and links, of what JAX calls
one device.

Sources: the vendors' data sheets (nvidia.com; cloud.google.com/tpu/docs, a page for each generation). NVIDIA's FLOP/s
are without sparsity, which halves what their front pages say. A TPU's link rate is its interconnect bandwidth, both
ways and all ports (v5e 400, v5p 1200, v6e 800, TPU7x 1200 GB/s), over twice its ports; v4's is that of Jouppi et al.
(2023). The rate between slices is the data-centre network's: of a pod over its 256 chips (v5e 6.4, v6e 25.6 Tbit/s), or
of a chip (v5p 50, TPU7x 100 Gbit/s). A chip that is not here is unknown, and nothing is guessed from its name.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
GB = 10**9


@dataclass(frozen=True)
class Links:
    """How TPUs of a slice are wired: to both neighbours along each axis of a torus."""

    rate: float  # bytes/s of one link in one direction
    ring: int  # an axis whose length is a multiple of this is a ring, a shorter one a line
    slices: float | None = None  # bytes/s of one device to other slices; None where nothing is published


@dataclass(frozen=True)
class Chip:
    """One device."""

    name: str
    kinds: tuple[str, ...]  # `jax.Device.device_kind`; a TPU's may say more after it
    bf16_flops: float  # peak FLOP/s of dense bfloat16 products
    hbm_bytes: int
    hbm_rate: float  # bytes/s
    topology: str | None = None  # the largest topology name of a TPU generation, "v5e:16x16"
    links: Links | None = None  # of a TPU


CHIPS = (
    Chip("TPU v4", ("TPU v4",), 275e12, 32 * GIB, 1200 * GB, "v4:12x16x16", Links(50 * GB, 4)),
    Chip(
        "TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819 * GB, "v5e:16x16", Links(50 * GB, 16, 3.125 * GB)
    ),
    Chip("TPU v5p", ("TPU v5p", "TPU v5"), 459e12, 95 * GIB, 2765 * GB, "v5p:16x20x28", Links(100 * GB, 4, 6.25 * GB)),
    Chip(
        "TPU v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1600 * GB, "v6e:16x16", Links(100 * GB, 16, 12.5 * GB)
    ),
    # JAX sees two devices a chip, which share its memory and links.
    Chip("TPU7x", ("TPU7x",), 1153.5e12, 96 * GIB, 3690 * GB, "tpu7x:16x24x24", Links(50 * GB, 4, 6.25 * GB)),
    Chip("A100 40GB", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312e12, 40 * GB, 1555 * GB),
    Chip("A100 80GB", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * GB, 2039 * GB),
    Chip("A100 80GB PCIe", ("NVIDIA A100 80GB PCIe",), 312e12, 80 * GB, 1935 * GB),
    Chip("H100 SXM", ("NVIDIA H100 80GB HBM3",), 989.4e12, 80 * GB, 3350 * GB),
    Chip("H100 PCIe", ("NVIDIA H100 PCIe",), 756e12, 80 * GB, 2000 * GB),
    Chip("H100 NVL", ("NVIDIA H100 NVL",), 835e12, 94 * GB, 3900 * GB),
    Chip("H200", ("NVIDIA H200",), 989.4e12, 141 * GB, 4800 * GB),
    Chip("B200", ("NVIDIA B200",), 2250e12, 180 * GB, 8000 * GB),
    Chip("L4", ("NVIDIA L4",), 121e12, 24 * GB, 300 * GB),
    Chip("L40S", ("NVIDIA L40S",), 362e12, 48 * GB, 864 * GB),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`; None where it is unknown.

    A GPU's name has to be the whole one: what follows it is another product (L4, L40), or a part of one (MIG).

    >>> chip_of("TPU v5 lite").name, chip_of("NVIDIA L40S").name, chip_of("NVIDIA L40")
    ('TPU v5e', 'L40S', None)
    """
    tpu = device_kind.startswith("TPU")
    kinds = [(kind, chip) for chip in CHIPS for kind in chip.kinds]
    found = [(kind, chip) for kind, chip in kinds if device_kind == kind or (tpu and device_kind.startswith(kind))]
    return max(found, key=lambda pair: len(pair[0]))[1] if found else None


def chip_named(name: str) -> Chip:
    """The chip of this name in the table."""
    return next(chip for chip in CHIPS if chip.name == name)


def topology_problem(name: str) -> str | None:
    """What is wrong with a TPU topology's name, GENERATION:AxB or GENERATION:AxBxC; None where nothing is.

    >>> topology_problem("v5e:4x4"), topology_problem("v5litepod-16")[:14]
    (None, 'is no topology')
    """
    largest = dict(chip.topology.split(":") for chip in CHIPS if chip.topology)
    forms = [f"{g}:{'x'.join('ABC'[: size.count('x') + 1])} up to {size}" for g, size in largest.items()]
    generation, _, sizes = name.partition(":")
    limits = largest.get(generation, "").split("x")
    given = sizes.split("x")
    if len(given) != len(limits) or not all(g.isdecimal() for g in given):
        return "is no topology; there are " + ", ".join(forms)
    if any(not 1 <= int(g) <= int(limit) for g, limit in zip(sorted(given, key=int), limits, strict=True)):
        return f"is larger than any pod; there are {', '.join(forms)}"
    return None
