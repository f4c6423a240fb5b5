"""Which prefixes and queries belong together, as their users show it: item-based collaborative filtering.

A pair's score is the cosine of its two sets of users, |users of both| / sqrt(|users of one| * |users of the other|).
Each user counts once. No join compares all events of a user with all: work grows with the number of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from crops_jax.mining.config import QueryLevelConfig
from crops_jax.mining.day import ranked_first
from crops_jax.mining.query_level import reformulation_pairs
from crops_jax.suggestions.config import CoOccurrenceConfig
from crops_jax.suggestions.day import TypingDay

if TYPE_CHECKING:
    from ibis.expr.types import Table

_SCORED = [pa.field("users", pa.int64(), False), pa.field("score", pa.float64(), False)]
PREFIX_QUERY = pa.schema(
    [
        pa.field("prefix", pa.string(), False),
        pa.field("query", pa.string(), False),
        *_SCORED,
        pa.field("requests", pa.int64(), False),  # that show the pair
        pa.field("only_request", pa.string()),  # the one that does; null where several do
    ]
)
QUERY_QUERY = pa.schema([pa.field("query", pa.string(), False), pa.field("related", pa.string(), False), *_SCORED])


def prefix_query_pairs(day: TypingDay, config: CoOccurrenceConfig) -> Table:
    """Rows of `PREFIX_QUERY`: the prefixes that a user typed, and what the user then searched or took.

    A prefix belongs to the user's next search, if that comes at most `prefix_window_ms` later; and to the suggestion
    that was taken for it, searched or not.
    """
    import ibis

    requests = day.requests.filter(day.requests.user_id.notnull())
    asked = day.searches.select("user_id", "query").distinct()
    taken = day.suggested.filter(day.suggested.clicked).join(requests, "request_id")
    taken = taken.select("request_id", "user_id", "prefix", "query")
    searched = searched_next(requests, day.searches, config.prefix_window_ms).drop("search_id")
    shown = searched.union(taken, distinct=True)
    pairs = shown.group_by(["prefix", "query", "user_id"]).aggregate(
        requests=shown.count(), only_request=shown.request_id.min()
    )
    both = pairs.group_by(["prefix", "query"]).aggregate(
        users=pairs.count(), requests=pairs.requests.sum().cast("int64"), only_request=pairs.only_request.min()
    )
    several = ibis.null("string")
    both = both.mutate(only_request=(both.requests == 1).ifelse(both.only_request, several))
    typed = requests.select("user_id", "prefix").distinct()
    chosen = asked.union(taken.select("user_id", "query"), distinct=True)
    return _scored(both, ("prefix", "query"), _users_of(typed, "prefix"), _users_of(chosen, "query"), config)


def query_query_pairs(searches: Table, config: CoOccurrenceConfig) -> Table:
    """(query, related, users, score), in both directions: two queries that a user searched in one session.

    They lie at most `session_window_ms` apart, with fewer than `max_searches_after` searches between them.
    """
    near = QueryLevelConfig(window_ms=config.session_window_ms, max_searches_after=config.max_searches_after)
    found = reformulation_pairs(searches, near)
    onward = found.select("user_id", "query", related="next_query")
    back = found.select("user_id", query="next_query", related="query")
    pairs = onward.union(back, distinct=True)
    pairs = pairs.group_by(["query", "related"]).aggregate(users=pairs.count())
    users = _users_of(searches.select("user_id", "query").distinct(), "query")
    return _scored(pairs, ("query", "related"), users, users.rename(related="query"), config)


def searched_next(requests: Table, searches: Table, window_ms: int) -> Table:
    """(request_id, user_id, prefix, query, search_id): requests with their user's next search.

    A search at the same moment is included. A request whose user searches nothing within the window has no row. The
    n-th search of a user and the prefixes typed after n - 1 searches have one place: an equality join.
    """
    import ibis

    rows = ibis.union(
        requests.select("user_id", "ts", "request_id", text="prefix", searched=ibis.literal(0, "int64")),
        searches.select("user_id", "ts", "request_id", text="query", searched=ibis.literal(1, "int64")),
    )
    so_far = ibis.window(group_by="user_id", order_by=["ts", "searched", "request_id"], rows=(None, 0))
    rows = rows.mutate(place=rows.searched.sum().over(so_far) - rows.searched)
    typed = rows.filter(rows.searched == 0).select("request_id", "user_id", "place", "ts", prefix="text")
    next_search = rows.filter(rows.searched == 1).select(
        "user_id", "place", next_ts="ts", query="text", search_id="request_id"
    )
    pairs = typed.join(next_search, ["user_id", "place"])
    pairs = pairs.filter(pairs.next_ts - pairs.ts <= window_ms)
    return pairs.select("request_id", "user_id", "prefix", "query", "search_id")


def _users_of(pairs: Table, name: str) -> Table:
    return pairs.group_by(name).aggregate(**{f"{name}_users": pairs.count()})


def _scored(both: Table, names: tuple[str, str], first: Table, second: Table, config: CoOccurrenceConfig) -> Table:
    """The best `per_text` pairs of each first text (ties: more users, then the smaller second text), with their score.

    Args:
      both: the two names, users, and whatever else is told of a pair.
    """
    import ibis

    one, other = names
    second = second.rename(other_users=next(c for c in second.columns if c != other))
    told = both.columns
    both = both.filter(both.users >= config.min_users).join(first, one).join(second, other)
    score = both.users / (both[f"{one}_users"] * both.other_users).cast("float64").sqrt()
    both = both.mutate(score=score).select(*told, "score")
    return ranked_first(both, [ibis.desc("score"), ibis.desc("users"), other], [one], keep=config.per_text)
