"""What training knew of every query and document, as tables that a server looks up by query.

Three Parquet files, each sorted by `query`, a query's `normal_text.normal_form`:

- `queries`: the queries of the train day: how often each was asked, what a language model wrote for it.
- `pairs`: the query's documents in the candidates: from which sources, and what stands behind each source.
- `grades`: what is known of how relevant documents are, for the eye alone: no training reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from crops_jax.artifacts.folders import Folder
from crops_jax.engines.engine import Engine, normalised, open_engine
from crops_jax.engines.files import Sorted, files
from crops_jax.labels import LETTERS, source_bits
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.logs.tables import read_table
from crops_jax.mining.config import MiningConfig
from crops_jax.mining.day import Day, open_day, ranked_first
from crops_jax.mining.system_level import feed_near_query
from crops_jax.mining.users import of_persons

if TYPE_CHECKING:
    from ibis.expr.types import Table

QUERIES = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("typed", pa.string(), nullable=False),  # as most of its users type it
        pa.field("searches", pa.int64(), nullable=False),  # of the train day
        pa.field("written", pa.int64(), nullable=False),  # documents of the language model (P3)
        pa.field("title", pa.string()),  # the title of one of them
        pa.field("exemplar", pa.int64()),  # the item that was shown to the model: the query's most clicked one
    ]
)
PAIRS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("source", pa.int32(), nullable=False),  # bit set of labels.SOURCES, of all sources that were mined
        pa.field("shown", pa.int64(), nullable=False),  # searches of the query that exposed the item
        pa.field("clicked", pa.int64(), nullable=False),  # and whose user clicked or liked it
        pa.field("reworded", pa.string()),  # P1: the query that the user asked next
        pa.field("feeds", pa.int64(), nullable=False),  # P2: users of the query who watched it in their feed
    ]
)
GRADES = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("grade", pa.float64(), nullable=False),
    ]
)


def write_evidence(logs: Path, mined: Path, out: Folder, mining: MiningConfig) -> None:
    """Writes `evidence/`: the three tables, of every source that was mined, whichever of them an arm trained on.

    Args:
      logs: the sealed log folder.
      mined: what was mined from it.
      mining: the settings that it was mined with.

    Raises:
      InputError: a table is missing or damaged.
    """
    folder = open_logs(logs)
    target = out.folder("evidence")
    with open_engine(mining.engine, [target]) as engine:
        day = open_day(engine, folder, "train")
        candidates = engine.read(files(mined / "candidates.parquet"))
        known = _queries(engine, day, candidates, mined)
        pairs = _pairs(engine, folder, day, candidates, mining).join(known.select("typed", "query"), "typed")
        tables = {
            "queries": (known, QUERIES, ("query",)),
            "pairs": (pairs, PAIRS, ("query", "item_id")),
            "grades": (_grades(engine, folder), GRADES, ("query", "item_id")),
        }
        rows = {
            name: engine.write_sorted(table, target / f"{name}.parquet", Sorted(schema, by))
            for name, (table, schema, by) in tables.items()
        }
    out.counts["evidence"] = rows | {"graded_by": folder.graded_by}


def _queries(engine: Engine, day: Day, candidates: Table, mined: Path) -> Table:
    """`QUERIES` and the spelling that mining chose; every search of the train day counts."""
    import ibis

    searches = day.searches.group_by(typed="query").aggregate(searches=lambda t: t.count())
    searches = engine.materialise("evidence_searches", searches.mutate(query=normalised(searches.typed)))
    knowledge = read_table(mined / "knowledge.parquet", columns=["query", "ocr_cover"])
    titles = ibis.memtable(knowledge.rename_columns(["typed", "title"]))
    titles = titles.group_by("typed").aggregate(written=titles.count(), title=titles.title.min())
    clicks = (
        candidates.filter(candidates.source == "P0").group_by(["query", "item_id"]).aggregate(n=lambda t: t.count())
    )
    # As `mining.world_knowledge.exemplars` chooses: the most clicked one, of several the smaller id.
    best = ranked_first(clicks, [clicks.n.desc(), clicks.item_id], ["query"]).select(typed="query", exemplar="item_id")
    joined = searches.left_join(titles, "typed").drop("typed_right").left_join(best, "typed").drop("typed_right")
    exemplar = (joined.written > 0).ifelse(joined.exemplar, ibis.null("int64"))
    return engine.materialise("evidence_queries", joined.mutate(written=joined.written.fill_null(0), exemplar=exemplar))


def _pairs(engine: Engine, folder: LogFolder, day: Day, candidates: Table, mining: MiningConfig) -> Table:
    """`PAIRS` under the spelling `typed`; documents that the language model wrote are no results and left out."""
    import ibis

    rows = candidates.filter(candidates.item_id >= 0)
    bit = ibis.cases(*((rows.source == letter, 1 << i) for i, letter in enumerate(LETTERS)), else_=0)
    found = rows.mutate(bit=bit).group_by(typed="query", item_id="item_id").aggregate(
        source=lambda t: t.bit.bit_or().cast("int32"),
        clicked=lambda t: t.request_id.nunique(where=t.source == "P0"),
        request_id=lambda t: t.evidence.max(where=t.source == "P1"),
    )  # fmt: skip
    found = found.left_join(_shown(day), ["typed", "item_id"]).drop("typed_right", "item_id_right")
    found = engine.materialise("evidence_pairs", found.mutate(shown=found.shown.fill_null(0)))
    asked = day.searches.select("request_id", reworded="typed")
    found = found.left_join(asked, "request_id").drop("request_id", "request_id_right")
    feeds = _feeds(engine, folder, day, found, mining)
    joined = found.left_join(feeds, ["typed", "item_id"]).drop("typed_right", "item_id_right")
    return engine.materialise("evidence_of_pairs", joined.mutate(feeds=joined.feeds.fill_null(0)))


def _shown(day: Day) -> Table:
    """(typed, item_id, shown) of the log: of the mined rows of X3, theta may have left some out (`mining.funnel`)."""
    rows = day.candidates.filter(day.candidates.stage == "exposed").select("request_id", "item_id")
    rows = rows.join(day.searches.select("request_id", typed="query"), "request_id")
    return rows.group_by(["typed", "item_id"]).aggregate(shown=rows.request_id.nunique())


def _feeds(engine: Engine, folder: LogFolder, day: Day, found: Table, mining: MiningConfig) -> Table:
    """(typed, item_id, feeds): how many users of a query watched its P2 items in their feed. Mining keeps one user."""
    persons, _ = of_persons(engine, folder, "train", day, mining.anonymous_users, mining.max_searches_per_user)
    near = feed_near_query(engine, "evidence", persons, mining.system_level).select("user_id", "item_id", typed="query")
    near = near.semi_join(found.filter((found.source & source_bits("P2")) > 0), ["typed", "item_id"])
    return near.group_by(["typed", "item_id"]).aggregate(feeds=near.user_id.nunique())


def _grades(engine: Engine, folder: LogFolder) -> Table:
    """`GRADES`; of the spellings of one query the largest grade stands for all."""
    import ibis

    if folder.graded_by is None:
        return ibis.memtable(GRADES.empty_table())
    table = folder.engine_table(engine, folder.graded_by)
    forms = engine.materialise("evidence_graded", table.select(typed="query").distinct())
    forms = engine.materialise("evidence_graded_forms", forms.mutate(form=normalised(forms.typed)))
    joined = table.rename(typed="query").join(forms, "typed")
    return joined.group_by(query="form", item_id="item_id").aggregate(grade=lambda t: t.grade.max())
