"""`python -m crops_jax.calibrate --config FILE`: what theta's threshold alpha does on the judged pairs of the logs.

The paper's alpha = 0.6 belongs to the paper's discriminator; scores of another one have another scale. Write the alpha
that you choose here into the config, with its precision and recall.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crops_jax.command_line import from_command_line
from crops_jax.config import Experiment
from crops_jax.errors import run_command
from crops_jax.logs.folder import open_logs
from crops_jax.mining.relevance import threshold_table
from crops_jax.mining.work import theta_cache
from crops_jax.models import theta
from crops_jax.report.tables import Table
from crops_jax.retrieval.corpus import read_corpus

ALPHAS = np.round(np.arange(0.2, 0.75, 0.05), 2)


def run(experiment: Experiment) -> Table:
    """Precision and recall of `theta > alpha` on the judged pairs whose items have text, for a range of alphas."""
    logs = experiment.ready("logs")
    corpus = read_corpus(logs)
    text = dict(zip(corpus.item_ids.tolist(), corpus.texts, strict=True))
    judged = [row for row in open_logs(logs).read("judgments").to_pylist() if row["item_id"] in text]
    relevant = np.array([row["grade"] >= experiment.held_out.min_grade for row in judged], bool)
    discriminator = theta.load(experiment.theta, theta_cache(Path(experiment.workdir)))
    scores = discriminator.scores([row["query"] for row in judged], [text[row["item_id"]] for row in judged])
    title = f"{len(judged)} judged pairs, {relevant.mean():.1%} of grade {experiment.held_out.min_grade} or more"
    return Table(title, ["alpha", "pairs kept", "precision", "recall"], threshold_table(scores, relevant, ALPHAS))


def main() -> None:
    """Prints the table for the experiment of the command line."""
    table = run(from_command_line("calibrate"))
    print(f"{table.title}\n{table.text()}")


if __name__ == "__main__":
    run_command(main)
