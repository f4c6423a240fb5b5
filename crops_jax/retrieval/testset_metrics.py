"""Recall@K on the held-out sets and NDCG@K on the judgments, for any retriever, seen and unseen queries apart.

CT and QR are counted by event (a request with its clicked items), as the paper samples events; the never-exposed set
and the judgments by query. On what production ranked and showed, recall is Ratio_rank and Ratio_show of the paper's
Tables 5 and 8, by event. Each distinct query string is searched once. "Seen" means that the query occurs in the
train day's searches, in whatever spelling (`normal_text`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crops_jax.errors import InputError
from crops_jax.logs.tables import read_table
from crops_jax.normal_text import normal_form
from crops_jax.progress import stage
from crops_jax.retrieval.config import EvaluateConfig
from crops_jax.retrieval.metrics import PerQuery, ndcg_full, ndcg_judged, recall_at_k
from crops_jax.retrieval.ranking import Searcher, check_ids

TEST_SETS = {
    "CT": "ct.parquet", "QR": "qr.parquet", "unexposed": "unexposed.parquet", "ranked": "ranked.parquet",
    "shown": "shown.parquet",
}  # fmt: skip
SPLITS = ("all", "seen", "unseen")


def by_split(seen: np.ndarray) -> dict[str, np.ndarray]:
    """{split: bool[n], the events in it}, from whether each event's query was asked on the train day, bool[n]."""
    return dict(zip(SPLITS, (np.ones_like(seen), seen, ~seen), strict=True))


@dataclass(frozen=True)
class TestSet:
    """Ground truth R_q, event by event."""

    __test__ = False  # pytest reads the name otherwise

    events: list[str]  # event id, or the query string itself where a set has no events
    queries: list[str]
    relevant: list[list[int]]  # R_q, without repetitions, ascending


@dataclass(frozen=True)
class Evaluation:
    """What one retriever reached."""

    results: dict[str, Any]
    """JSON-able: arm, corpus, cutoffs, recall[set][split][K], ndcg[protocol][split], judged_at[split], counts."""
    per_query: pa.Table = field(repr=False)
    """One row a value: set, metric, event_id, query, seen, value (null where the query has no ground truth)."""


def evaluate(
    searcher: Searcher,
    testsets: str | Path,
    judgments: pa.Table,
    train_queries: Iterable[str],
    config: EvaluateConfig,
    arm: str,
) -> Evaluation:
    """Searches every test query once and computes every metric; `arm` is the retriever's name in reports.

    Args:
      testsets: the artefact folder "testsets".
      judgments: query, item_id, grade: the graded documents of the queries that NDCG is computed on.
      train_queries: query strings of the train day's searches.

    Raises:
      InputError: a test set is missing or damaged; a written document (negative id) in corpus, R_q or judgments; a
        (query, item) pair with two grades.
    """
    check_ids(searcher.ids, f"corpus of {arm}")
    sets = {name: read_test_set(Path(testsets) / file) for name, file in TEST_SETS.items()}
    grades = read_grades(judgments)
    queries = sorted({q for s in sets.values() for q in s.queries} | set(grades))
    seen = {normal_form(query) for query in train_queries}
    with stage(f"{arm}: searching {len(queries)} queries in {len(searcher.ids)} documents"):
        found, _ = searcher.search(queries, max(*config.cutoffs, config.ndcg_at))
    row_of, book = {query: row for row, query in enumerate(queries)}, _Book(seen)
    recall = {name: _recall(name, s, found, row_of, config, book) for name, s in sets.items()}
    ndcg, judged_at, unscored = _ndcg(searcher, grades, found, row_of, config, book)
    results = {
        "arm": arm,
        "recall": recall,
        "ndcg": ndcg,
        "judged_at": judged_at,
        "corpus": len(searcher.ids),
        "cutoffs": list(config.cutoffs),
        "ndcg_at": config.ndcg_at,
        "queries_searched": len(queries),
        "queries_seen": sum(normal_form(query) in seen for query in queries),
        "judged_documents_outside_corpus": unscored,
        "relevant_outside_corpus": {name: _outside(s, searcher.ids) for name, s in sets.items()},
    }
    return Evaluation(results, book.table())


def read_test_set(path: Path) -> TestSet:
    """A test set's events in the order of their ids.

    Raises:
      InputError: missing file or columns, or ids of written documents in R_q.
    """
    table = read_table(path)
    event_column = "event_id" if "event_id" in table.column_names else "query"
    missing = [name for name in ("query", "item_id") if name not in table.column_names]
    if missing:
        raise InputError(str(path), [f"column {name} is missing" for name in missing])
    items = table["item_id"].to_numpy()
    _no_written_documents(items, f"{path}, column item_id")
    query_of: dict[str, str] = {}
    relevant: dict[str, set[int]] = {}
    for event, query, item in zip(
        table[event_column].to_pylist(), table["query"].to_pylist(), items.tolist(), strict=True
    ):
        if query_of.setdefault(event, query) != query:
            raise InputError(str(path), f"event {event} has two queries: {query_of[event]!r} and {query!r}")
        relevant.setdefault(event, set()).add(item)
    events = sorted(query_of)
    return TestSet(events, [query_of[e] for e in events], [sorted(relevant[e]) for e in events])


