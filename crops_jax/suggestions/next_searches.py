"""What users searched after they had typed, suggested or not: a truth that production does not choose alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crops_jax.suggestions.co_occurrence import searched_next
from crops_jax.suggestions.day import TypingDay

if TYPE_CHECKING:
    from ibis.expr.types import Table


def next_searches(day: TypingDay, window_ms: int) -> Table:
    """(event_id, user_id, ts, prefix, query, taken, shown) of requests whose user searched within the window.

    query is the user's first search from the request on, as for `co_occurrence.prefix_query_pairs`. taken: a suggestion
    with that query was taken before the search, in this request or in a later one. shown: production showed the query
    in this request.
    """
    rows = searched_next(day.requests.filter(day.requests.user_id.notnull()), day.searches, window_ms)
    clicked, shown = (
        day.suggested.filter(day.suggested[flag]).select("request_id", "query").distinct()
        for flag in ("clicked", "shown")
    )
    took = rows.semi_join(clicked, ["request_id", "query"]).select("search_id").distinct().mutate(taken=True)
    rows = rows.left_join(took, "search_id").drop("search_id_right")
    rows = rows.left_join(shown.mutate(shown=True), ["request_id", "query"])
    rows = rows.select(
        "request_id", "user_id", "prefix", "query", taken=rows.taken.fill_null(False), shown=rows.shown.fill_null(False)
    )
    rows = rows.join(day.requests.select("request_id", "ts"), "request_id")
    return rows.select("user_id", "ts", "prefix", "query", "taken", "shown", event_id="request_id")
