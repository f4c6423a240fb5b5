"""What a later day asks of retrieval: CT, QR, the never-exposed set, and what production ranked and showed.

Read from the test day, or from the validation day, by which settings are chosen (paper, Dataset and Metrics).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from crops_jax.artifacts.folders import Folder
from crops_jax.engines.engine import PART, Engine, draw, normalised, open_engine
from crops_jax.engines.files import Sorted
from crops_jax.errors import InputError
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.mining.candidates import PLATFORM_ITEM
from crops_jax.mining.config import HeldOutConfig, MiningConfig
from crops_jax.mining.day import Day, open_day
from crops_jax.mining.leak_guard import checked_day
from crops_jax.mining.numbers import number_queries, part_of_number
from crops_jax.mining.query_level import after_reformulation
from crops_jax.mining.relevance import Relevance
from crops_jax.mining.scoring import relevant_documents
from crops_jax.mining.users import of_persons
from crops_jax.mining.work import Work, digits_for
from crops_jax.progress import stage

if TYPE_CHECKING:
    from ibis.expr.types import Table

EVENTS_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),  # the request; its rows together are R_q of Eq. 4
        pa.field("query", pa.string(), nullable=False),  # as the user typed it
        pa.field("item_id", pa.int64(), nullable=False),
    ]
)
UNEXPOSED_SCHEMA = pa.schema(list(EVENTS_SCHEMA)[1:])  # query: in the spelling of most of the day's searches
_PAIRS = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("number", "item_id")])
HeldOutDay = Literal["test", "validation"]
SETS = ("ct", "qr", "unexposed", "ranked", "shown")  # a file each


def build_testsets(
    logs_dir: str | Path,
    out: Folder,
    relevance: Relevance | None,
    config: HeldOutConfig,
    mining: MiningConfig,
    held_out: HeldOutDay = "test",
    work: Path | None = None,
) -> dict[str, Any]:
    """Writes a file for each set (ct, qr, unexposed, ranked, shown) and returns the counts.

    CT: the videos clicked for q; a like without a click does not count, as it does for P0. QR: the videos consumed
    after a reformulation of q with theta(q, d) > alpha; its input is the original query q. One event is one request.
    unexposed: (query, item_id) relevant by the full truth (or, without one, by the judgments) that no one was shown for
    the query; empty where there is neither. ranked and shown: the ranker's output, and what the user saw of it, in CT's
    requests (Ratio_rank, Ratio_show; Tables 5 and 8).

    Args:
      relevance: as for `train_day.mine`.
      mining: reformulations, theta's threshold and the users left out are those of the mined P1, as the paper has it.
      work: as for `train_day.mine`.

    Raises:
      InputError: the day's tables break the contract, it overlaps the train day, or it gives no event for CT or,
        where that is required, for QR.
      Unscored: `relevance` is None and pairs wait for it.
    """
    logs = open_logs(logs_dir)
    root = work or out.path / ".work"
    with open_engine(mining.engine, [root, out.path]) as engine:
        report = checked_day(engine, logs, held_out, held_out=True)
        work_of = Work(engine, root, digits_for(max(report.rows.values()), mining.part_rows))
        day = open_day(engine, logs, held_out)
        persons, users = of_persons(engine, logs, held_out, day, mining.anonymous_users, mining.max_searches_per_user)
        with stage(f"reading CT and QR from the {held_out} day"):
            clicked = engine.materialise("ct", _clicked(day))
            reformulated, theta = _after_reformulation(work_of, persons, relevance, mining)
            counts = {"rejects": {name: r.count for name, r in report.rejects.items()}, **theta}
            counts |= {"users": users} if users else {}
            kept = {}
            for name, rows in {"ct": clicked, "qr": reformulated}.items():
                kept[name], events = sample_events(engine, rows, name, config.max_events, config.seed)
                _require_events(name, events, theta, engine.count(persons.searches), config.require_qr)
                counts[f"{name}_events_before_sampling"] = events
                counts |= _write_events(engine, out, name, kept[name], day)
            for name, rows in _of_the_funnel(day, kept["ct"]).items():
                counts[f"{name}_rows"] = _write(engine, out, name, rows, day, EVENTS_SCHEMA)
        with stage("finding what was never exposed"):
            queries = kept["ct"].select("query").union(kept["qr"].select("query"), distinct=True)
            rows = _never_exposed(engine, logs, day, queries, config.min_grade)
            counts["unexposed_rows"] = _write(engine, out, "unexposed", rows, day, UNEXPOSED_SCHEMA)
    if work is None:
        shutil.rmtree(root, ignore_errors=True)
    out.counts.update(counts)
    return counts


def _write_events(engine: Engine, out: Folder, name: str, rows: Table, day: Day) -> dict[str, int]:
    """Writes the events of CT or QR with their queries as they were typed, and counts rows and events."""
    written = _write(engine, out, name, rows.select("event_id", "item_id", query="typed"), day, EVENTS_SCHEMA)
    return {f"{name}_rows": written, f"{name}_events": rows.event_id.nunique().to_pyarrow().as_py()}


def _write(engine: Engine, out: Folder, name: str, rows: Table, day: Day, schema: pa.Schema) -> int:
    """Writes a test set; where ids are hashed, with a column of the items as the platform names them."""
    if PLATFORM_ITEM.name in day.items.columns:
        rows = rows.join(day.items.select("item_id", PLATFORM_ITEM.name), "item_id")
        schema = schema.append(PLATFORM_ITEM)
    order = (schema.names[0], "item_id")  # the event or, where there are none, the query
    return engine.write_sorted(rows, out / f"{name}.parquet", Sorted(schema, order))


def _clicked(day: Day) -> Table:
    clicks = day.candidates.filter(day.candidates.clicked).join(day.searches, "request_id")
    return clicks.select("query", "typed", "item_id", event_id="request_id").distinct()


def _of_the_funnel(day: Day, clicked: Table) -> dict[str, Table]:
    """What the ranker put out, and what was shown, in the requests of `clicked`."""
    events = clicked.select("event_id", query="typed").distinct()
    rows = day.candidates.join(events, day.candidates.request_id == events.event_id)
    columns = ("event_id", "query", "item_id")
    ranked = rows.filter(rows.stage.isin(("exposed", "ranked"))).select(*columns).distinct()
    return {"ranked": ranked, "shown": rows.filter(rows.stage == "exposed").select(*columns).distinct()}


def _after_reformulation(
    work: Work, day: Day, relevance: Relevance | None, mining: MiningConfig
) -> tuple[Table, dict[str, int]]:
    reformulated = after_reformulation(work, "qr_consumed", day, relevance, mining.query_level)
    rows = reformulated.rows
    queries = number_queries(work, "qr_queries", rows)
    rows = rows.join(queries, "query")
    pairs = rows.select("number", "item_id").distinct()
    pairs = pairs.mutate(**{PART: part_of_number(work, pairs.number)})
    work.write("qr_pairs", _PAIRS, ("number", "item_id"), pairs)
    theta = relevant_documents(work, "qr_theta", "qr_pairs", queries, day.items, relevance, mining.threshold.alpha)
    rows = rows.semi_join(theta.passed, ["number", "item_id"])
    rows = rows.join(day.searches.select("request_id", "typed"), "request_id")
    rows = rows.select("query", "typed", "item_id", event_id="request_id").distinct()
    counts = {
        "qr_query_pairs": reformulated.query_pairs,
        "qr_query_pairs_not_similar": reformulated.dissimilar,
        "qr_pairs_scored": theta.scored,
        "qr_pairs_not_above_alpha": theta.refused,
    }
    return work.engine.materialise("qr", rows), counts


def _require_events(name: str, events: int, theta: Mapping[str, int], persons: int, require_qr: bool) -> None:
    """Raises InputError, with the reason, where a test set asks for nothing. QR may, where nobody has a name."""
    if events:
        return
    if name == "ct":
        raise InputError("held-out day", "no event for CT: nobody clicked a result of a search")
    if persons:
        similar = theta["qr_query_pairs"] - theta["qr_query_pairs_not_similar"]
        why = (
            f"no event for QR: {persons} searches have a user; of {theta['qr_query_pairs']} pairs of a query and a "
            f"later one {similar} are similar (mining.query_level); of {theta['qr_pairs_scored']} documents consumed "
            f"after these {theta['qr_pairs_scored'] - theta['qr_pairs_not_above_alpha']} pass theta "
            "(mining.threshold.alpha)"
        )
        if require_qr:
            raise InputError("held-out day", f"{why}; --held_out.require_qr=False goes on with CT alone")
    else:
        why = "no search of the held-out day has a user, so nobody is known to have reworded a query: QR is empty"
    print(f"warning: {why}", file=sys.stderr)


def sample_events(engine: Engine, rows: Table, name: str, max_events: int, seed: int) -> tuple[Table, int]:
    """The rows of at most `max_events` events (`event_id`), and how many events there were."""
    events = rows.select("event_id").distinct()
    count = engine.count(events)
    if count <= max_events:
        return rows, count
    drawn = events.mutate(draw=draw(events.event_id, seed)).order_by("draw", "event_id").limit(max_events)
    return rows.semi_join(engine.materialise(f"{name}_drawn", drawn.drop("draw")), "event_id"), count


def _never_exposed(engine: Engine, logs: LogFolder, day: Day, queries: Table, min_grade: float) -> Table:
    import ibis

    if logs.graded_by is None:
        return queries.mutate(item_id=ibis.null("int64")).limit(0)  # relevance is unknown: the set stays empty
    asked = queries.mutate(form=normalised(queries.query))
    graded = logs.engine_table(engine, logs.graded_by)
    relevant = graded.filter(graded.grade >= min_grade).select("query", "item_id").distinct()
    relevant = relevant.select("item_id", form=normalised(relevant.query)).distinct()
    relevant = relevant.join(asked, "form").semi_join(day.items, "item_id")
    for one in (open_day(engine, logs, "train"), day):
        exposed = one.candidates.filter(one.candidates.stage == "exposed").join(one.searches, "request_id")
        exposed = exposed.select("query", "item_id").distinct()
        relevant = relevant.anti_join(exposed.mutate(form=normalised(exposed.query)), ["form", "item_id"])
    return relevant.select("query", "item_id")
