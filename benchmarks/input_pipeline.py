"""What one core delivers: records read and decoded, tokenised, put into padded and packed batches, a second.

    python benchmarks/input_pipeline.py --config configs/demo.py

Writes the experiment's shards twice into a scratch folder, with texts alone and with token ids beside them
(--records.tokenize=True), and counts the time that this process spends on its core; the measurements take turns, so
that a busy machine slows all of them alike. A prefetching thread has one core at most: what one delivers is the limit.
"""

from __future__ import annotations

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "RAYON_NUM_THREADS": "1"}  # read when jax and tokenizers are imported

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ours import Groups

from crops_jax import write_records
from crops_jax.batches.collate import EncodedGroup, encode_groups
from crops_jax.batches.config import InputConfig, PackingConfig
from crops_jax.batches.stream import TrainBatches
from crops_jax.command_line import load_file
from crops_jax.config import Experiment
from crops_jax.errors import run_command
from crops_jax.records import Record, RecordsReader
from crops_jax.runs.featurizer import featurizer_of


@dataclass(frozen=True)
class Rate:
    """What came out in a second, the median of all runs."""

    groups: float
    documents: float
    tokens: float  # 0 where nothing is counted in tokens yet


def main() -> None:
    args = arguments()
    experiment = load_file(args.config)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folders = [shards(experiment, Path(scratch), tokenize) for tokenize in (False, True)]
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        rates = measure(works(experiment, *folders, args), args.runs)
    print(f"python {shlex.join(sys.argv)}")
    print(f"one core; {args.groups} groups, or {args.batches} batches, a run; median of {args.runs} runs")
    show(rates)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.py", help="an experiment whose logs are mined")
    parser.add_argument("--scratch", help="where the shards are written (the system's folder for temporary files)")
    parser.add_argument("--groups", type=int, default=1024, help="groups a run of the stages")
    parser.add_argument("--batches", type=int, default=12, help="batches a run")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each line")
    return parser.parse_args()


def shards(experiment: Experiment, scratch: Path, tokenize: bool) -> Path:
    """The experiment's shards, written below `scratch` instead of beside its other folders."""
    arm = scratch.resolve() / ("token ids" if tokenize else "texts")  # an absolute path is not below the workdir
    return write_records.run(replace(experiment, name=str(arm), records=replace(experiment.records, tokenize=tokenize)))


def works(
    experiment: Experiment, texts: Path, ids: Path, args: argparse.Namespace
) -> dict[str, Callable[[], tuple[int, int, int]]]:
    """Name -> work that returns how many groups, documents and tokens it made; without reading where so named."""
    tokenizer, readers = featurizer_of(experiment), [RecordsReader(texts), RecordsReader(ids)]
    numbers = np.random.default_rng(0).permutation(len(readers[0]))[: args.groups]
    records = [reader.read(numbers) for reader in readers]
    kept = Groups(readers[1].read(range(len(readers[1]))), readers[1].folder, readers[1].token_ids)  # read once
    packed = packed_config(experiment)
    padded = replace(packed, packing=None)

    def batches(reader: RecordsReader | Groups, config: InputConfig) -> tuple[int, int, int]:
        made = TrainBatches(reader, tokenizer, config)
        position, total = made.start(), np.zeros(3, int)
        for _ in range(args.batches):
            loaded = made.load(position)
            position, batch = loaded.position, loaded.batch
            tokens = batch.query.length.sum() + batch.docs.length.sum()
            total += (len(loaded.group_numbers), batch.valid.sum(), tokens)
        return tuple(total.tolist())

    return {
        "read and decoded: texts": lambda: read(readers[0].read(numbers)),
        "read and decoded: texts and token ids": lambda: read(readers[1].read(numbers)),
        "rows of tokens: tokenised from texts": lambda: encoded(encode_groups(records[0], tokenizer)),
        "rows of tokens: from stored token ids": lambda: encoded(encode_groups(records[1], tokenizer)),
        "padded batches: from texts": lambda: batches(readers[0], padded),
        "padded batches: from token ids": lambda: batches(readers[1], padded),
        "padded batches: from token ids in memory": lambda: batches(kept, padded),
        "packed batches: from texts": lambda: batches(readers[0], packed),
        "packed batches: from token ids": lambda: batches(readers[1], packed),
        "packed batches: from token ids in memory": lambda: batches(kept, packed),
    }


def packed_config(experiment: Experiment) -> InputConfig:
    """The experiment's own input config or, where it pads, about as many texts in rows of 2 documents."""
    config, text = experiment.input, experiment.text
    if config.packing is not None:
        return config
    docs = config.batch_queries * config.docs_per_query
    rows = PackingConfig(
        doc_row_tokens=2 * text.max_doc_tokens,
        doc_rows=-(-docs // 3 // config.shards) * config.shards,
        query_row_tokens=4 * text.max_query_tokens,
        query_rows=-(-config.batch_queries // 2 // config.shards) * config.shards,
    )
    return replace(config, packing=rows)


def read(records: Sequence[Record]) -> tuple[int, int, int]:
    return len(records), sum(map(len, records)), 0


def encoded(groups: Sequence[EncodedGroup]) -> tuple[int, int, int]:
    tokens = sum(group.tokens + int(group.query.length.sum()) for group in groups)
    return len(groups), sum(len(group.record) for group in groups), tokens


def measure(works: dict[str, Callable[[], tuple[int, int, int]]], runs: int) -> dict[str, Rate]:
    """The rates of all works, run in turn, after a round that does not count."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in works}
    for _ in range(runs + 1):
        for name, work in works.items():
            start = time.process_time()
            made = work()
            found[name].append(np.array(made) / (time.process_time() - start))
    return {name: Rate(*[statistics.median(column) for column in zip(*rates[1:], strict=True)])
            for name, rates in found.items()}  # fmt: skip


def show(rates: dict[str, Rate]) -> None:
    print(f"\n{'a second of one core':<44}{'groups':>10}{'documents':>12}{'tokens':>12}{'ratio':>8}")
    base = 0.0
    for name, rate in rates.items():
        first = name.split(":")[1].strip() in ("texts", "tokenised from texts", "from texts")
        base = rate.groups if first else base
        tokens = f"{rate.tokens:,.0f}" if rate.tokens else "-"
        print(f"{name:<44}{rate.groups:>10,.0f}{rate.documents:>12,.0f}{tokens:>12}{rate.groups / base:>8.2f}")


if __name__ == "__main__":
    run_command(main)
