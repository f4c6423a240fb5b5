"""`python -m crops_jax.calibrate --config FILE`: what theta's threshold alpha does on the judged pairs of the logs.

The paper's alpha = 0.6 belongs to the paper's discriminator; scores of another one have another scale. Write the alpha
that you choose here into the config, with its precision and recall. `--precision 0.9` asks for the lowest alpha whose
kept pairs are relevant with that precision.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from crops_jax.command_line import from_command_line, number, take_option
from crops_jax.config import Experiment
from crops_jax.errors import InputError, run_command
from crops_jax.logs.folder import open_logs
from crops_jax.mining.relevance import calibrate, threshold_table
from crops_jax.mining.work import theta_cache
from crops_jax.models import theta
from crops_jax.report.tables import Table
from crops_jax.retrieval.corpus import read_corpus

PRECISION = 0.9  # of what passes theta
ALPHAS = np.round(np.arange(0.2, 0.75, 0.05), 2)


def run(experiment: Experiment, precision: float = PRECISION) -> tuple[Table, str]:
    """Precision and recall of `theta > alpha` on the judged pairs whose items have text, for a range of alphas.

    Returns:
      the table, and the lowest alpha with this precision, in words.
    """
    if not 0 < precision <= 1:
        raise InputError(f"--precision {precision:g}", "is no share above 0 and up to 1")
    logs, grade = experiment.ready_logs(), experiment.held_out.min_grade
    if not open_logs(logs).has("judgments"):
        raise InputError(str(logs), "holds no judgments.parquet (query, item_id, grade; data/README.md): there is "
                         "nothing to calibrate theta on")  # fmt: skip
    corpus = read_corpus(logs)
    text = dict(zip(corpus.item_ids.tolist(), corpus.texts, strict=True))
    rows = open_logs(logs).read("judgments").to_pylist()
    judged = [row for row in rows if row["item_id"] in text]
    relevant = np.array([row["grade"] >= grade for row in judged], bool)
    if not relevant.any():
        told = f"none of {len(judged)} with a text has a grade of {grade} (held_out.min_grade) or more"
        raise InputError(f"{logs}: judgments", told if judged else f"none of {len(rows)} names an item with a text")
    discriminator = theta.load(experiment.theta, theta_cache(Path(experiment.workdir)))
    scores = discriminator.scores([row["query"] for row in judged], [text[row["item_id"]] for row in judged])
    title = f"{len(judged)} judged pairs, {relevant.mean():.1%} of grade {grade} or more"
    if left := len(rows) - len(judged):
        title += f"; {left} others name items without text"
    columns = ["alpha", "pairs kept", "precision", "recall"]
    return Table(title, columns, threshold_table(scores, relevant, ALPHAS)), _lowest(scores, relevant, precision)


def _lowest(scores: np.ndarray, relevant: np.ndarray, precision: float) -> str:
    try:
        found = calibrate(scores, relevant, precision)
    except InputError as error:
        return "; ".join(error.problems)
    told = f"alpha={found.alpha:.9g}, precision={found.precision:.3f}, recall={found.recall:.3f}"
    return f"the lowest alpha with a precision of {precision:g}: {told}"


def main() -> None:
    """Prints the table for the experiment of the command line, and the lowest alpha of --precision."""
    wanted, argv = take_option(sys.argv[1:], "--precision")
    precision = PRECISION if wanted is None else number("--precision", wanted, float)
    table, lowest = run(from_command_line("calibrate", argv), precision)
    print(f"{table.title}\n{table.text()}\n{lowest}")


if __name__ == "__main__":
    run_command(main)
