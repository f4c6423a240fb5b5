"""Queries as numbers: millions of pairs name thousands of queries, and numbers are cheaper to join, sort and keep.

The lowest bits of a number are the part of its query (`Work.part_of`). Within a part, numbers have the order of the
queries' texts: rows sorted by number are sorted by query, on every engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crops_jax.engines.engine import PART
from crops_jax.mining.work import Work

if TYPE_CHECKING:
    from ibis.expr.types import IntegerValue, StringValue, Table

_DIGITS = "0123456789abcdef"
_BITS = 4  # of a digit


def number_queries(work: Work, name: str, searches: Table) -> Table:
    """(query, number), temporary table `name`: every query of the searches once; number is int64."""
    import ibis

    queries = searches.select("query").distinct()
    queries = queries.mutate(**{PART: work.part_of(queries.query)})
    within = ibis.row_number().over(ibis.window(group_by=PART, order_by="query"))
    number = within << (_BITS * work.digits)
    for digit in range(work.digits):
        value = ibis.literal(_DIGITS).find(queries[PART].substr(digit, 1)).cast("int64")
        number = number | (value << (_BITS * (work.digits - 1 - digit)))
    return work.engine.materialise(name, queries.select("query", number=number.cast("int64")))


def part_of_number(work: Work, number: IntegerValue) -> StringValue:
    """The part of a column of numbers: that of their queries."""
    import ibis

    if not work.digits:
        return ibis.literal("0")
    places = [(number >> (_BITS * digit)) & 15 for digit in reversed(range(work.digits))]
    return ibis.literal("").join([ibis.literal(_DIGITS).substr(place, 1) for place in places])
