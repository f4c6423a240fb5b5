"""Writes the logs of a simulated day: the log contract's tables, the truth beside them, and their counts."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from crops_jax.logs.schema import STAGES
from crops_jax.logs.tables import write_table
from crops_jax.simulate.calibration import KINDS
from crops_jax.simulate.feed import FeedConfig, day_of_feed
from crops_jax.simulate.sessions import NextQuery, Stage, Wave, day_of_sessions
from crops_jax.simulate.suggestions import write_suggestions
from crops_jax.simulate.truth import (
    EVENTS,
    EXPRESSIONS,
    RELEVANCE,
    AnnotationConfig,
    bubble_facts,
    expression_table,
    relevance_table,
    simulated_annotation,
)
from crops_jax.simulate.world import HIDDEN, Lookup, generator

TRAIN_DAY = int(datetime(2025, 6, 11, tzinfo=UTC).timestamp() * 1000)  # the paper's days; ms since the epoch
VALIDATION_DAY = int(datetime(2025, 6, 12, tzinfo=UTC).timestamp() * 1000)
TEST_DAY = int(datetime(2025, 6, 13, tzinfo=UTC).timestamp() * 1000)
REFORMULATION_MS = 90_000


def write_world(stage: Stage, annotation: AnnotationConfig, seed: int, folder) -> dict[str, int]:
    """Writes items, hidden items, judgments and the day-independent truth; returns their row counts.

    Where only some pairs are judged there is no table of the truth: what it does not list would count as irrelevant.
    """
    world = stage.world
    judged = world.judgments
    if judged is None:
        judged = simulated_annotation(world, stage.pools, annotation, seed)
    counts = {
        "items": write_table("items", world.items, folder / "items.parquet"),
        "hidden items": write_table(HIDDEN, world.hidden, folder / "hidden_items.parquet"),
        "judgments": write_table("judgments", judged, folder / "judgments.parquet"),
        "query intents": write_table(EXPRESSIONS, expression_table(world), folder / "truth" / "intents.parquet"),
    }
    if world.complete:
        relevance = write_table(RELEVANCE, relevance_table(world), folder / "truth" / "relevance.parquet")
        counts["graded pairs"] = relevance
    return counts


def write_day(
    stage: Stage, day: str, start_ms: int, n_sessions: int, *, feed: FeedConfig, seed: int, folder,
    stream: str | None = None,
) -> dict[str, int | float]:  # fmt: skip
    """Simulates one day, writes its tables and the events' intents, and returns its counts.

    The tables are searches, candidates and feed, and where queries are typed, those of suggestions.

    Args:
      day: the day's folder.
      stream: names the day's random streams and requests, where several days have a folder of the same name; none
        takes `day`. `generator` tells apart what the first eight bytes tell apart.
    """
    stream = stream or day
    waves = day_of_sessions(stage, n_sessions, generator(seed, "sessions", stream))
    events = _in_order_of_time(waves)
    ids = pa.array([f"{stream}-{n:07d}" for n in range(len(events.ts))])
    texts = pa.array(stage.world.queries, pa.string())
    searches = {"request_id": ids, "user_id": events.user, "query": texts.take(pa.array(events.query))}
    write_table("searches", searches | {"ts": events.ts + start_ms}, folder / day / "searches.parquet")
    write_table("candidates", _candidates(stage, events, ids), folder / day / "candidates.parquet")
    shown = day_of_feed(stage, feed, generator(seed, "feed", stream))
    item_ids = stage.world.items["item_id"].to_numpy()
    feed_rows = shown | {"item_id": item_ids[shown["item_id"]], "ts": shown["ts"] + start_ms}
    write_table("feed", feed_rows, folder / day / "feed.parquet")
    names = pa.array(stage.world.intents, pa.string())
    truth = {
        "request_id": ids, "intent_id": events.intent, "intent": names.take(pa.array(events.intent)),
        "session_id": events.session, "step": events.step, "switched": events.switched,
    }  # fmt: skip
    write_table(EVENTS, truth, folder / "truth" / f"events_{day}.parquet")
    counts = _counts(stage, events) | {"feed rows": len(shown["ts"]), "feed clicks": int(shown["clicked"].sum())}
    if stage.completions is None:
        return counts
    rng = generator(seed, "orders", stream)
    return counts | write_suggestions(stage, stage.completions, events, stream, start_ms, rng, folder / day)


def _in_order_of_time(waves: list[Wave]) -> Wave:
    joined = {name: np.concatenate([getattr(w, name) for w in waves]) for name in vars(waves[0])}
    order = np.lexsort((joined["step"], joined["session"], joined["ts"]))
    return Wave(**{name: column[order] for name, column in joined.items()})


def _candidates(stage: Stage, events: Wave, ids: pa.Array) -> dict:
    n_events, width = events.item.shape
    n_ranked = min(stage.config.log_ranked, stage.platform.ranked - stage.platform.exposed)
    column = np.arange(width)
    shown = stage.platform.exposed
    stage_of = np.where(column < shown, 2, np.where(column < shown + n_ranked, 1, 0))
    real = (events.item >= 0).ravel()
    event = np.repeat(np.arange(n_events), width)[real]
    names = pa.array(STAGES)
    columns = {
        "request_id": ids.take(pa.array(event)),
        "item_id": stage.world.items["item_id"].to_numpy()[events.item.ravel()[real]],
        "stage": names.take(pa.array(np.tile(stage_of, n_events)[real])),
    }
    rest = ("position", "clicked", "liked", "watch_ms")
    return columns | {name: getattr(events, name).ravel()[real] for name in rest}


def _counts(stage: Stage, events: Wave) -> dict[str, int | float]:
    """Figures that say whether the day can carry an experiment."""
    world, n = stage.world, stage.platform.exposed
    shown, clicked = events.item[:, :n], events.clicked[:, :n]
    query = np.broadcast_to(events.query[:, None], shown.shape)
    hit = clicked & (shown >= 0)
    grade = Lookup(world.relevance)(query[hit], shown[hit])
    real = shown >= 0
    exposed = sp.csr_matrix((np.ones(real.sum()), (query[real], shown[real])), shape=world.relevance.shape)
    return {
        "searches": len(events.ts),
        "distinct queries": len(np.unique(events.query)),
        "users": len(np.unique(events.user)),
        "exposures": int(real.sum()),
        "clicks": int(hit.sum()),
        "events with a click": int(hit.any(axis=1).sum()),
        "share of clicks relevant to the query": round(float((grade >= world.relevant_grade).mean()), 4)
        if hit.any()
        else 0.0,
        **_reformulations(stage, events),
        **bubble_facts(world, exposed, np.unique(events.query)),
    }


def _reformulations(stage: Stage, events: Wave) -> dict[str, int | float]:
    order = np.lexsort((events.step, events.session))
    session, query, ts = events.session[order], events.query[order], events.ts[order]
    follows = np.flatnonzero((session[1:] == session[:-1]) & ~events.switched[order][1:]) + 1
    near = follows[ts[follows] - ts[follows - 1] <= REFORMULATION_MS]
    kind = NextQuery(stage.world, stage.calibration).kinds(query[follows - 1], query[follows])
    clicked = events.clicked[order].any(axis=1)
    return {
        "needs switched within a session": int(events.switched.sum()),
        "reformulations": len(follows),
        "reformulations within 90 s": len(near),
        "reformulations within 90 s with a click after": int(clicked[near].sum()),
        "kinds of reformulation": {name: int((kind == k).sum()) for k, name in enumerate(KINDS)},
    }
