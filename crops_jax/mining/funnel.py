"""What the search funnel itself says: P0 clicked, X3 exposed, U2 ranked, F1 filtered (paper Table 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crops_jax.mining.day import Day

if TYPE_CHECKING:
    from ibis.expr.types import Table


def funnel_rows(day: Day, *also: str) -> Table:
    """(query, typed, request_id, user_id, item_id, source, position) of every candidate of every search of the day.

    typed is null where the user wrote the query as most did.

    P0: exposed and clicked or liked. X3: exposed, neither. U2: in the ranker's output, not exposed. F1: cut between
    pre-rank and rank.

    Args:
      also: further columns of the day's searches.
    """
    rows = day.candidates.join(day.searches, "request_id")
    liked_it = rows.clicked | rows.liked
    source = rows.stage.cases(
        ("exposed", liked_it.ifelse("P0", "X3")),
        ("ranked", "U2"),
        ("filtered", "F1"),
    )
    typed = rows.typed.nullif(rows.query)
    return rows.select("query", "request_id", "user_id", "item_id", "position", *also, source=source, typed=typed)
