"""What the search funnel itself says: P0 clicked, X3 exposed, U2 ranked, F1 filtered (paper Table 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from crops_jax.engines.engine import PART
from crops_jax.mining.day import Day
from crops_jax.mining.numbers import part_of_number
from crops_jax.mining.relevance import Relevance
from crops_jax.mining.scoring import relevant_documents
from crops_jax.mining.work import Work
from crops_jax.progress import stage

if TYPE_CHECKING:
    from ibis.expr.types import Table

UNCLICKED = ("X3", "U2", "F1")
_PAIRS = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("number", "item_id")])


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


def relevant_funnel(
    work: Work, funnel: Table, queries: Table, items: Table, relevance: Relevance | None, alpha: float
) -> tuple[Table, dict[str, int]]:
    """The funnel without the unclicked documents whose theta is not above alpha, and with theta of those that are left;
    and how many pairs were scored and refused.

    Each pair of query and document is scored once, in however many searches it was. Of a part, the texts of the
    documents that its queries' searches put out are in memory while it is scored.

    Args:
      funnel: rows with number (of the search), item_id and source.
      queries: (query, number) of `numbers`.

    Raises:
      Unscored: `relevance` is None, and another machine has not scored all of them yet.
    """
    searches = work.read("searches", "number", "query").join(queries.rename(query_number="number"), "query")
    funnel = funnel.join(work.engine.materialise("query_of", searches.select("number", "query_number")), "number")
    with stage("unique pairs of X3, U2 and F1"):
        pairs = funnel.filter(funnel.source.isin(UNCLICKED)).select("item_id", number="query_number")
        pairs = pairs.mutate(**{PART: part_of_number(work, pairs.number)})
        work.write("funnel_pairs", _PAIRS, tuple(_PAIRS.names), pairs, once=2)
    with stage("theta of X3, U2 and F1 pairs"):
        theta = relevant_documents(work, "funnel_theta", "funnel_pairs", queries, items, relevance, alpha)
    passed = theta.passed.select("item_id", "theta", query_number="number")
    rows = funnel.left_join(passed, ["query_number", "item_id"]).select(*funnel.columns, "theta")
    clicked = ~rows.source.isin(UNCLICKED)
    rows = rows.mutate(theta=clicked.ifelse(None, rows.theta)).filter(clicked | rows.theta.notnull())
    return rows, {"pairs_scored": theta.scored, "pairs_not_above_alpha": theta.refused}
