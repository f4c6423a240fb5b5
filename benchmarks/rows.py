"""How long a packed row should be: what share of its slots is filled, and what a step of 0.5B then computes and moves.

    python benchmarks/rows.py                 # filled alone; after `make demo`
    export TPU_LIBRARY_PATH=$PWD/.venv/tpu-aot/libtpu/libtpu.so
    python benchmarks/rows.py v5e:4x4         # and the plan of the step on 16 such chips, which takes a minute a row

As many slots in all, whatever the length of a row: 16 shards of 16,384 for documents. Groups are the demo's, which fill
rows as `batches.stream` packs them. Cost is the step's bound over the share of filled slots: the time of a real token,
beside that with rows of 512.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from ours import Groups, first_batches, read_groups

from crops_jax.command_line import load_file

SLOTS, SHARDS, BATCHES = 16_384, 16, 2
LENGTHS = (128, 256, 512)
OUT = Path("build/rows")


def filled(length: int) -> float:
    """The share of document slots that hold a token, in the first batches of the demo's groups."""
    experiment = load_file("configs/demo.py")
    packing = replace(
        experiment.input.packing, doc_row_tokens=length, doc_rows=SHARDS * SLOTS // length, query_row_tokens=128,
        query_rows=SHARDS * 8,
    )  # fmt: skip
    # Groups enough that documents run out of rows first.
    config = replace(experiment.input, shards=SHARDS, batch_queries=SHARDS * 80, packing=packing)
    experiment = replace(experiment, input=config)
    groups = Groups(read_groups(experiment, 1 << 20), experiment.ready("records"))
    documents = [batch.docs for batch in first_batches(experiment, groups, BATCHES)]
    return sum(int(d.length.sum()) for d in documents) / sum(d.ids.size for d in documents)


def plan(topology: str, length: int) -> dict:
    """The compiled step of configs/crops_qwen2_5_0_5b.py with rows of this length."""
    out = OUT / f"{topology.replace(':', '_')}_{length}.json"
    command = [
        sys.executable, "-m", "crops_jax.compile_check", "--config", "configs/crops_qwen2_5_0_5b.py",
        "--topology", topology, "--out", str(out), f"--input.shards={SHARDS}",
        f"--input.packing.doc_row_tokens={length}", f"--input.packing.doc_rows={SHARDS * SLOTS // length}",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", nargs="?", help="of the chips whose plans are made too, such as v5e:4x4")
    topology = parser.parse_args().topology
    print("| slots a row | filled | products, TFLOP | memory, GB | bound | ms | cost |\n|--:|--:|--:|--:|:--|--:|--:|")
    cost = {}
    for length in sorted(LENGTHS, reverse=True):
        share = filled(length)
        line = f"| {length} | {share:.3f} |"
        if topology:
            found = plan(topology, length)
            cost[length] = found["least_s"] / share
            flops, moved = found["compiled_flops"] / found["devices"], found["roofline"]["hbm_bytes"]
            line += (
                f" {flops / 1e12:.2f} | {moved / 1e9:.1f} | {found['bound']} | {1e3 * found['least_s']:.1f} "
                f"| {cost[length] / cost[512]:.3f} |"
            )
        print(line if topology else line + " | | | | |")


if __name__ == "__main__":
    main()
