"""The train day, mined: from one day's logs to candidates of seven sources (paper, Methodology).

`mine` reads the train day and writes candidates; what evaluation needs is read from the test day (`testsets`).
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crops_jax.artifacts.folders import Folder, kept_for, write_json
from crops_jax.engines import files
from crops_jax.engines.engine import PART, open_engine
from crops_jax.logs.checks import no_p2
from crops_jax.logs.folder import open_logs
from crops_jax.logs.tables import PLATFORM, write_table
from crops_jax.logs.times import days_told
from crops_jax.mining.candidates import CANDIDATES_SCHEMA, PLATFORM_ITEM, TYPED
from crops_jax.mining.config import MiningConfig
from crops_jax.mining.day import Day, open_day
from crops_jax.mining.funnel import funnel_rows, relevant_funnel
from crops_jax.mining.knowledge import KNOWLEDGE_SCHEMA, Knowledge
from crops_jax.mining.leak_guard import checked_day
from crops_jax.mining.numbers import number_searches, part_of_number
from crops_jax.mining.query_level import after_reformulation
from crops_jax.mining.relevance import Relevance
from crops_jax.mining.scoring import relevant_documents
from crops_jax.mining.system_level import feed_near_query
from crops_jax.mining.users import of_persons
from crops_jax.mining.work import Work, digits_for
from crops_jax.mining.world_knowledge import write_knowledge
from crops_jax.progress import stage

if TYPE_CHECKING:
    from ibis.expr.types import Table

__all__ = ["MiningConfig", "Relevance", "mine"]

_PAIRS = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),  # of the query: `numbers`
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("request_id", pa.string()),  # P1: the evidence is the request of the reformulation
        pa.field("user_id", pa.int64()),  # P2: it is the user in whose feed the item was
    ]
)

_OF_SEARCHES = ("query", TYPED.name, "request_id", "user_id")

_DAY = "train"
# Of each pair of a source the nearest in time (ties: the smaller user, the smaller request).
_PAIRS_ORDER = ("number", "item_id", "source", "gap_ms", "user_id", "request_id")


def mine(
    logs_dir: str | Path,
    out: Folder,
    relevance: Relevance | None,
    config: MiningConfig,
    work: Path | None = None,
) -> dict[str, Any]:
    """Mines the train day of a log folder into `out` and returns the counts.

    Writes candidates.parquet, a folder of parts that each hold whole queries (`CANDIDATES_SCHEMA`, sorted),
    knowledge.parquet (the P3 documents) and rejects.json (what was left out, by reason). The test day is opened for one
    thing only: to make sure that nothing mined lies in it or after its start.

    Args:
      relevance: theta; None: it is on another machine, which scores what `work` asks for (`scoring`).
      work: folder of what is finished, where the same call goes on after a kill (`artifacts.folders.kept_for`). None:
        nothing is kept.

    Raises:
      InputError: the logs break the contract, the days overlap, the relevance model gives no usable scores, or the
        language model's endpoint cannot be used.
      Unscored: `relevance` is None and pairs wait for it; what was mined is kept in `work`.
    """
    logs = open_logs(logs_dir)
    journal = config.world_knowledge.journal_in(out.path.parent)
    root = work or out.path / ".work"
    with open_engine(config.engine, [root]) as engine:
        report = checked_day(engine, logs, _DAY)
        if why := no_p2(report.rows["feed"], report.common_user):
            print(f"warning: {why}", file=sys.stderr)
        work_of = Work(engine, root, digits_for(max(report.rows.values()), config.part_rows))
        rows = open_day(engine, logs, _DAY)
        persons, users = of_persons(engine, logs, _DAY, rows, config.anonymous_users, config.max_searches_per_user)
        with stage("numbering searches"):
            queries = number_searches(work_of, rows.searches)
        passed, rejects = _scored_sources(work_of, persons, queries, relevance, config)
        funnel, refused = _funnel(work_of, rows, queries, relevance, config.funnel.alpha)
        positives = _with_evidence(passed, persons)
        with stage("P3: documents of the language model"):
            knowledge = write_knowledge(engine, funnel_rows(rows), rows.items, config.world_knowledge, journal)
        with stage("writing candidates"):
            # A run that goes on asks again what failed: then there are other documents than those of the killed one.
            kept_for(root / "candidates", {"P3": knowledge.digest})
            mined = [positives, _knowledge_rows(knowledge).join(queries, "query")]
            counts = _write_candidates(work_of, out, [funnel, *mined], rows)
    if work is None:
        shutil.rmtree(root)
    write_table(KNOWLEDGE_SCHEMA, knowledge.documents, out / "knowledge.parquet")
    of_logs = {reason: asdict(reject) for reason, reject in report.rejects.items()}
    rejects |= refused | {"logs": of_logs, "P3": knowledge.rejects} | ({"users": users} if users else {})
    write_json(out / "rejects.json", rejects, sort_keys=True)
    counts |= {"P3_asked": knowledge.questions, "P3_tokens": knowledge.tokens, "log_rows": report.rows,
               "day": days_told(*report.searched)}  # fmt: skip
    out.counts.update(counts)
    return counts


def _scored_sources(
    work: Work, day: Day, queries: Table, relevance: Relevance | None, config: MiningConfig
) -> tuple[Table, dict[str, dict[str, int]]]:
    """P1 and P2 after theta, their pairs scored together so that every text is encoded once; and the rejects."""
    found = work.counts("pairs")
    if found is None:
        with work.engine.scope():
            rows, found = _pairs(work, day, queries, relevance, config)
            with stage("unique pairs of P1 and P2"):
                work.write("pairs", _PAIRS, _PAIRS_ORDER, rows, found, once=3)
    with stage("theta of P1 and P2 pairs"):
        theta = relevant_documents(work, "theta", "pairs", queries, day.items, relevance, config.threshold.alpha)
    counts = {"pairs_scored": theta.scored, "pairs_not_above_alpha": theta.refused}
    return theta.passed, {"P1": found, "theta": counts}


def _pairs(
    work: Work, day: Day, queries: Table, relevance: Relevance | None, config: MiningConfig
) -> tuple[Table, dict[str, int]]:
    """The pairs of P1 and P2, as often as each was seen; and what else was seen on the way."""
    import ibis

    with stage("P1: interactions after reformulations"):
        reformulated = after_reformulation(work, "p1_consumed", day, relevance, config.query_level)
    with stage("P2: feed interactions around queries"):
        asked = day.searches.join(queries, "query").select("user_id", "ts", query="number")
        asked = replace(day, searches=work.engine.materialise("p2_asked", asked))
        near = feed_near_query(work.engine, "p2", asked, config.system_level)
        near = work.engine.materialise("p2_consumed", near)
    p1 = reformulated.rows.join(queries, "query")
    p1 = p1.mutate(source=ibis.literal("P1"), user_id=ibis.null("int64"), request_id="next_request_id")
    p2 = near.rename(number="query", gap_ms="distance_ms")
    p2 = p2.mutate(source=ibis.literal("P2"), request_id=ibis.null("string"))
    rows = ibis.union(*(table.select(_PAIRS_ORDER) for table in (p1, p2)))
    counts = {"query_pairs": reformulated.query_pairs, "query_pairs_not_similar": reformulated.dissimilar}
    return rows.mutate(**{PART: part_of_number(work, rows.number)}), counts


def _with_evidence(pairs: Table, day: Day) -> Table:
    """(number, item_id, source, theta, evidence): the request of P1, the user of P2 as the platform writes them."""
    rows, user = pairs, PLATFORM["user"]
    if user in day.searches.columns:
        rows = rows.left_join(day.searches.select("user_id", user).distinct(), "user_id")
        evidence = rows.request_id.coalesce(rows[user])
    else:
        evidence = rows.request_id.coalesce(rows.user_id.cast("string"))
    return rows.select("number", "item_id", "source", "theta", evidence=evidence)


def _knowledge_rows(knowledge: Knowledge) -> Table:
    import ibis

    return ibis.memtable(knowledge.rows).mutate(theta=ibis.null("float32"), source=ibis.literal("P3"))


def _funnel(
    work: Work, day: Day, queries: Table, relevance: Relevance | None, alpha: float | None
) -> tuple[Table, dict[str, dict[str, int]]]:
    """(number, item_id, source, position) of the funnel, with the numbers of its searches; and the rejects.

    With `alpha` the unclicked documents have to pass theta, whose value stands beside those that do.
    """
    searches = work.read("searches", "number", "request_id", "query", "user_id", "typed")
    rows = funnel_rows(replace(day, searches=searches.filter(searches.request_id.notnull())), "number")
    rows = rows.select("number", "item_id", "source", "position")
    if alpha is None:
        return rows, {}
    rows, refused = relevant_funnel(work, rows, queries, day.items, relevance, alpha)
    return rows, {"funnel": refused}


def _write_candidates(work: Work, out: Folder, sources: list[Table], day: Day) -> dict[str, Any]:
    """Writes the union of the funnel and of what was mined beside it, in `CANDIDATES_ORDER`, and counts it.

    Rows are sent to their parts and sorted with the numbers of their searches, or of their queries. What the numbers
    stand for comes in when a part is written: the funnel has many rows of each search.
    """
    import ibis

    hashed = PLATFORM_ITEM.name in day.items.columns
    schema = pa.schema([*CANDIDATES_SCHEMA, *([TYPED] if day.respelled else []), *([PLATFORM_ITEM] if hashed else [])])
    beside = files.Beside(work.folder("searches"), "number", tuple(n for n in _OF_SEARCHES if n in schema.names))
    # A union wants equal types, nullability included; the written schema is the strict one.
    types = {name: kind(nullable=True) for name, kind in ibis.Schema.from_pyarrow(schema).items()}
    types = {"number": ibis.dtype("int64")} | {n: kind for n, kind in types.items() if n not in beside.columns}
    tables = []
    for table in sources:
        if hashed:
            table = table.left_join(day.items.select("item_id", PLATFORM_ITEM.name), "item_id").drop("item_id_right")
        added = {name: ibis.null(kind) for name, kind in types.items() if name not in table.columns}
        tables.append(table.mutate(**added).select(*types).cast(types))
    rows = ibis.union(*tables)
    rows = rows.mutate(**{PART: part_of_number(work, rows.number)})
    work.write("candidates", schema, ("number", "source", "item_id"), rows, beside=beside)
    out.facts += work.hand_over("candidates", out / "candidates.parquet", out.path)
    written = work.read("candidates", "source").group_by("source").aggregate(rows=lambda t: t.count())
    counted = written.order_by("source").to_pyarrow().to_pylist()
    return {"candidates": sum(row["rows"] for row in counted), **{row["source"]: row["rows"] for row in counted}}
