"""A training step here and in sentence-transformers: same weights, texts and optimiser; real tokens a second.

    make demo && make interop   # the texts, and torch beside jax
    python benchmarks/train_step.py

Three sides take turns, each in its own process:
  packed   our step, H-InfoNCE, several texts in a row
  padded   the same with every text padded to the longest allowed
  peer     sentence-transformers' MultipleNegativesRankingLoss on (query, positive, negatives), padded to the longest
           text of a column, as its trainer feeds it

One tower of random weights serves queries and documents on all sides, exported by us and loaded by the peer. A step is
what follows data loading: forward, loss, backward, clipping, AdamW. Supervised pairs are the (query, document) pairs
that are a softmax numerator: every graded document in H-InfoNCE, one a query in the peer's loss. FLOP/s are those of
real tokens; on a chip whose peak is known, with --dtype bfloat16, so is their share of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import combinations, cycle
from pathlib import Path
from time import perf_counter

import numpy as np
from turns import Result, serve, take_turns

SHAPES = ("demo", "minilm", "qwen2_5_0_5b")
SIDES = ("packed", "padded", "peer")


def main() -> None:
    args = arguments(__doc__, SIDES).parse_args()
    if args.side:
        serve(partial(setup_peer if args.side == "peer" else setup_ours, args))
        return
    with towers(args) as folder:
        sides = [side for side in SIDES if side in args.sides]
        command = [*sys.argv[1:], "--towers", str(folder)]
        results = take_turns(Path(__file__), sides, command, args.turns, args.apart)
    print_table(args, results)
    write_json(args, results)


def arguments(description: str, sides: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.py", help="experiment whose shards and tokenizer are read")
    parser.add_argument("--shape", choices=SHAPES, default="demo", help="architecture of the tower; demo: the config's")
    parser.add_argument("--layers", type=int, help="layers of the tower (default: the shape's own)")
    parser.add_argument("--docs", type=int, default=7, help="K: documents a query; groups with fewer are left out")
    parser.add_argument("--times", type=int, default=1, help="our batch: so many times the config's")
    parser.add_argument("--remat", choices=["none", "dots", "full"], help="of ours (default: the shape's)")
    parser.add_argument("--unroll", choices=["auto", "yes", "no"], default="auto", help="of the layers, on our side")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute type, both sides")
    parser.add_argument("--turns", type=int, default=9, help="rounds; medians are printed")
    parser.add_argument("--steps", type=int, default=2, help="training steps of a side's turn")
    parser.add_argument("--row-tokens", type=int, help="slots of a packed row (default: the config's)")
    parser.add_argument("--sides", nargs="+", choices=sides, default=list(sides), help="which to measure")
    parser.add_argument("--apart", action="store_true", help="one side after the other, each alone on the device")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument(
        "--towers", type=Path, help="folder of the random towers, filled if it is not (default: none is kept)"
    )
    return parser


def experiment_of(args: argparse.Namespace, init_from: Path | None = None):
    """The config with one tower of the asked shape for both sides; weights from `write_towers`' folder, if given."""
    from crops_jax.command_line import load_file
    from crops_jax.models.config import MINILM_L6, QWEN2_5_0_5B

    experiment = load_file(args.config)
    weights = None if init_from is None else str(init_from / "export/query_tower")
    model = replace(experiment.model, tie_towers=True, init_from=weights, dtype=args.dtype)
    match args.shape:
        case "minilm":
            # On CPU, memory is dearer here than doing everything but the products again.
            model = replace(model, backbone=MINILM_L6, pooling="mean", remat="dots")
        case "qwen2_5_0_5b":
            model = replace(model, backbone=QWEN2_5_0_5B, pooling="last")
    model = replace(model, unroll=args.unroll, remat=args.remat or model.remat)
    if args.layers:
        model = replace(model, backbone=replace(model.backbone, layers=args.layers))
    return replace(experiment, model=model, **(longer_rows(experiment, args.row_tokens) if args.row_tokens else {}))


