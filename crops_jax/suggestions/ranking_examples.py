"""What the ranker of the cascade learns from: requests of some users, and what all others show of the day.

A user's own act is part of what a day's counts say. A ranker that learns with them learns that whatever is counted
once is what this user takes, which is not so for requests to come. So the users are parted: those whose requests are
learned from count for nothing, and what they searched is known as it was before each request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from crops_jax.engines.engine import md5, open_engine
from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs
from crops_jax.mining.leak_guard import checked_day
from crops_jax.mining.testsets import sample_events
from crops_jax.progress import stage
from crops_jax.suggestions.co_occurrence import PREFIX_QUERY, prefix_query_pairs
from crops_jax.suggestions.config import CascadeConfig, SuggestMiningConfig
from crops_jax.suggestions.day import open_typing_day
from crops_jax.suggestions.searched import SEARCHED, searched_queries
from crops_jax.suggestions.suggester import Asked
from crops_jax.suggestions.taken import queries_by, recent_searches, taken_suggestions

if TYPE_CHECKING:
    from ibis.expr.types import BooleanColumn, Table

_DIGITS = 4  # of a hash, in hexadecimal, by which users are parted


@dataclass(frozen=True)
class RankingExamples:
    """Requests in which a suggestion was taken, and what others show of the day."""

    searched: pa.Table  # rows of `SEARCHED`, of the other users
    prefix_query: pa.Table  # rows of `PREFIX_QUERY`, of the other users
    asked: Asked  # n requests; `recent` has all that the user searched before, up to `CascadeConfig.history`
    taken: list[list[str]]  # n: what was taken


def ranking_examples(
    logs_dir: str | Path, mining: SuggestMiningConfig, config: CascadeConfig, day: str = "train"
) -> RankingExamples:
    """Reads the examples of a day.

    It costs what mining of the pairs of prefixes and queries does, and `max_requests` x `history` rows of searches.

    Raises:
      InputError: the day has no log of suggestions, the logs break the contract, the days overlap, or none of the
        users whose requests are learned from took a suggestion.
    """
    logs = open_logs(logs_dir)
    with open_engine(mining.engine, []) as engine:
        checked_day(engine, logs, day)
        with stage("examples to rank suggestions by"):
            rows, _ = open_typing_day(engine, logs, day, mining)
            others = replace(
                rows,
                requests=rows.requests.filter(~_apart(rows.requests, config)),
                searches=rows.searches.filter(~_apart(rows.searches, config)),
            )
            events = taken_suggestions(replace(rows, requests=rows.requests.filter(_apart(rows.requests, config))))
            events = events.drop("level").rename(event_id="request_id")
            events, _ = sample_events(engine, events, "ranked", config.max_requests, config.seed)
            events = engine.materialise("ranked", events)
            recent = recent_searches(engine, logs, events.rename(request_id="event_id"), config.history)
            recent = recent.rename(event_id="request_id")
            made = (
                searched_queries(others).select(SEARCHED.names).order_by("query", "user_id"),
                prefix_query_pairs(others, mining.co_occurrence).select(PREFIX_QUERY.names),
                events.order_by("event_id", "query"),
                recent.order_by("event_id", "back"),
            )
            searched, pairs, events, recent = (table.to_pyarrow() for table in made)
    if not len(events):
        raise InputError(str(logs.place("suggested", day)), "none of the users to learn from took a suggestion")
    return RankingExamples(searched, pairs, *_requests(events, recent))


def _apart(rows: Table, config: CascadeConfig) -> BooleanColumn:
    """Whether the user of a row is one whose requests are learned from; without a user it is drawn for each request."""
    import ibis

    who = ibis.literal(f"{config.seed}|") + rows.user_id.cast("string").coalesce(rows.request_id)
    return md5(who).substr(0, _DIGITS) < f"{int(config.kept_apart * 16**_DIGITS):0{_DIGITS}x}"


def _requests(events: pa.Table, recent: pa.Table) -> tuple[Asked, list[list[str]]]:
    """What was asked, each request once, and what was taken in it."""
    taken, searched = queries_by(events, "event_id"), queries_by(recent, "event_id")
    ids = events["event_id"].to_pylist()
    prefixes, users = (dict(zip(ids, events[name].to_pylist(), strict=True)) for name in ("prefix", "user_id"))
    asked = Asked([prefixes[e] for e in taken], [users[e] for e in taken], [searched.get(e, []) for e in taken])
    return asked, list(taken.values())
