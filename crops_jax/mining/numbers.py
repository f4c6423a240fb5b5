"""Queries and searches as numbers: millions of rows name thousands of them, and numbers are cheaper to join and sort.

The lowest bits of a number are the part of its query (`Work.part_of`). Within a part, numbers have the order of the
texts: rows sorted by number are sorted by query, on every engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from crops_jax.engines.engine import PART
from crops_jax.mining.candidates import TYPED
from crops_jax.mining.work import Work

if TYPE_CHECKING:
    from ibis.expr.types import IntegerValue, StringValue, Table

_DIGITS = "0123456789abcdef"
_BITS = 4  # of a digit
_SEARCHES = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("request_id", pa.string()),
        pa.field("user_id", pa.int64()),
        TYPED,
    ]
)


def number_queries(work: Work, name: str, rows: Table) -> Table:
    """(query, number), temporary table `name`: every query of the rows once."""
    queries = _numbered(work, rows.select("query").distinct(), ["query"])
    return work.engine.materialise(name, queries.select("query", "number"))


def number_searches(work: Work, searches: Table) -> Table:
    """(query, number) of every query, and the stage "searches".

    The stage has a row of each search, and one of each query: what belongs to a query and to no single search, whose
    request_id, user_id and typed are null. A query's number is that of its own row, and is below those of its searches.

    Args:
      searches: of a `Day`.
    """
    import ibis

    rows = searches.select("query", "request_id", "user_id", typed=searches.typed.nullif(searches.query))
    none = {name: ibis.null(rows[name].type()) for name in ("request_id", "user_id", "typed")}
    rows = rows.union(rows.select("query").distinct().select("query", **none))
    work.write("searches", _SEARCHES, ("number",), _numbered(work, rows, ["query", "request_id"]))
    rows = work.read("searches", "number", "query", "request_id")
    return work.engine.materialise("queries", rows.filter(rows.request_id.isnull()).select("query", "number"))


def part_of_number(work: Work, number: IntegerValue) -> StringValue:
    """The part of a column of numbers: that of their queries."""
    import ibis

    if not work.digits:
        return ibis.literal("0")
    places = [(number >> (_BITS * digit)) & 15 for digit in reversed(range(work.digits))]
    return ibis.literal("").join([ibis.literal(_DIGITS).substr(place, 1) for place in places])


def _numbered(work: Work, rows: Table, by: Sequence[str]) -> Table:
    """The rows with number, in the order of `by` (nulls first), and `PART`."""
    import ibis

    rows = rows.mutate(**{PART: work.part_of(rows.query)})
    order = [ibis.asc(name, nulls_first=True) for name in by]
    number = ibis.row_number().over(ibis.window(group_by=PART, order_by=order)) << (_BITS * work.digits)
    for digit in range(work.digits):
        value = ibis.literal(_DIGITS).find(rows[PART].substr(digit, 1)).cast("int64")
        number = number | (value << (_BITS * (work.digits - 1 - digit)))
    return rows.mutate(number=number.cast("int64"))
