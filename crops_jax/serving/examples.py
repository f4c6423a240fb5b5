"""Queries that the explorer offers: where two bundles differ most on the test day, and some that nobody asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.retrieval.gains import choose
from crops_jax.serving.bundle import Bundle

GAINS, LOSSES, UNSEEN = 5, 1, 2


def examples(bundles: Sequence[Bundle], given: Sequence[str]) -> list[dict[str, str]]:
    """{query, why} of what is worth a click; `given` ones first, none twice."""
    found = [(query, "") for query in given]
    evals = [bundle.path / "eval" for bundle in bundles]
    if len(evals) == 2:
        chosen = choose(evals[1], evals[0], _metric(evals[0]), GAINS, LOSSES)
        better = {True: f"{bundles[1].title} finds more", False: f"{bundles[0].title} finds more"}
        found += [(query, better[gain > 0]) for query, gain in chosen]
    else:
        found += [(query, "asked often") for query in _most_asked(evals[0], True, GAINS)]
    found += [(query, "never asked before") for query in _most_asked(evals[-1], False, UNSEEN)]
    first = dict(reversed(found))  # of the same query the first reason
    return [{"query": query, "why": first[query]} for query in dict(found)]


def _metric(folder: Path) -> str:
    """Recall at the smallest cut-off that was measured."""
    names = pq.read_table(folder / "per_query.parquet", columns=["metric"])["metric"].unique().to_pylist()
    return min((n for n in names if n.startswith("recall@")), key=lambda name: int(name.removeprefix("recall@")))


def _most_asked(folder: Path, seen: bool, count: int) -> list[str]:
    """Queries of the test day with the most events in CT and QR, of those that the train day had or had not."""
    table = pq.read_table(folder / "per_query.parquet", columns=["set", "metric", "query", "seen"])
    wanted = pc.and_(pc.is_in(table["set"], pa.array(["CT", "QR"])), pc.equal(table["metric"], _metric(folder)))
    counts = table.filter(pc.and_(wanted, pc.equal(table["seen"], seen)))["query"].value_counts().to_pylist()
    counts.sort(key=lambda entry: (-entry["counts"], entry["values"]))
    return [entry["values"] for entry in counts[:count]]