def read_grades(judgments: pa.Table) -> dict[str, dict[int, float]]:
    """{query: {item id: grade}}; of the spellings of one query (`normal_text`) the smallest stands for all.

    Raises:
      InputError: a pair judged twice with different grades, negative grades, NaN, or ids of written documents.
    """
    items, values = judgments["item_id"].to_numpy(), judgments["grade"].to_numpy()
    _no_written_documents(items, "judgments, column item_id")
    bad = ~(values >= 0)
    if bad.any():
        raise InputError("judgments", f"{int(bad.sum())} grades are negative or NaN, first in row {np.argmax(bad)}")
    grades: dict[str, dict[int, float]] = {}
    problems = []
    spelling: dict[str, str] = {}
    for query in sorted(judgments["query"].unique().to_pylist()):
        spelling.setdefault(normal_form(query), query)
    for typed, item, grade in zip(judgments["query"].to_pylist(), items.tolist(), values.tolist(), strict=True):
        query = spelling[normal_form(typed)]
        if grades.setdefault(query, {}).setdefault(item, grade) != grade:
            problems.append(f"({query!r}, {item}) has the grades {grades[query][item]} and {grade}")
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise InputError("judgments", problems[:10] + more)
    return grades


class _Book:
    """Collects values query by query and cuts every metric into all, seen and unseen queries."""

    def __init__(self, seen: set[str]):
        self._seen = seen
        self._columns: dict[str, list[np.ndarray]] = {}

    def split(
        self, name: str, metric: str, events: Sequence[str], queries: Sequence[str], metrics: PerQuery
    ) -> dict[str, dict[str, float | int | None]]:
        """{"all" | "seen" | "unseen": {"value", "counted", "dropped"}}, and the values noted down."""
        seen = np.fromiter((normal_form(q) in self._seen for q in queries), bool, len(queries))
        columns = {
            "set": np.full(len(queries), name, object),
            "metric": np.full(len(queries), metric, object),
            "event_id": np.asarray(events, object),
            "query": np.asarray(queries, object),
            "seen": seen,
            "value": metrics.values,
        }
        for column, values in columns.items():
            self._columns.setdefault(column, []).append(values)
        return {split: metrics.where(chosen).summary() for split, chosen in by_split(seen).items()}

    def table(self) -> pa.Table:
        """All values as one long table."""
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        text = {name: pa.array(columns[name], pa.string()) for name in ("set", "metric", "event_id", "query")}
        value = pa.array(columns["value"], pa.float64(), mask=np.isnan(columns["value"]))
        return pa.table(text | {"seen": pa.array(columns["seen"]), "value": value})


def _recall(
    name: str, truth: TestSet, found: np.ndarray, row_of: Mapping[str, int], config: EvaluateConfig, book: _Book
) -> dict[str, dict[str, Any]]:
    lists = [found[row_of[q]] for q in truth.queries]
    by_cutoff = {str(k): book.split(name, f"recall@{k}", truth.events, truth.queries,
                                    recall_at_k(lists, truth.relevant, k)) for k in config.cutoffs}  # fmt: skip
    return {split: {k: by_cutoff[k][split] for k in by_cutoff} for split in SPLITS}


def _ndcg(
    searcher: Searcher,
    grades: Mapping[str, Mapping[int, float]],
    found: np.ndarray,
    row_of: Mapping[str, int],
    config: EvaluateConfig,
    book: _Book,
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """NDCG in both protocols, the judged@k rate, and how many judged documents the corpus lacks (they rank last)."""
    k, queries = config.ndcg_at, sorted(grades)
    ids = [np.fromiter(grades[q], np.int64, len(grades[q])) for q in queries]
    labels = [np.fromiter(grades[q].values(), np.float64, len(grades[q])) for q in queries]
    scores = searcher.score(queries, ids)
    full, share = ndcg_full([found[row_of[q]] for q in queries], [grades[q] for q in queries], k)
    of = {"judged": ndcg_judged(ids, scores, labels, k), "full": full}
    ndcg = {name: book.split("judgments", f"ndcg@{k} {name}", queries, queries, v) for name, v in of.items()}
    judged_at = book.split("judgments", f"judged@{k}", queries, queries, share)
    return ndcg, judged_at, int(sum(np.isneginf(s).sum() for s in scores))


def _no_written_documents(items: np.ndarray, place: str) -> None:
    if np.any(items < 0):
        count = int((items < 0).sum())
        raise InputError(place, f"{count} ids of written documents, such as {items[items < 0][0]}: they are no truth")


def _outside(truth: TestSet, ids: np.ndarray) -> int:
    wanted = np.unique(np.fromiter((i for items in truth.relevant for i in items), np.int64))
    return int(len(wanted) - np.isin(wanted, ids).sum())
