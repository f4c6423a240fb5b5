"""The platform's attention kernel against XLA's products, on the device that is here: is it right, and how fast is it?

    python benchmarks/attention.py                    # 0.5B's heads; on a CPU the GPU's kernel, step by step, in small
    python benchmarks/attention.py --shape 7b --rows 64 --json build/attention.json

Rows of 512 slots hold texts of 8 to 120 tokens, causal and not. Value and gradients of both are compared, and two texts
of every row change places: what that does to the other texts has to be nothing, bit for bit. Exit code 1 if it is not.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np
from ours import device_name

from crops_jax.models import attention, kernels
from crops_jax.models.config import QWEN2_5_0_5B, QWEN2_5_1_5B, QWEN2_5_7B

SHAPES = {"0_5b": QWEN2_5_0_5B, "1_5b": QWEN2_5_1_5B, "7b": QWEN2_5_7B}
SLOTS = 512
FARTHEST = {"bfloat16": 0.04, "float32": 2e-3}  # of the largest value; GPUs and TPUs multiply float32 in fewer bits

Run = Callable[..., tuple[jax.Array, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0_5b", help="whose heads")
    parser.add_argument("--rows", type=int, help="rows of 512 slots (default: 32, on CPU 1)")
    parser.add_argument("--dtype", choices=list(FARTHEST), default="bfloat16")
    parser.add_argument("--runs", type=int, default=20, help="of which the median counts (on CPU 1)")
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    on_cpu = jax.default_backend() == "cpu"
    rows, runs = (args.rows or 1, 1) if on_cpu else (args.rows or 32, args.runs)
    told = {"device": device_name(), "shape": args.shape, "rows": rows, "dtype": args.dtype, "kernels": []}
    print(f"python {shlex.join(sys.argv)}\n{told['device']}, {args.dtype}, {rows} rows of {SLOTS} slots, {args.shape}")
    for causal in (True, False):
        result = compare(SHAPES[args.shape], rows, jnp.dtype(args.dtype), causal, runs, on_cpu)
        told["kernels"].append(result)
        print(
            f"{result['kernel']:7} {'causal' if causal else 'both ways':10} farthest from xla {result['farthest']:.1e} "
            f"of the largest value; other texts {'as they were' if result['apart'] else 'CHANGED'}; "
            f"{result['kernel_ms']:.2f} ms, xla {result['xla_ms']:.2f} ms"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    right = all(r["apart"] and r["farthest"] < FARTHEST[args.dtype] for r in told["kernels"])
    sys.exit(0 if right else 1)


def compare(shape, rows: int, dtype: jnp.dtype, causal: bool, runs: int, on_cpu: bool) -> dict:
    """What differs, and how long value and gradients take."""
    name = "triton" if on_cpu else attention.chosen("auto", jax.default_backend(), SLOTS, shape.head_size)
    kernel = partial(getattr(kernels, name), causal=causal, **({"interpret": True} if on_cpu else {}))
    given, segment, swapped, others = packed_rows(shape, rows, dtype)

    def run(attend: Callable) -> Run:
        def value_and_gradients(q, k, v, target):
            out, pull = jax.vjp(lambda *x: attend(*x, segment), q, k, v)
            return jnp.where(segment[:, :, None, None, None] > 0, out, 0), *pull(target)

        return jax.jit(value_and_gradients)

    ours = run(kernel)
    plain = run(lambda q, k, v, s: attention.attention(q, k, v, attention.attention_mask(s, causal)))
    found, wanted = ours(*given), plain(*given)
    farthest = max(
        float(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max() / jnp.abs(b.astype(jnp.float32)).max())
        for a, b in zip(found, wanted, strict=True)
    )
    moved = ours(*(jnp.take_along_axis(x, index(swapped, x), axis=1) for x in given))
    apart = all(bool((jnp.where(mask(others, a), a == b, True)).all()) for a, b in zip(found, moved, strict=True))
    times = {which: timed(f, given, runs) for which, f in (("kernel_ms", ours), ("xla_ms", plain))}
    return {"kernel": name, "causal": causal, "farthest": farthest, "apart": apart, **times}


def packed_rows(shape, rows: int, dtype: jnp.dtype):
    """q, k, v and a cotangent; segments; slots with two texts of equal length swapped; slots of the other texts."""
    rng = np.random.default_rng(0)
    segment = np.zeros((rows, SLOTS), np.int32)
    swapped, others = np.tile(np.arange(SLOTS), (rows, 1)), np.zeros((rows, SLOTS), bool)
    for row in range(rows):
        size = int(rng.integers(8, 60))
        ends = [size, 2 * size]
        while (length := int(rng.integers(8, 120))) + ends[-1] <= SLOTS:
            ends.append(ends[-1] + length)
        for text, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            segment[row, start:end] = text + 1
        swapped[row, : 2 * size] = np.r_[size : 2 * size, :size]
        others[row, 2 * size : ends[-1]] = True
    groups, heads, width = shape.kv_heads, shape.heads // shape.kv_heads, shape.head_size
    keys = jax.random.split(jax.random.key(0), 4)
    q, target = (jax.random.normal(key, (rows, SLOTS, groups, heads, width), dtype) for key in keys[:2])
    k, v = (jax.random.normal(key, (rows, SLOTS, groups, width), dtype) for key in keys[2:])
    target = jnp.where(segment[:, :, None, None, None] > 0, target, 0)
    return (q, k, v, target), jnp.asarray(segment), swapped, others


def index(slots: np.ndarray, x: jax.Array) -> jax.Array:
    return jnp.asarray(slots).reshape(*slots.shape, *(1,) * (x.ndim - 2))


def mask(slots: np.ndarray, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(index(slots, x), x.shape)


def timed(f: Run, given: tuple, runs: int) -> float:
    """Median milliseconds of a call."""
    times = []
    for _ in range(runs):
        start = perf_counter()
        jax.block_until_ready(f(*given))
        times.append(perf_counter() - start)
    return 1e3 * median(times)


if __name__ == "__main__":
    main()
