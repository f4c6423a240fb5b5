"""The train day, mined: from one day's logs to candidates of seven sources (paper, Methodology).

`mine` reads the train day and writes candidates; what evaluation needs is read from the test day (`testsets`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crops_jax.artifacts import Folder
from crops_jax.engines.duckdb import materialise, open_engine, read_parquet, write_sorted
from crops_jax.logs.checks import check_with
from crops_jax.logs.folder import open_logs
from crops_jax.logs.tables import write_table
from crops_jax.mining.candidates import CANDIDATES_ORDER, CANDIDATES_SCHEMA, PLATFORM_ITEM, TYPED
from crops_jax.mining.config import (
    MiningConfig,
)
from crops_jax.mining.day import Day, open_day
from crops_jax.mining.funnel import funnel_rows
from crops_jax.mining.knowledge import KNOWLEDGE_SCHEMA, Knowledge
from crops_jax.mining.leak_guard import guard_against_leak
from crops_jax.mining.query_level import after_reformulation, query_level_rows
from crops_jax.mining.relevance import Relevance
from crops_jax.mining.scoring import relevant_documents
from crops_jax.mining.system_level import feed_near_query, system_level_rows
from crops_jax.mining.users import of_persons
from crops_jax.mining.world_knowledge import write_knowledge
from crops_jax.progress import stage

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import Table

__all__ = ["MiningConfig", "Relevance", "mine"]


def mine(logs_dir: str | Path, out: Folder, relevance: Relevance, config: MiningConfig) -> dict[str, Any]:
    """Mines the train day of a log folder into `out` and returns the counts.

    Writes candidates.parquet (`CANDIDATES_SCHEMA`, sorted), knowledge.parquet (the P3 documents) and rejects.json
    (what was left out, by reason). The test day is opened for one thing only: to make sure that nothing mined lies
    in it or after its start.

    Raises:
      InputError: the logs break the contract, the days overlap, the relevance model gives no usable scores, or the
        language model's endpoint cannot be used.
    """
    logs = open_logs(logs_dir)
    journal = Path(config.world_knowledge.journal or out.path.parent / "knowledge.journal.jsonl")
    with open_engine(config.engine, [out.path]) as connection:
        with stage("checking the train day"):
            report = check_with(connection, logs, "train")
            guard_against_leak(connection, logs)
        day = open_day(connection, logs, "train")
        events = funnel_rows(day)
        anonymous, most = config.anonymous_users, config.max_searches_per_user
        persons, users = of_persons(connection, logs, "train", day, anonymous, most)
        positives, rejects = _scored_sources(connection, persons, relevance, config)
        with stage("P3: documents of the language model"):
            knowledge = write_knowledge(events, day.items, config.world_knowledge, journal)
        sources = {"": events, **positives, "P3": _knowledge_rows(knowledge)}
        with stage("writing candidates"):
            counts = _write(connection, out, sources, day)
    write_table(KNOWLEDGE_SCHEMA, knowledge.documents, out / "knowledge.parquet")
    rejects = {"logs": {k: asdict(r) for k, r in report.rejects.items()}, **rejects, "P3": knowledge.rejects}
    rejects |= {"users": users} if users else {}
    (out / "rejects.json").write_text(json.dumps(rejects, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    counts |= {"P3_asked": knowledge.questions, "P3_tokens": knowledge.tokens, "log_rows": report.rows}
    out.counts.update(counts)
    return counts


def _scored_sources(
    connection: Backend, day: Day, relevance: Relevance, config: MiningConfig
) -> tuple[dict[str, Table], dict[str, dict[str, int]]]:
    """P1 and P2, their pairs scored together so that every text is encoded once; and the rejects of both."""
    with stage("P1: interactions after reformulations"):
        reformulated = after_reformulation(connection, "p1_consumed", day, relevance, config.query_level)
    with stage("P2: feed interactions around queries"):
        near = feed_near_query(connection, "p2", day, config.system_level)
        near = materialise(connection, "p2_consumed", near)
    with stage("theta of P1 and P2 pairs"):
        pairs = reformulated.rows.select("query", "item_id").union(near.select("query", "item_id"), distinct=True)
        pairs = materialise(connection, "theta_pairs", pairs)
        theta = relevant_documents(connection, "theta", pairs, day.items, relevance, config.threshold.alpha)
    rejects = {
        "P1": {"query_pairs": reformulated.query_pairs, "query_pairs_not_similar": reformulated.dissimilar},
        "theta": {"pairs_scored": theta.scored, "pairs_not_above_alpha": theta.refused},
    }
    rows = {"P1": query_level_rows(reformulated.rows, theta.passed), "P2": system_level_rows(near, theta.passed, day)}
    return rows, rejects


def _knowledge_rows(knowledge: Knowledge) -> Table:
    import ibis

    rows = knowledge.documents.select(["query", "item_id"])
    rows = rows.append_column("evidence", pa.array(knowledge.evidence, pa.string()))
    return ibis.memtable(rows).mutate(theta=ibis.null("float32"))


def _write(connection: Backend, out: Folder, sources: dict[str, Table], day: Day) -> dict[str, Any]:
    """Writes the union of the sources; "" holds the funnel, whose rows name their source themselves."""
    import ibis

    hashed = PLATFORM_ITEM.name in day.items.columns
    schema = pa.schema([*CANDIDATES_SCHEMA, *([TYPED] if day.respelled else []), *([PLATFORM_ITEM] if hashed else [])])
    # A union wants equal types, nullability included; the written schema is the strict one.
    types = {name: kind(nullable=True) for name, kind in ibis.Schema.from_pyarrow(schema).items()}
    tables = []
    for source, table in sources.items():
        if hashed:
            table = table.left_join(day.items.select("item_id", PLATFORM_ITEM.name), "item_id").drop("item_id_right")
        added = {name: ibis.null(kind) for name, kind in types.items() if name not in table.columns}
        if source:
            added["source"] = ibis.literal(source)
        tables.append(table.mutate(**added).select(*types).cast(types))
    path = out / "candidates.parquet"
    rows = write_sorted(connection, ibis.union(*tables), path, schema, CANDIDATES_ORDER)
    written = read_parquet(connection, path).group_by("source").aggregate(rows=lambda t: t.count())
    counted = written.order_by("source").to_pyarrow().to_pylist()
    return {"candidates": rows, **{row["source"]: row["rows"] for row in counted}}
