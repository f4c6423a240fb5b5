"""One day of logs as Ibis tables, without the rows that `logs.checks` rejects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crops_jax.engines.engine import Engine, normalised
from crops_jax.logs.checks import has_text, usable_query
from crops_jax.logs.folder import LogFolder
from crops_jax.logs.schema import TEXT_FIELDS

if TYPE_CHECKING:
    from ibis.expr.types import BooleanValue, Table

_ACTS = ("clicked", "liked", "watch_ms")


@dataclass(frozen=True)
class Day:
    """The day's tables and the items they name; every row of them can be used.

    `logs.schema` has the columns; those that no miner reads are left out.

    Queries that are one (`normal_text`) have one spelling in `searches.query`, that of most searches of the day (ties:
    the smallest); `searches.typed` has the user's own, which a model reads. `respelled` says whether any differ.
    """

    searches: Table
    candidates: Table
    feed: Table
    items: Table
    respelled: bool


def open_day(engine: Engine, logs: LogFolder, day: str) -> Day:
    """The day of a log folder: usable queries, items with text, and the rows that belong to both."""
    searches = logs.engine_table(engine, "searches", day)
    searches = searches.filter(usable_query(searches.query))
    searches, respelled = _one_spelling(engine, searches, day)
    items = logs.engine_table(engine, "items", columns=("item_id", *TEXT_FIELDS))
    silent = engine.materialise(f"{day}_silent", items.filter(~has_text(items)).select("item_id"))
    candidates = logs.engine_table(engine, "candidates", day, ("request_id", "item_id", "stage", "position", *_ACTS))
    feed = logs.engine_table(engine, "feed", day, ("user_id", "item_id", "ts", *_ACTS))
    told = (table.anti_join(silent, "item_id") for table in (candidates, feed, items))
    return Day(searches, *told, respelled)


def _one_spelling(engine: Engine, searches: Table, day: str) -> tuple[Table, bool]:
    """The searches with `query` in the spelling of most, `typed` as it was; and whether any differ."""
    spellings = searches.group_by(typed="query").aggregate(times=searches.count())
    spelled = spelled_as_most(engine, f"{day}_spellings", spellings)
    other = engine.materialise(f"{day}_respelled", spelled.filter(spelled.most != spelled.typed))
    searches = searches.mutate(typed="query")
    if engine.count(other) == 0:
        return searches, False
    joined = searches.left_join(other, "typed")
    return joined.mutate(query=joined.most.fill_null(joined.query)).select(searches.columns), True


def spelled_as_most(engine: Engine, name: str, spellings: Table) -> Table:
    """(typed, most): every spelling, and that of most for its normal form (ties: the smallest).

    Args:
      name: what a temporary table is called by.
      spellings: (typed, times), each spelling once.
    """
    import ibis

    forms = engine.materialise(name, spellings.mutate(form=normalised(spellings.typed)))
    most = ranked_first(forms, [ibis.desc("times"), "typed"], ["form"]).select("form", most="typed")
    return forms.join(most, "form").select("typed", "most")


def interacted(table: Table, min_watch_ms: int) -> BooleanValue:
    """Whether the user of a candidates or feed row clicked, liked, or watched for at least `min_watch_ms`."""
    return table.clicked | table.liked | (table.watch_ms >= min_watch_ms)


def ranked_first(table: Table, by: list[Any], keys: list[str], keep: int = 1) -> Table:
    """The first `keep` rows of each group of `keys` in the order `by`, which has to be total for a stable answer."""
    import ibis

    place = ibis.row_number().over(ibis.window(group_by=keys, order_by=by))
    return table.mutate(place=place).filter(lambda t: t.place < keep).drop("place")
