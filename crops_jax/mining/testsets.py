"""CT, QR and the never-exposed set, read from the test day (paper, Dataset and Metrics)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crops_jax.artifacts import Folder
from crops_jax.engines.duckdb import materialise, open_engine, write_sorted
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_with
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.mining.day import Day, open_day
from crops_jax.mining.leak_guard import guard_against_leak
from crops_jax.mining.query_level import after_reformulation
from crops_jax.mining.relevance import Relevance
from crops_jax.mining.scoring import relevant_documents
from crops_jax.mining.train_day import MiningConfig
from crops_jax.progress import stage
from crops_jax.stable_hash import hash_texts

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import Table

EVENTS_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),  # the request; its rows together are R_q of Eq. 4
        pa.field("query", pa.string(), nullable=False),
        pa.field("item_id", pa.int64(), nullable=False),
    ]
)
UNEXPOSED_SCHEMA = pa.schema(list(EVENTS_SCHEMA)[1:])


@dataclass(frozen=True)
class HeldOutConfig:
    """How many events of the test day are kept, and what counts as relevant in the never-exposed set."""

    max_events: int = 10_000
    """Events kept of CT and of QR each (paper: 10,000)."""
    seed: int = 0
    """Seed of the sample."""
    min_grade: float = 2.0
    """Items graded at least this for a test query, and never exposed for it on either day, make the third set."""


def build_testsets(
    logs_dir: str | Path, out: Folder, relevance: Relevance, config: HeldOutConfig, mining: MiningConfig
) -> dict[str, Any]:
    """Writes ct.parquet, qr.parquet and unexposed.parquet and returns the counts.

    CT: the videos clicked for q. QR: the videos consumed after a reformulation of q with theta(q, d) > alpha; its
    input is the original query q. One event is one request. unexposed: (query, item_id) relevant by the full truth
    (or, without one, by the judgments) that no one was shown for the query; empty where there is neither.

    Args:
      mining: reformulations and theta's threshold are those of the mined P1, as the paper has it.

    Raises:
      InputError: the test day's tables break the contract, it overlaps the train day, or it gives no CT or QR event.
    """
    logs = open_logs(logs_dir)
    with open_engine(mining.engine, [out.path]) as connection:
        with stage("checking the test day"):
            report = check_with(connection, logs, "test")
            guard_against_leak(connection, logs)
        day = open_day(connection, logs, "test")
        with stage("reading CT and QR from the test day"):
            clicked = materialise(connection, "ct", _clicked(day))
            reformulated, theta = _after_reformulation(connection, day, relevance, mining)
            counts = {"rejects": {name: r.count for name, r in report.rejects.items()}, **theta}
            kept = {}
            for name, rows in {"ct": clicked, "qr": reformulated}.items():
                kept[name], counts[f"{name}_events_before_sampling"] = _sample(rows, name, config)
                counts[f"{name}_rows"] = write_sorted(
                    connection, kept[name], out / f"{name}.parquet", EVENTS_SCHEMA, ("event_id", "item_id")
                )
                counts[f"{name}_events"] = kept[name].event_id.nunique().to_pyarrow().as_py()
        with stage("finding what was never exposed"):
            queries = kept["ct"].select("query").union(kept["qr"].select("query"), distinct=True)
            rows = _never_exposed(connection, logs, day, queries, config.min_grade)
            counts["unexposed_rows"] = write_sorted(
                connection, rows, out / "unexposed.parquet", UNEXPOSED_SCHEMA, ("query", "item_id")
            )
    out.counts.update(counts)
    return counts


def _clicked(day: Day) -> Table:
    clicks = day.candidates.filter(day.candidates.clicked).join(day.searches, "request_id")
    return clicks.select("query", "item_id", event_id="request_id").distinct()


def _after_reformulation(
    connection: Backend, day: Day, relevance: Relevance, mining: MiningConfig
) -> tuple[Table, dict[str, int]]:
    reformulated = after_reformulation(connection, "qr_consumed", day, relevance, mining.query_level)
    rows = reformulated.rows
    theta = relevant_documents(connection, "qr_theta", rows, day.items, relevance, mining.threshold.alpha)
    rows = rows.semi_join(theta.passed, ["query", "item_id"])
    rows = rows.select("query", "item_id", event_id="request_id").distinct()
    counts = {
        "qr_query_pairs": reformulated.query_pairs,
        "qr_query_pairs_not_similar": reformulated.dissimilar,
        "qr_pairs_scored": theta.scored,
        "qr_pairs_not_above_alpha": theta.refused,
    }
    return materialise(connection, "qr", rows), counts


def _sample(rows: Table, name: str, config: HeldOutConfig) -> tuple[Table, int]:
    """The rows of at most `max_events` events, and how many events there were."""
    import ibis

    events = np.array(sorted(rows.select("event_id").distinct().to_pyarrow()["event_id"].to_pylist()), object)
    if not len(events):
        raise InputError("test day", f"no event for {name.upper()}: nobody clicked, or nothing passes theta")
    if len(events) <= config.max_events:
        return rows, len(events)
    drawn = np.argsort(hash_texts(events, config.seed), kind="stable")[: config.max_events]
    return rows.semi_join(ibis.memtable(pa.table({"event_id": events[drawn].tolist()})), "event_id"), len(events)


def _never_exposed(connection: Backend, logs: LogFolder, test: Day, queries: Table, min_grade: float) -> Table:
    import ibis

    truth = next((name for name in ("truth", "judgments") if logs.has(name)), None)
    if truth is None:
        return queries.mutate(item_id=ibis.null("int64")).limit(0)  # relevance is unknown: the set stays empty
    graded = logs.engine_table(connection, truth)
    relevant = graded.filter(graded.grade >= min_grade).select("query", "item_id").distinct()
    relevant = relevant.semi_join(queries, "query").semi_join(test.items, "item_id")
    for day in (open_day(connection, logs, "train"), test):
        exposed = day.candidates.filter(day.candidates.stage == "exposed").join(day.searches, "request_id")
        relevant = relevant.anti_join(exposed.select("query", "item_id"), ["query", "item_id"])
    return relevant