def longer_rows(experiment, slots: int) -> dict:
    """The sections that say how long packed rows are, with about as many slots in all as before."""
    config, packing = experiment.input, experiment.input.packing

    def rows(count: int, tokens: int) -> int:
        return config.shards * max(1, round(count * tokens / slots / config.shards))

    packing = replace(
        packing,
        doc_row_tokens=slots, doc_rows=rows(packing.doc_rows, packing.doc_row_tokens),
        query_row_tokens=slots, query_rows=rows(packing.query_rows, packing.query_row_tokens),
    )  # fmt: skip
    return {"input": replace(config, packing=packing), "encode": replace(experiment.encode, row_tokens=slots)}


@contextmanager
def towers(args: argparse.Namespace) -> Iterator[Path]:
    """The folder of the random towers: that of `--towers`, filled if it is not yet, or one that goes away again."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.towers or Path(temporary)
        if not (folder / "export").is_dir():
            write_towers(args, folder)
        yield folder


def write_towers(args: argparse.Namespace, folder: Path) -> None:
    """Random weights, as every side reads them."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process only: the device belongs to the sides
    import jax

    from crops_jax.artifacts.folders import write_folder
    from crops_jax.handover.towers import export_towers
    from crops_jax.models import dual_encoder
    from crops_jax.runs.featurizer import featurizer_of

    experiment = experiment_of(args)
    model = dual_encoder.init(replace(experiment.model, dtype="float32"), jax.random.key(0))
    with write_folder(folder / "export", kind="export") as out:
        export_towers(model, featurizer_of(experiment), out)
    del os.environ["JAX_PLATFORMS"]


def cut_groups(args: argparse.Namespace, experiment) -> list:
    """Groups of at least K documents, cut to the K of the highest grades: the peer wants columns of equal length."""
    from ours import documents, read_groups

    return [documents(r, slice(args.docs)) for r in read_groups(experiment, 4096) if len(r) >= args.docs]


def setup_ours(args: argparse.Namespace) -> Callable[[], Result]:
    """A turn of our step."""
    from ours import Groups, first_batches, real_tokens, timed_step, token_slots

    from crops_jax.training.dual_encoder import real_lengths

    experiment = experiment_of(args, init_from=args.towers)
    config = larger(replace(experiment.input, docs_per_query=args.docs), args.times)
    if args.side == "padded":
        config = replace(config, packing=None, batch_queries=64)
    experiment = replace(experiment, input=config)
    groups = Groups(cut_groups(args, experiment), experiment.ready("records"))
    step, feed = timed_step(experiment), cycle(first_batches(experiment, groups, 8))

    def turn() -> Result:
        batches = [next(feed) for _ in range(args.steps)]
        seconds = sum(map(step, batches))
        tokens, slots = sum(map(real_tokens, batches)), sum(map(token_slots, batches))
        flops = sum(
            real_flops(experiment.model, real_lengths(b.query, b.query_key[:, 0] >= 0), real_lengths(b.docs, b.valid))
            for b in batches
        )
        return figures(seconds, tokens, sum(int(b.valid.sum()) for b in batches), slots, flops, args.steps) | at_most()

    turn()  # compiles
    return turn


def setup_peer(args: argparse.Namespace) -> Callable[[], Result]:
    """A turn of sentence-transformers' step on batches of 64 queries with K documents each."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    experiment = experiment_of(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SentenceTransformer(str(args.towers / "export/query_tower"), device=device, model_kwargs=fastest(device))
    model.max_seq_length = experiment.text.max_doc_tokens
    loss_of = MultipleNegativesRankingLoss(model, scale=1 / experiment.model.tau_init)
    rates = experiment.optim
    optimiser = torch.optim.AdamW(model.parameters(), lr=rates.learning_rate, weight_decay=rates.weight_decay)
    groups = cut_groups(args, experiment)
    feed = cycle([peer_columns(model, groups[start : start + 64], args.docs) for start in range(0, 8 * 64, 64)])
    model.train()

    def turn() -> Result:
        seconds = tokens = slots = flops = 0.0
        for _ in range(args.steps):
            columns = next(feed)
            tokens += sum(int(c["attention_mask"].sum()) for c in columns)
            slots += sum(c["input_ids"].numel() for c in columns)
            lengths = [c["attention_mask"].sum(1).cpu().numpy() for c in columns]
            flops += real_flops(experiment.model, lengths[0], np.concatenate(lengths[1:]))
            start = perf_counter()
            with torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
                loss = loss_of([dict(column) for column in columns], None)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), rates.clip_norm)
            optimiser.step()
            optimiser.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds += perf_counter() - start
        return figures(seconds, tokens, 64 * args.steps, slots, flops, args.steps)

    turn()
    return turn


def peer_columns(model, records: list, docs: int) -> list[dict]:
    """The queries' tokens, and those of each one's k-th document for every k, on the peer's device."""
    from crops_jax.logs.schema import TEXT_FIELDS
    from crops_jax.text.tokenizer import document_text

    texts = [[document_text(*[getattr(r, f)[k] for f in TEXT_FIELDS]) for r in records] for k in range(docs)]
    columns = [model.preprocess([r.query for r in records]), *map(model.preprocess, texts)]
    return [{k: v.to(model.device) if hasattr(v, "to") else v for k, v in column.items()} for column in columns]


