"""P1, query-level positives (Eq. 1): what a user consumed after asking the same question in other words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crops_jax.mining.config import QueryLevelConfig
from crops_jax.mining.day import Day, interacted
from crops_jax.mining.relevance import Relevance
from crops_jax.mining.scoring import similar_queries
from crops_jax.mining.work import Work
from crops_jax.progress import stage

if TYPE_CHECKING:
    from ibis.expr.types import Table


def reformulation_pairs(searches: Table, config: QueryLevelConfig) -> Table:
    """(request_id, user_id, query, next_request_id, next_query, gap_ms): the same user, another query, soon after.

    0 < gap <= window_ms, and the queries differ in more than case and blanks: `searches` are those of a `Day`, in which
    queries that are one have one spelling. Each follow-up within the window of q counts
    for q, whatever was asked in between: q -> q' -> q'' gives (q, q'), (q', q'') and, if soon enough, (q, q'').
    It has to be among the user's next `max_searches_after` searches (ties in time: by request).

    A user's searches lie in buckets of time, as long as the window, and in blocks of places in the user's order, as
    many as may follow. Each is joined with those of its own and the next bucket and block: an equality join that gives
    at most 2 `max_searches_after` rows a search, where a range join would compare all searches of a busy user.
    """
    import ibis

    size = config.max_searches_after
    order = ibis.window(group_by="user_id", order_by=["ts", "request_id"])
    numbered = searches.select("request_id", "user_id", "query", "ts").mutate(place=ibis.row_number().over(order))
    numbered = numbered.mutate(bucket=numbered.ts // config.window_ms, block=numbered.place // size)
    renamed = {f"next_{name}": name for name in ("request_id", "query", "ts", "place")}
    later = numbered.rename(renamed)
    later = later.union(later.mutate(bucket=later.bucket - 1))
    later = later.union(later.filter(later.block > 0).mutate(block=later.block - 1))
    pairs = numbered.join(later, ["user_id", "bucket", "block"])
    pairs = pairs.mutate(gap_ms=pairs.next_ts - pairs.ts).filter(
        lambda t: (t.gap_ms > 0) & (t.gap_ms <= config.window_ms),
        lambda t: t.next_place - t.place <= size,
        lambda t: t.query != t.next_query,
    )
    return pairs.select("request_id", "user_id", "query", "next_request_id", "next_query", "gap_ms")


@dataclass(frozen=True)
class Reformulated:
    """Interactions after reformulations, before theta: `rows` as for `after_reformulation`; the rest are counts."""

    rows: Table
    query_pairs: int
    dissimilar: int


def after_reformulation(
    work: Work, name: str, day: Day, relevance: Relevance | None, config: QueryLevelConfig
) -> Reformulated:
    """(request_id, query, item_id, next_request_id, gap_ms), temporary table `name`: D_i of Eq. 1 for every q.

    An item is consumed after q_i when the user interacted with it among the results of q_i. QR, the test set, is
    read from the same relation.
    """
    pairs = work.engine.materialise(f"{name}_pairs", reformulation_pairs(day.searches, config))
    with stage("theta of the queries of reformulations"):
        similar = similar_queries(work, f"{name}_similar", pairs, relevance, config.min_query_similarity)
    consumed = day.candidates.filter(day.candidates.stage == "exposed", interacted(day.candidates, config.min_watch_ms))
    consumed = consumed.select("item_id", next_request_id="request_id")
    rows = pairs.semi_join(similar.passed, ["query", "next_query"]).join(consumed, "next_request_id")
    rows = rows.select("request_id", "query", "item_id", "next_request_id", "gap_ms")
    return Reformulated(work.engine.materialise(name, rows), similar.scored, similar.refused)
