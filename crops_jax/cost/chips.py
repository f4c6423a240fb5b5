"""Published facts about accelerators: dense bfloat16 peak and memory of what JAX calls one device.

Sources: the vendors' data sheets (cloud.google.com/tpu/docs, nvidia.com). NVIDIA's figures are without sparsity, which
halves what their front pages say. A chip that is not here is unknown, and nothing is guessed from its name.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
GB = 10**9


@dataclass(frozen=True)
class Chip:
    """One device."""

    name: str
    kinds: tuple[str, ...]  # `jax.Device.device_kind`; a TPU's may say more after it
    bf16_flops: float  # peak FLOP/s of dense bfloat16 products
    hbm_bytes: int
    topology: str | None = None  # the largest topology name of a TPU generation, "v5e:16x16"


CHIPS = (
    Chip("TPU v4", ("TPU v4",), 275e12, 32 * GIB, "v4:12x16x16"),
    Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, "v5e:16x16"),
    Chip("TPU v5p", ("TPU v5p", "TPU v5"), 459e12, 95 * GIB, "v5p:16x20x28"),
    Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, "v6e:16x16"),
    Chip("TPU7x", ("TPU7x",), 1153.5e12, 96 * GIB, "tpu7x:16x24x24"),  # JAX sees two devices a chip
    Chip("A100 40GB", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312e12, 40 * GB),
    Chip("A100 80GB", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 312e12, 80 * GB),
    Chip("H100 SXM", ("NVIDIA H100 80GB HBM3",), 989.4e12, 80 * GB),
    Chip("H100 PCIe", ("NVIDIA H100 PCIe",), 756e12, 80 * GB),
    Chip("H100 NVL", ("NVIDIA H100 NVL",), 835e12, 94 * GB),
    Chip("H200", ("NVIDIA H200",), 989.4e12, 141 * GB),
    Chip("B200", ("NVIDIA B200",), 2250e12, 180 * GB),
    Chip("L4", ("NVIDIA L4",), 121e12, 24 * GB),
    Chip("L40S", ("NVIDIA L40S",), 362e12, 48 * GB),
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
