"""`python -m crops_jax.purity --config FILE`: how relevant the documents of each rung are, beside the corpus.

H-InfoNCE makes every graded document an anchor, which pulls it towards its query past all documents of other queries.
For a rung whose documents are mostly irrelevant that costs recall (docs/ladder.md). Here a team sees, from its own
logs, how many of each source's documents are relevant: by judgments or truth where there are any, and by theta. And how
much of what the test day asks for each source holds already: what is in none must be learnt from other queries.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.artifacts.manifest import require_made_from
from crops_jax.command_line import from_command_line
from crops_jax.config import Experiment
from crops_jax.errors import InputError, run_command
from crops_jax.labels import LETTERS
from crops_jax.logs.folder import open_logs
from crops_jax.logs.sorted_rows import begins
from crops_jax.mining.relevance import Relevance, scores_of
from crops_jax.mining.work import theta_cache
from crops_jax.normal_text import normal_form
from crops_jax.records import Items, read_items
from crops_jax.records.assemble import Keys
from crops_jax.records.candidates import read_parts
from crops_jax.report.tables import MISSING, Table
from crops_jax.retrieval.corpus import read_corpus
from crops_jax.retrieval.testset_metrics import TEST_SETS, read_test_set
from crops_jax.text.tokenizer import document_text

PAIRS = 1000  # of each source that theta scores
_NOTHING = np.empty(0, str), np.empty(0, np.int64), np.empty(0, str)
ASKED = {"CT": "CT", "QR": "QR", "unexposed": "never exposed"}  # test sets of what users want, as columns call them
FEW = 30  # pairs of a label; with fewer nothing is advised
MOSTLY = 0.5  # a rung with fewer relevant documents is called mostly irrelevant


@dataclass(frozen=True)
class Rung:
    """The (query, document) pairs that owe their label to one source."""

    source: str
    label: int
    pairs: int
    judged: int
    relevant: float | None
    """Share of the judged pairs whose grade is relevant; none where nothing is judged."""
    above: float
    """Share of a sample of pairs whose theta is above the threshold of mining."""
    holds: dict[str, float] = field(default_factory=dict)
    """By test set: the share of its (event, document) pairs that are pairs of this source."""


def run(experiment: Experiment, relevance: Relevance) -> tuple[list[Rung], Rung]:
    """The rungs from the highest label, and random (query, item) pairs of the corpus beside them.

    Raises:
      InputError: logs or candidates are missing, or no enabled source has a document.
    """
    logs, mined = experiment.ready_mined()
    items = read_items(logs, mined / "knowledge.parquet")
    keys = items.keys(experiment.text.field_order)
    graded = open_logs(logs)
    grades, complete = graded.grades(), graded.graded_by == "truth"  # of the truth what is not listed is irrelevant
    parts = [_pairs(part, experiment, keys) for part in read_parts(mined / "candidates.parquet")]
    query, item, source = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else _NOTHING
    rng = np.random.default_rng(experiment.seed)
    asked, rungs = _asked(experiment, keys), []
    for letter in sorted(set(source.tolist()), key=lambda s: (-experiment.labels.levels[s], LETTERS.index(s))):
        own = np.flatnonzero(source == letter)
        label = experiment.labels.levels[letter]
        rung = _rung(letter, label, query[own], item[own], items, grades, complete, experiment, relevance, rng)
        pairs = {*_pair_keys(query[own].tolist(), item[own], keys)}
        holds = {name: float(np.mean([pair in pairs for pair in wanted])) for name, wanted in asked.items()}
        rungs.append(replace(rung, holds=holds))
    if not rungs:
        raise InputError(str(mined), f"holds no document of the sources {', '.join(experiment.labels.sources)}")
    corpus = read_corpus(logs).item_ids
    random = rng.choice(np.unique(query), PAIRS * 10), rng.choice(corpus, PAIRS * 10)
    return rungs, _rung("corpus", 0, *random, items, grades, complete, experiment, relevance, rng)


def _pairs(table: pa.Table, experiment: Experiment, keys: Keys) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct (query, document) pairs of whole queries, and the source that gives each its label: the highest.

    Documents of equal text are one, as in the groups (`records.assemble`), under the platform's smallest id.
    """
    table = table.filter(pc.is_in(table["source"], pa.array(experiment.labels.sources)))
    query, item, letter = (table[name].to_numpy(zero_copy_only=False) for name in ("query", "item_id", "source"))
    level = np.array([experiment.labels.levels[s] for s in letter], int)
    place = np.array([LETTERS.index(s) for s in letter], int)
    _, of_query = np.unique(query, return_inverse=True)
    key = keys(item)
    named = np.lexsort((item, item < 0, key, of_query))
    highest = np.lexsort((place, -level, key, of_query))
    new = begins(of_query[named], key[named])  # in both orders the pairs come alike
    return query[named][new], item[named][new], letter[highest][new]


