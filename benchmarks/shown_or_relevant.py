"""`python benchmarks/shown_or_relevant.py CONFIG K METHOD...`: are the first K relevant, or what production shows?

The documents of CT were clicked, so the day's production search has shown them, most at its first places. Where a query
has many more relevant documents than are shown, Recall@K tells how far a method orders them as production does. Printed
for BM25 and each method, of runs that `python -m crops_jax.bench` left (seed 0, the config's rate, in a world whose
whole truth is known): Recall@K on CT, how many of the first K are relevant, and how many of them production showed for
the query on that day. Means over the events, in percent.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax import evaluate
from crops_jax.bench import arm_of
from crops_jax.command_line import load_file
from crops_jax.comparison.config import Comparison
from crops_jax.comparison.methods import METHODS
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.normal_text import normal_form
from crops_jax.report.tables import Table
from crops_jax.retrieval.bm25 import BM25Searcher
from crops_jax.retrieval.corpus import read_corpus
from crops_jax.retrieval.testset_metrics import TEST_SETS, read_test_set

Documents = dict[str, set[int]]  # query, in its normal form -> item ids


def main() -> None:
    """Prints the table."""
    if len(sys.argv) < 4 or not sys.argv[2].isdecimal():
        sys.exit(__doc__)
    path, k, *methods = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
    sys.path.insert(0, str(Path(path).parent))
    c = load_file(path, "COMPARISON", Comparison)
    logs = open_logs(c.dense.ready_logs())
    truth, shown = by_query(logs.read("truth").filter(pc.field("grade") > 0)), by_query(shown_that_day(logs))
    asked = read_test_set(c.dense.ready("testsets") / TEST_SETS["CT"])
    forms = [normal_form(query) for query in asked.queries]
    relevant, seen = (np.mean([len(of[form]) for form in forms]) for of in (truth, shown))
    rows = []
    queries = sorted({*asked.queries})
    for title, ids in first_results(c, methods, queries, k):
        found = {query: {*row} for query, row in zip(queries, ids.tolist(), strict=True)}
        shares = [
            (len(found[query].intersection(clicked)) / len(clicked), len(found[query] & truth[form]) / k,
             len(found[query] & shown[form]) / k)
            for query, form, clicked in zip(asked.queries, forms, asked.relevant, strict=True)
        ]  # fmt: skip
        rows.append([title, *(f"{100 * share:.1f}" for share in np.mean(shares, axis=0))])
    print(f"{len(forms)} events; a query has {relevant:.0f} relevant documents, and {seen:.0f} were shown that day")
    print(Table("", ["", f"Recall@{k}", "relevant", "shown that day"], rows).text())


def shown_that_day(logs: LogFolder) -> pa.Table:
    """(query, item_id) of all that the test day's searches showed."""
    candidates = logs.read("candidates", "test", ["request_id", "item_id", "stage"])
    searches = logs.read("searches", "test", ["request_id", "query"])
    return candidates.filter(pc.field("stage") == "exposed").join(searches, "request_id")


def by_query(pairs: pa.Table) -> Documents:
    """The documents of each query; none of a query that has no pair."""
    documents: Documents = defaultdict(set)
    for query, item in zip(pairs["query"].to_pylist(), pairs["item_id"].to_pylist(), strict=True):
        documents[normal_form(query)].add(item)
    return documents


def first_results(
    c: Comparison, methods: Sequence[str], queries: list[str], k: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(title, int64[n, k] item ids) of BM25 with the config's k1 and b, and of each method."""
    corpus = read_corpus(c.dense.ready_logs())
    yield "BM25", BM25Searcher(corpus.item_ids, corpus.texts, c.dense.bm25).search(queries, k)[0]
    for name in methods:
        with evaluate.dense_searcher(arm_of(c, name, c.seeds[0], 1.0)) as searcher:
            ids, _ = searcher.search(queries, k)
        yield METHODS[name].title, ids


if __name__ == "__main__":
    main()
