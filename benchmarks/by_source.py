"""`python benchmarks/by_source.py CONFIG WORKDIR STEPS METHOD...`: what methods find, by the source that holds it.

Each wanted (query, document) pair of the test day belongs to the highest source of the train day that holds it, or to
none. Printed is Recall@100 of each source's pairs, of runs that `python -m crops_jax.bench` left in WORKDIR
(seed 0, the config's rate). Where the log's own model finds the pairs of P1 and P2, they have nothing to teach it.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from crops_jax import evaluate
from crops_jax.bench import arm_of
from crops_jax.command_line import load_file
from crops_jax.comparison.config import Comparison
from crops_jax.comparison.methods import METHODS
from crops_jax.labels import LETTERS
from crops_jax.normal_text import normal_form
from crops_jax.purity import ASKED
from crops_jax.records.candidates import read_parts
from crops_jax.report.tables import Table
from crops_jax.retrieval.testset_metrics import TEST_SETS, read_test_set

K = 100
ORDER = ("P1", "P0", "P2", "X3", "U2", "F1")  # a pair of several sources belongs to the first
Pair = tuple[str, int]


def main() -> None:
    """Prints a table a test set."""
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    path, workdir, steps, *methods = sys.argv[1:]
    sys.path.insert(0, str(Path(path).parent))
    c = load_file(path, "COMPARISON", Comparison)
    c = replace(c, dense=replace(c.dense, workdir=workdir, train=replace(c.dense.train, steps=int(steps))))
    holder = _holders(Path(workdir) / "mined" / "candidates.parquet")
    for name, title in ASKED.items():
        asked = read_test_set(Path(workdir) / "testsets" / TEST_SETS[name])
        pairs = [(q, i) for q, items in zip(asked.queries, asked.relevant, strict=True) for i in items]
        of = [holder.get((normal_form(q), i), "in none") for q, i in pairs]
        counts = Counter(of)
        shown = [source for source in (*ORDER, "in none") if counts[source]]
        rows = [["pairs", *(str(counts[source]) for source in shown)]]
        for method in methods:
            found = _found(arm_of(c, method, 0, 1.0), pairs)
            hits = Counter(source for source, hit in zip(of, found, strict=True) if hit)
            rows.append([METHODS[method].title, *(f"{100 * hits[source] / counts[source]:.1f}" for source in shown)])
        print(Table(title, [f"{title}: Recall@{K}", *shown], rows).text() + "\n")


def _holders(candidates: Path) -> dict[Pair, str]:
    held: dict[Pair, str] = {}
    place = {letter: n for n, letter in enumerate((*ORDER, *(one for one in LETTERS if one not in ORDER)))}
    for part in read_parts(candidates):
        forms = {q: normal_form(q) for q in part["query"].unique().to_pylist()}
        for query, item, source in zip(*(part[n].to_pylist() for n in ("query", "item_id", "source")), strict=True):
            pair = forms[query], item
            if pair not in held or place[source] < place[held[pair]]:
                held[pair] = source
    return held


def _found(e, pairs: list[Pair]) -> list[bool]:
    """Whether each pair's document is among the first K for its query."""
    queries = sorted({query for query, _ in pairs})
    with evaluate.dense_searcher(e) as searcher:
        ids, _ = searcher.search(queries, K)
    first = {query: set(row.tolist()) for query, row in zip(queries, ids, strict=True)}
    return [item in first[query] for query, item in pairs]


if __name__ == "__main__":
    main()
