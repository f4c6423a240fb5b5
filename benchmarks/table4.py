"""What an epoch costs under the three losses of the paper's Table 4, on equal data.

    make demo
    python benchmarks/table4.py

Per-positive InfoNCE takes one anchor a step and query, so a group becomes one example a document
(`labels.one_anchor_groups`) and a document is encoded again for every anchor above it. Softmax-CE and H-InfoNCE take
whole groups. An epoch is the same groups once. The losses take turns, step by step; medians are printed. The paper's
Table 4 gives 178, 89 and 88 hours: ratios of 2.02 and 1.01 to H-InfoNCE.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from ours import Groups, device_name, documents, first_batches, read_groups, real_tokens, timed_step
from tqdm import trange

from crops_jax.batch import Batch
from crops_jax.command_line import load_file
from crops_jax.config import Experiment
from crops_jax.losses.config import HInfoNCEConfig, InfoNCEPerPositiveConfig, LossConfig, SoftmaxCEConfig
from crops_jax.records import Record


@dataclass(frozen=True)
class Epoch:
    """One loss's epoch, measured."""

    documents: int
    steps: float
    seconds: float


def main() -> None:
    args = arguments()
    experiment = load_file(args.config)
    whole = read_groups(experiment, args.groups)
    cut = [example for record in whole for example in one_anchor(record)]
    arms = {
        "InfoNCE, one positive": (InfoNCEPerPositiveConfig(), cut),
        "Softmax-CE": (SoftmaxCEConfig(), whole),
        "H-InfoNCE": (HInfoNCEConfig(), whole),
    }
    epochs = measure(experiment, arms, args.steps)
    print(f"python {shlex.join(sys.argv)}")
    print(
        f"{device_name()}, {experiment.model.dtype}, {args.config}, {len(whole)} groups, medians of {args.steps} steps"
    )
    print(f"{'loss':22} {'documents':>10} {'steps':>7} {'epoch s':>8} {'to H-InfoNCE':>13}")
    for name, e in epochs.items():
        ratio = e.seconds / epochs["H-InfoNCE"].seconds
        print(f"{name:22} {e.documents:10} {e.steps:7.1f} {e.seconds:8.1f} {ratio:13.2f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.py", help="experiment whose shards and tokenizer are read")
    parser.add_argument("--groups", type=int, default=2048, help="groups of the epoch")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each loss")
    return parser.parse_args()


def one_anchor(record: Record) -> Iterator[Record]:
    """What `labels.one_anchor_groups` makes of the group that the record was written from."""
    for anchor, label in enumerate(record.label):
        keep = record.label < label
        keep[anchor] = True
        yield documents(record, keep)


def measure(experiment: Experiment, arms: dict[str, tuple[LossConfig, list[Record]]], steps: int) -> dict[str, Epoch]:
    """The epoch of every arm, from `steps` of its training steps."""
    feeds: dict[str, list[Batch]] = {}
    run = {}
    for name, (loss, records) in arms.items():
        # Examples of one anchor are small: only the token budget shall bound them.
        queries = experiment.input.batch_queries * (-(-len(records) // len(arms["H-InfoNCE"][1])))
        packing = experiment.input.packing
        if packing is not None:
            packing = replace(packing, query_rows=packing.query_rows * queries // experiment.input.batch_queries)
        arm = replace(experiment, loss=loss, input=replace(experiment.input, batch_queries=queries, packing=packing))
        feeds[name] = first_batches(arm, Groups(records, experiment.ready("records")), steps)
        run[name] = timed_step(arm)
        run[name](feeds[name][0])  # compiles
    seconds = {name: [] for name in arms}
    for i in trange(steps, desc="rounds"):
        for name in arms:
            seconds[name].append(run[name](feeds[name][i]) / real_tokens(feeds[name][i]))
    return {name: epoch(records, feeds[name], median(seconds[name])) for name, (_, records) in arms.items()}


def epoch(records: list[Record], batches: list[Batch], seconds_per_token: float) -> Epoch:
    """Scaled from the measured batches to all records, by groups."""
    groups = np.mean([(b.query_key[:, 0] >= 0).sum() for b in batches])
    tokens = np.mean([real_tokens(b) for b in batches])
    steps = len(records) / groups
    return Epoch(sum(map(len, records)), steps, steps * tokens * seconds_per_token)


if __name__ == "__main__":
    main()
