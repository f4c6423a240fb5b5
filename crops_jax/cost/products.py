"""FLOPs of a compiled step's matrix products, of loops as often as they run, and of attention kernels."""

from __future__ import annotations

import re
from math import prod

from crops_jax.cost.hlo import Module, Visit, arrays, shape, visits

# A kernel's body cannot be read. Products of two matrices T x d and d x T, or the like, for each head of each row: the
# scores and their sum over values; backward, the scores again, and the cotangents of weights, q, k and v.
KERNELS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}


def product_flops(module: Module) -> int:
    """FLOPs of a step's matrix products on one device, two for every multiply-add."""
    return sum(visit.times * _flops(module, visit) for visit in visits(module))


def _flops(module: Module, visit: Visit) -> int:
    match visit.instruction.opcode:
        case "dot" | "convolution":
            return _product(module, visit)
        case "custom-call":
            return _kernel(module, visit)
    return 0


def _kernel(module: Module, visit: Visit) -> int:
    """FLOPs of an attention kernel, 0 of any other: it computes all pairs of a row's slots, of one text or not."""
    products = [count for name, count in KERNELS.items() if visit.instruction.name.startswith(name)]
    if not products:
        return 0
    scope = module.scope(visit.computation)
    given = [array for name in visit.instruction.operands for array in arrays(scope[name].type)]
    q = next(array.shape for array in given if array.dtype in ("bf16", "f32"))
    slots = max(
        array.shape[-2] for array in arrays(visit.instruction.type)
    )  # results have theirs in the last axis but one
    return 2 * products[0] * prod(q) * slots


def _product(module: Module, visit: Visit) -> int:
    scope = module.scope(visit.computation)
    i = visit.instruction
    left, right = (shape(scope[name].type) for name in i.operands[:2])
    if i.opcode == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", i.attributes)
        return 2 * prod(shape(i.type)) * prod(left[int(d)] for d in summed[1].split(",") if d)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    out, groups = shape(i.type), int(i.attribute("batch_group_count") or 1)
    size = {name: right[at] for at, name in enumerate(labels[2])}
    # `i` of the kernel is already divided by feature groups, so this also holds for grouped convolutions.
    pairs = size["i"] * size["o"] * (left[labels[1].index("b")] // groups)
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", i.attributes) or ["", ""])[1]))
    spatial = [name for name in labels[1] if name.isdigit()]
    for name in spatial:
        pairs *= _places(out[labels[3].index(name)], left[labels[1].index(name)], size[name], window, int(name))
    return 2 * pairs


def _places(out: int, left: int, kernel: int, window: dict[str, str], at: int) -> int:
    """Pairs of an output place and a kernel place along one axis that meet an element and neither padding nor a hole.

    TPU's compiler writes batch axes of a product as axes of a dilated window, where most pairs meet nothing.
    """

    def at_axis(name: str, default: str) -> str:
        return window[name].split("x")[at] if name in window else default

    stride, hole, spread = (int(at_axis(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(at_axis("pad", "0_0").split("_")[0])
    reach = (left - 1) * hole
    met = 0
    for k in range(kernel):
        offset = k * spread - low
        met += sum(0 <= place <= reach and place % hole == 0 for place in range(offset, offset + out * stride, stride))
    return met
