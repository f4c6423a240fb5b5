"""Where the anchors of each label pull: the gradient of H-InfoNCE, taken apart by rung, on the way of a training run.

    make demo
    python benchmarks/anchors.py                           # as printed: every graded document is an anchor
    python benchmarks/anchors.py --min-anchor-label 4      # the run trained without low anchors; all are still measured

The gradient of the mean over all anchors is the sum of five, one a label. For each the table says how long it is beside
the sum, what cosine it has with that of the labels 4 and 5 together (below zero: a step along it undoes theirs), and
which way it moves tau (its slope along the descent; above zero: up). Means over the batches that come next.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ours import Groups, begun, device_name, first_batches, read_groups
from tqdm import tqdm

from crops_jax.command_line import load_file
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.parallel.sharding import make_mesh, put_rows
from crops_jax.report.tables import Table
from crops_jax.training.dual_encoder import DualEncoderObjective

LABELS = (1, 2, 3, 4, 5)
COLUMNS = ["step", "label", "anchors, %", "loss", "length", "cosine with 4 and 5", "tau"]


def main() -> None:
    args = arguments()
    experiment = load_file(args.config)
    experiment = replace(experiment, loss=HInfoNCEConfig(min_anchor_label=args.min_anchor_label))
    groups = Groups(read_groups(experiment, 1 << 20), experiment.ready("records"))
    batches = first_batches(experiment, groups, max(args.at) + args.batches)
    mesh = make_mesh(experiment.mesh)
    rows = []
    with jax.set_mesh(mesh):
        (state, step), look = begun(experiment, mesh), jax.jit(by_label)
        for number in tqdm(range(max(args.at) + 1), desc="steps"):
            if number in args.at:
                ahead = [look(state.model, put_rows(b, mesh)) for b in batches[number : number + args.batches]]
                rows += table_rows(number, jax.tree.map(lambda *xs: np.mean(xs, axis=0), *ahead))
            state, _ = step(state, put_rows(batches[number], mesh))
    print(f"python {shlex.join(sys.argv)}")
    print(f"{device_name()}, {experiment.model.dtype}, {args.config}, {args.batches} batches at each step")
    print(Table("", COLUMNS, rows).text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.py", help="experiment whose shards and tokenizer are read")
    parser.add_argument("--min-anchor-label", type=int, default=1, help="of the loss that is trained with")
    parser.add_argument("--at", type=int, nargs="+", default=[0, 20, 80, 159], help="steps to look at")
    parser.add_argument("--batches", type=int, default=4, help="batches at each of these steps")
    return parser.parse_args()


def by_label(model: Any, batch: Any) -> dict[str, jax.Array]:
    """What the anchors of each label (float[5] each) do to the mean over all anchors of a batch."""
    gradients, losses, counts = [], [], []
    for label in LABELS:
        only = tuple(float(label == other) for other in LABELS)
        objective = DualEncoderObjective(HInfoNCEConfig(reduction="sum", rung_weights=only))
        of_label = partial(summed, objective, batch)
        gradients.append(jax.grad(of_label)(objective.trainable(model), model))
        losses.append(of_label(objective.trainable(model), model))
        counts.append(jnp.sum(batch.valid & (batch.label == label)))
    count, total = jnp.stack(counts), sum(counts)
    gradients = [jax.tree.map(lambda leaf: leaf / total, g) for g in gradients]
    high, whole = optax.tree.add(*gradients[3:]), sum_of(gradients)
    dots = jnp.stack([optax.tree.sum(optax.tree.mul(g, high)) for g in gradients])
    norms = jnp.stack([optax.tree.norm(g) for g in gradients])
    return {
        "share": count / total,
        "loss": jnp.stack(losses) / jnp.maximum(count, 1),
        "length": norms / optax.tree.norm(whole),
        "cosine": dots / (norms * optax.tree.norm(high)),
        "tau": -jnp.stack([g.log_tau for g in gradients]),
    }


def summed(objective: DualEncoderObjective, batch: Any, parameters: Any, model: Any) -> jax.Array:
    return objective.loss(objective.with_trainable(model, parameters), batch, None)[0]


def sum_of(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def table_rows(step: int, told: dict[str, np.ndarray]) -> list[list[str]]:
    rows = []
    for i, label in enumerate(LABELS):
        share, loss, length, cosine, tau = (told[name][i] for name in ("share", "loss", "length", "cosine", "tau"))
        rows.append([str(step), str(label), f"{100 * share:.1f}", f"{loss:.3f}", f"{length:.2f}", f"{cosine:+.2f}",
                     f"{tau:+.2f}"])  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
