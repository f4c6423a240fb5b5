"""Queries that the explorer offers: where two bundles differ most on the test day, and some that nobody asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.errors import InputError
from crops_jax.retrieval.gains import choose, searches
from crops_jax.serving.bundle import Bundle

GAINS, LOSSES, UNSEEN = 5, 1, 2


def examples(bundles: Sequence[Bundle], given: Sequence[str]) -> list[dict[str, str]]:
    """{query, why} of what is worth a click; `given` ones first, none twice."""
    found = [(query, "") for query in given]
    evals = [bundle.path / "eval" for bundle in bundles]
    if metric := _metric(evals[-1]):
        found += _gains(bundles, evals, metric) if len(evals) == 2 else _often(evals[0], metric)
        found += [(query, "never asked before") for query in _most_asked(evals[-1], metric, False, UNSEEN)]
    first = dict(reversed(found))  # of the same query the first reason
    return [{"query": query, "why": first[query]} for query in dict(found)]


def _gains(bundles: Sequence[Bundle], evals: Sequence[Path], metric: str) -> list[tuple[str, str]]:
    try:
        chosen = choose(evals[1], evals[0], metric, GAINS, LOSSES)
    except InputError:  # of different data sets: there is nothing to compare
        return []
    better = {True: f"{bundles[1].title} finds more", False: f"{bundles[0].title} finds more"}
    return [(query, better[gain > 0]) for query, gain in chosen]


def _often(folder: Path, metric: str) -> list[tuple[str, str]]:
    return [(query, "asked often") for query in _most_asked(folder, metric, True, GAINS)]


def _metric(folder: Path) -> str | None:
    """Recall at the smallest cut-off that was measured, if any was."""
    names = pq.read_table(folder / "per_query.parquet", columns=["metric"])["metric"].unique().to_pylist()
    recalls = [name for name in names if name.startswith("recall@")]
    return min(recalls, key=lambda name: int(name.removeprefix("recall@")), default=None)


def _most_asked(folder: Path, metric: str, seen: bool, count: int) -> list[str]:
    """Queries of the test day with the most events in CT and QR, of those that the train day had or had not."""
    table = searches(folder, metric)
    counts = table.filter(pc.equal(table["seen"], seen))["query"].value_counts().to_pylist()
    counts.sort(key=lambda entry: (-entry["counts"], entry["values"]))
    return [entry["values"] for entry in counts[:count]]
