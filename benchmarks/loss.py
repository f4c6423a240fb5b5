"""What H-InfoNCE costs in each form: temporary memory, time, and its share of a 0.5B model's training step.

    python benchmarks/loss.py --queries 256 --group 16 --width 896

Value and all gradients in fp32, compiled; the forms take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.stages import Compiled

from crops_jax.batch import Batch, Tokens
from crops_jax.cost.flops import loss_flops, projection_parameters
from crops_jax.losses.build import build_loss
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.models import dual_encoder
from crops_jax.models.config import QWEN2_5_0_5B, DualEncoderConfig

TIMED_LAYERS, TEXT = 2, 128  # layers of the tower, tokens of each of its texts


@dataclass(frozen=True)
class Cost:
    """One form of the loss, measured."""

    temporary_mib: float
    milliseconds: float  # median of value and gradients
    flops: float | None  # of the compiled program; None for streaming: XLA counts the body of a loop once


def main() -> None:
    args = arguments()
    inputs = random_inputs(args.queries, args.group, args.width)
    configs = [HInfoNCEConfig(form, tile=args.tile) for form in args.forms]
    costs = dict(zip(args.forms, measure(configs, inputs, args.runs), strict=True))
    device = jax.devices()[0]
    print(f"python {shlex.join(sys.argv)}")
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, float32, tile {args.tile}")
    print(f"B={args.queries} K={args.group} N={args.queries * args.group} D={args.width}, median of {args.runs} runs")
    print_forms(costs)
    print_share(args, costs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    forms = ["nxn", "factored", "streaming"]
    parser.add_argument("--queries", type=int, default=256, help="B, query groups in the batch")
    parser.add_argument("--group", type=int, default=16, help="K, documents a query")
    parser.add_argument("--width", type=int, default=896, help="D, embedding width")
    parser.add_argument("--tile", type=int, default=HInfoNCEConfig.tile, help="documents at a time in streaming")
    parser.add_argument("--forms", nargs="+", choices=forms, default=forms, help="nxn needs about 13 N^2 bytes")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each form")
    parser.add_argument("--timed-tokens", type=int, default=2048, help=f"of the timed layers, in texts of {TEXT}")
    parser.add_argument("--doc-tokens", type=int, default=64, help="real tokens a document")
    parser.add_argument("--query-tokens", type=int, default=8, help="real tokens a query")
    return parser.parse_args()


def random_inputs(queries: int, group: int, width: int) -> tuple[jax.Array, jax.Array, jax.Array, Batch]:
    """Arguments of a loss: unit vectors, labels 1..5, and documents of which some stand in two groups."""
    rng = np.random.default_rng(0)
    rows = queries * group
    vectors = rng.normal(size=(queries + rows, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    batch = Batch(
        query=None,
        docs=None,
        query_key=np.stack([np.zeros(queries, np.int32), np.arange(queries, dtype=np.int32)], axis=1),
        doc_key=rng.integers(0, (1, 8 * rows), (rows, 2), dtype=np.int32),
        label=rng.integers(1, 6, rows, dtype=np.int32),
        valid=np.ones(rows, bool),
        source=np.zeros(rows, np.int32),
    )
    return jax.device_put((vectors[:queries], vectors[queries:], np.log(np.float32(0.05)), batch))


def measure(configs: Sequence[HInfoNCEConfig], inputs: tuple, runs: int) -> list[Cost]:
    """The cost of every form, timed in turn."""
    programs = [compile_loss(config, inputs) for config in configs]
    times = take_turns([lambda program=program: program(*inputs) for program in programs], runs)
    return [
        Cost(
            temporary_mib=program.memory_analysis().temp_size_in_bytes / 2**20,
            milliseconds=1e3 * statistics.median(seconds),
            flops=None if config.form == "streaming" else program.cost_analysis()["flops"],
        )
        for config, program, seconds in zip(configs, programs, times, strict=True)
    ]


def compile_loss(config: HInfoNCEConfig, inputs: tuple) -> Compiled:
    step = jax.value_and_grad(build_loss(config), argnums=(0, 1, 2), has_aux=True)
    return jax.jit(step).lower(*inputs).compile()


def take_turns(calls: Sequence[Callable[[], object]], runs: int) -> list[list[float]]:
    """Seconds of each call in `runs` rounds, every other one backwards, after a round that does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(runs + 1):
        for i in range(len(calls))[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            jax.block_until_ready(calls[i]())
            times[i].append(time.perf_counter() - start)
    return [seconds[1:] for seconds in times]


def print_forms(costs: dict[str, Cost]) -> None:
    most = max(cost.temporary_mib for cost in costs.values())
    print(f"\n{'form':<12}{'temporary MiB':>15}{'of largest':>12}{'ms':>10}")
    for form, cost in costs.items():
        part = f"1/{most / cost.temporary_mib:.1f}"
        print(f"{form:<12}{cost.temporary_mib:>15.1f}{part:>12}{cost.milliseconds:>10.1f}")


def print_share(args: argparse.Namespace, costs: dict[str, Cost]) -> None:
    """The loss's part of a step by FLOPs, and by time if all layers of the towers take as long as the timed ones."""
    tokens = args.queries * (args.query_tokens + args.group * args.doc_tokens)
    parameters, layers = projection_parameters(QWEN2_5_0_5B), QWEN2_5_0_5B.layers
    towers = 6 * parameters * tokens
    step = timed_layers(args.timed_tokens // TEXT) * layers / TIMED_LAYERS * tokens
    print(f"\ntowers: 6 x {parameters:,} parameters x {tokens:,} real tokens = {towers / 1e12:,.1f} TFLOP a step,")
    print(f"{step:,.1f} s as {TIMED_LAYERS} of their {layers} layers take for {args.timed_tokens:,} tokens here")
    # Products of size 2BND; streaming makes its logits again in the backward pass.
    products = {"nxn": 3, "factored": 3, "streaming": 4}
    print(f"\n{'loss / step':<12}{'FLOPs, analytic':>24}{'FLOPs, compiled':>24}{'time':>12}")
    for form, cost in costs.items():
        analytic = products[form] * loss_flops(args.queries, args.queries * args.group, args.width)
        by_flops = [share_of(flops, towers) for flops in (analytic, cost.flops)]
        seconds = cost.milliseconds / 1e3
        print(f"{form:<12}{by_flops[0]:>24}{by_flops[1]:>24}{seconds / (seconds + step):>12.4%}")


def share_of(flops: float | None, towers: float) -> str:
    return "not counted" if flops is None else f"{flops / 1e9:.2f} GFLOP {flops / (flops + towers):.4%}"


def timed_layers(rows: int) -> float:
    """Seconds a token for the value and gradient of a tower of fewer layers, float32, so many texts."""
    tower = replace(QWEN2_5_0_5B, layers=TIMED_LAYERS, vocab_size=1024)
    model = dual_encoder.init(DualEncoderConfig(tower, tie_towers=True), jax.random.key(0))
    texts = Tokens(np.ones((rows, TEXT), np.int32), np.full(rows, TEXT, np.int32))
    step = jax.jit(jax.grad(lambda model: dual_encoder.encode(model, "document", texts).sum()))
    return statistics.median(take_turns([lambda: step(model)], 5)[0]) / (rows * TEXT)


if __name__ == "__main__":
    main()
