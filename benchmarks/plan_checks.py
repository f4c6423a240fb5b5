"""What the plans of `benchmarks/aot.py` promise, checked in their JSON alone.

Sizes are those of one device and one step. W: weights of both towers that multiply tokens, which travel in bfloat16;
the embedding tables' gradients are float32. Norms, biases and scalars are whole on every device, and summed so.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from crops_jax.cost.flops import projection_parameters, projections
from crops_jax.models.config import Qwen2Config

TOWERS = 2
SMALL = 2 << 20  # bytes: norms, biases and scalars of all layers of 7B are 1.3 MiB
MOST_FLOPS = {"none": 1.10, "full": 1.34}  # compiled / analytic; a forward pass again is a third
# On 256 devices and more the compiler gathers, in each pass, by an all-reduce of padded parts, weights of which a
# device holds less than this; at 1.5B all of attention's, at 7B k and v. Token ids too. It costs twice the traffic.
SMALL_PART, MANY_DEVICES = 32 << 10, 256


def problems(plan: dict, backbone: Qwen2Config) -> Iterator[str]:
    """Which promises a plan that fits does not keep, in words."""
    remat, flops = plan["remat"], plan["flops_ratio"]
    if flops > MOST_FLOPS[remat]:
        yield f"remat {remat}: {flops:.3f} of the analytic FLOPs, above {MOST_FLOPS[remat]}"
    if plan["scores_bytes"]:
        yield f"attention's scores go through memory: {_mib(plan['scores_bytes'])}; its kernel keeps them on the chip"
    yield from _gradients(plan, backbone)
    yield from _sums(plan, backbone)
    yield from _documents(plan, backbone)


def _gradients(plan: dict, backbone: Qwen2Config) -> Iterator[str]:
    """Every weight's gradient is reduce-scattered: all of it over `data`, what is left over the torus's next axis."""
    stages = 1 + sum(1 / plan["mesh"]["data"] for axis in ("ring", "depth") if axis in plan["mesh"])
    wanted = 2 * TOWERS * projection_parameters(backbone) * stages
    found = _moved(plan, "reduce-scatter", "bf16")
    if found < wanted:
        yield f"weights' gradients of {_mib(wanted)} are to be reduce-scattered; {_mib(found)} are"


def _sums(plan: dict, backbone: Qwen2Config) -> Iterator[str]:
    """No gradient is summed whole: all-reduces within a slice are replicas' sums of parts, and the small ones."""
    floats, ids = SMALL, SMALL
    if _replicas_in_a_slice(plan) > 1:
        tables = TOWERS * backbone.vocab_size * backbone.width
        floats += (2 * TOWERS * projection_parameters(backbone) + 4 * tables) // _parts(plan)
    if plan["devices"] >= MANY_DEVICES:
        small = sum(a * b for a, b in projections(backbone).values() if 2 * a * b / _parts(plan) < SMALL_PART)
        floats += 2 * 2 * TOWERS * backbone.layers * small
        ids += 4 * plan["batch"]["token_slots"]
    for allowed, what, dtypes in ((floats, "floats", ("bf16", "f32")), (ids, "whole numbers", ("s32", "u32"))):
        found = sum(_moved(plan, "all-reduce", dtype) for dtype in dtypes)
        if found > allowed:
            yield f"all-reduces of {_mib(found)} {what} within a slice, above {_mib(allowed)}"


def _documents(plan: dict, backbone: Qwen2Config) -> Iterator[str]:
    """The loss's documents are gathered once; on a torus of three axes over its depth, then over its plane.

    Where replicas share a slice and there are other slices, each table's gradient is gathered after its sum as well:
    the two replicas scatter it, and each sends one half to the other slice.
    """
    gathers, size = 1, 4 * plan["batch"]["documents"] * backbone.width
    if "depth" in plan["mesh"]:
        gathers, size = 2, size * (1 + 1 / plan["mesh"]["data"])
    if plan["slices"] > 1 and _replicas_in_a_slice(plan) > 1:
        gathers += TOWERS
        size += 4 * TOWERS * backbone.vocab_size * backbone.width // _parts(plan)
    counts = [c["count"] for c in _within(plan, "all-gather", "f32")]
    if sum(counts) != gathers:
        yield f"{sum(counts)} float32 all-gathers within a slice, not {gathers}: the loss's documents travel once"
    if _moved(plan, "all-gather", "f32") > 1.01 * size:
        yield f"float32 all-gathers of {_mib(_moved(plan, 'all-gather', 'f32'))}; the documents are {_mib(size)}"


def _replicas_in_a_slice(plan: dict) -> int:
    return plan["mesh"]["replica"] // plan["slices"]


def _parts(plan: dict) -> int:
    """Devices over which FSDP splits a parameter."""
    return prod(size for axis, size in plan["mesh"].items() if axis in ("data", "ring", "depth"))


def _within(plan: dict, kind: str, dtype: str) -> list[dict]:
    return [c for c in plan["collectives"] if (c["kind"], c["dtype"]) == (kind, dtype) and not c["between_slices"]]


def _moved(plan: dict, kind: str, dtype: str) -> int:
    return sum(c["bytes"] for c in _within(plan, kind, dtype))


def _mib(size: float) -> str:
    return f"{size / 2**20:,.2f} MiB"