def fastest(device: str) -> dict:
    """The peer's fastest attention: FlashAttention where it is installed, else PyTorch's own."""
    flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    return {"attn_implementation": "flash_attention_2" if flash else "sdpa"}


def real_flops(model, query_lengths: np.ndarray, doc_lengths: np.ndarray) -> int:
    """FLOPs of an update on these texts: those of real tokens, the same for all sides."""
    from crops_jax.cost.flops import train_step_flops
    from crops_jax.training.dual_encoder import real_texts

    return train_step_flops(model, real_texts(query_lengths), real_texts(doc_lengths))


def figures(seconds: float, tokens: float, pairs: float, slots: float, flops: float, steps: int) -> Result:
    return {
        "step_s": seconds / steps,
        "tokens_per_s": float(tokens) / seconds,
        "pairs_per_s": float(pairs) / seconds,
        "filled": float(tokens) / float(slots),
        "flops_per_s": float(flops) / seconds,
    }


def at_most() -> Result:
    """GiB of the device's memory that were taken at once, where it counts them."""
    import jax

    told = jax.devices()[0].memory_stats() or {}
    return {"peak_gib": told["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in told else {}


def print_table(args: argparse.Namespace, results: dict[str, Result]) -> None:
    from crops_jax.cost.chips import chip_of

    shape = f"{args.shape} shape" + (f" of {args.layers} layers" if args.layers else "")
    print(f"python {shlex.join(sys.argv)}")
    print(f"{device_name()}, {args.dtype}, {shape}, K={args.docs}, medians of {args.turns} turns")
    chip = chip_of(device_name()) if args.dtype == "bfloat16" else None  # known peaks are those of bfloat16
    print(f"{'side':8}{'step ms':>10}{'slots filled':>14}{'real tokens/s':>15}{'supervised pairs/s':>20}{'TFLOP/s':>9}")
    for side, r in results.items():
        of_peak = f", {r['flops_per_s'] / chip.bf16_flops:.1%} of peak" if chip else ""
        print(
            f"{side:8}{1e3 * r['step_s']:10.0f}{r['filled']:14.3f}{r['tokens_per_s']:15.0f}{r['pairs_per_s']:20.0f}"
            f"{r['flops_per_s'] / 1e12:9.3f}{of_peak}"
        )
    for a, b in combinations([side for side in SIDES if side in results], 2):
        tokens, pairs = (results[a][name] / results[b][name] for name in ("tokens_per_s", "pairs_per_s"))
        print(f"{a} / {b}: {tokens:.2f} in real tokens/s, {pairs:.2f} in supervised pairs/s")


def larger(config, times: int):
    """The input config with so many times the queries and rows a batch."""
    packing = config.packing
    if packing is not None:
        packing = replace(packing, doc_rows=times * packing.doc_rows, query_rows=times * packing.query_rows)
    return replace(config, batch_queries=times * config.batch_queries, packing=packing)


def write_json(args: argparse.Namespace, results: dict[str, Result]) -> None:
    """The figures, with each side's share of the chip's peak where it is known, in the file of `--json`."""
    from crops_jax.cost.chips import chip_of

    if args.json is None:
        return
    chip = chip_of(device_name()) if args.dtype == "bfloat16" else None
    sides = {
        side: {**r, "of_peak": r["flops_per_s"] / chip.bf16_flops if chip else None} for side, r in results.items()
    }
    told = {"command": shlex.join(sys.argv), "device": device_name(), "dtype": args.dtype, "shape": args.shape}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({**told, "sides": sides}, indent=1) + "\n")


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"


if __name__ == "__main__":
    main()