def _asked(experiment: Experiment, keys: Keys) -> dict[str, list[tuple[str, int]]]:
    """The (query, document) pairs of the test sets, an event each; none where the sets were not mined."""
    folder = experiment.folder("testsets")
    if not folder.is_dir():
        return {}
    require_made_from(folder, "logs", experiment.ready("logs"), "python -m crops_jax.mine --config FILE")
    sets = {name: read_test_set(folder / TEST_SETS[name]) for name in ASKED}
    pairs = {
        name: _pair_keys(
            [q for q, items in zip(s.queries, s.relevant, strict=True) for _ in items],
            np.array([i for items in s.relevant for i in items], np.int64), keys,
        )
        for name, s in sets.items()
    }  # fmt: skip
    return {name: found for name, found in pairs.items() if found}


def _pair_keys(query: list[str], item: np.ndarray, keys: Keys) -> list[tuple[str, int]]:
    """Pairs as (the normal form of the query, the key of the document's text)."""
    forms = {q: normal_form(q) for q in {*query}}
    return [(forms[q], key) for q, key in zip(query, keys(item).tolist(), strict=True)]


def _rung(
    source: str, label: int, query: np.ndarray, item: np.ndarray, items: Items,
    grades: dict[tuple[str, int], float], complete: bool, experiment: Experiment, relevance: Relevance,
    rng: np.random.Generator,
) -> Rung:  # fmt: skip
    written = item < 0  # of a language model: nobody judged them
    keys = [(normal_form(q), i) for q, i in zip(query[~written].tolist(), item[~written].tolist(), strict=True)]
    known = [grades.get(key, 0.0) for key in keys if complete or key in grades]
    relevant = float(np.mean(np.array(known) >= experiment.held_out.min_grade)) if known else None
    drawn = rng.permutation(len(query))[:PAIRS]
    _, scores = theta_of(query[drawn], item[drawn], items, relevance)
    above = float(np.mean(scores > experiment.mining.threshold.alpha)) if len(scores) else 0.0
    return Rung(source, label, len(query), len(known), relevant, above)


def theta_of(query: np.ndarray, item: np.ndarray, items: Items, relevance: Relevance) -> tuple[np.ndarray, np.ndarray]:
    """(int64[m], float32[m]): which of these pairs have a document with text, and theta of those."""
    rows = items.rows(item)
    there = np.flatnonzero(rows >= 0)
    fields = items.texts(rows[there])
    texts = [document_text(*row) for row in zip(*fields.values(), strict=True)]  # as mining scores them
    return there, scores_of(relevance, query[there].tolist(), texts)


def table(rungs: list[Rung], corpus: Rung) -> Table:
    """One row a source, the corpus, and what of the test sets no source holds."""
    sets = list(rungs[0].holds)
    rows = [
        [r.source, str(r.label) if r.label else MISSING, str(r.pairs), str(r.judged),
         MISSING if r.relevant is None else f"{100 * r.relevant:.1f}", f"{100 * r.above:.1f}",
         *(f"{100 * r.holds[name]:.1f}" if r.holds else MISSING for name in sets)]
        for r in (*rungs, corpus)
    ]  # fmt: skip
    if sets:
        left = [1 - sum(r.holds[name] for r in rungs) for name in sets]
        rows.append(["in none", *[MISSING] * 5, *(f"{100 * share:.1f}" for share in left)])
    columns = ["source", "label", "pairs", "judged", "relevant %", "theta > alpha %"]
    title = "Documents by the source of their label; the corpus: random pairs"
    return Table(title, columns + [f"of {ASKED[name]} %" for name in sets], rows)


def advice(rungs: list[Rung], min_positive: int) -> list[str]:
    """What the loss should know of rungs that are mostly irrelevant."""
    by_label: dict[int, list[Rung]] = {}
    for rung in rungs:
        by_label.setdefault(rung.label, []).append(rung)
    lines = []
    for label, here in sorted(by_label.items()):
        pairs = sum(r.pairs for r in here)
        share = sum(r.pairs * (r.above if r.relevant is None else r.relevant) for r in here) / pairs
        said = "above theta's threshold" if all(r.relevant is None for r in here) else "relevant"
        if label < min_positive and share < MOSTLY and pairs >= FEW:
            lines.append(
                f"label {label}: {100 * share:.0f} % {said}. As full anchors these documents would be pulled towards "
                f"queries that they do not answer: weigh them less (loss.rung_weights), or leave out what theta "
                f"does not approve (mining.funnel.alpha)."
            )
    return lines


def main() -> None:
    """Prints the report for the experiment of the command line."""
    from crops_jax.models import theta  # jax, which only theta needs

    experiment = from_command_line("purity")
    rungs, corpus = run(experiment, theta.load(experiment.theta, theta_cache(Path(experiment.workdir))))
    found = table(rungs, corpus)
    print(f"{found.title}\n{found.text()}")
    for line in advice(rungs, experiment.labels.min_positive):
        print(line)


if __name__ == "__main__":
    run_command(main)
