"""Leaves out users who are not one person (anonymous, or a program): P1, P2 and QR need the acts of one person."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crops_jax.engines.engine import Engine
from crops_jax.errors import InputError
from crops_jax.logs.folder import LogFolder
from crops_jax.logs.tables import PLATFORM
from crops_jax.mining.day import Day

if TYPE_CHECKING:
    from ibis.expr.types import Table

_EXAMPLES = 3


def of_persons(
    engine: Engine, logs: LogFolder, name: str, day: Day, anonymous: Sequence[int | str], most: int
) -> tuple[Day, dict[str, Any]]:
    """The day `name` with the searches of persons alone, and the users left out by reason (empty where there are none).

    Left out are `anonymous` users, and those with more than `most` searches of any kind on that day
    ("too_many_searches"); and without a count, for the checks tell it, the searches without a user. The feed is joined
    by user and goes with them. An anonymous user without any row on that day is told on stderr: a hashed id can be
    written in any way, and a misspelt one leaves strangers in.

    Raises:
      InputError: an anonymous user is named in a way in which no user of these logs is.
    """
    searches, feed = (logs.engine_table(engine, table, name) for table in ("searches", "feed"))
    numbers = user_numbers(logs, anonymous)
    _tell_unseen(name, dict(zip(anonymous, numbers, strict=True)), (searches, feed))
    left_out = no_persons(engine, f"{name}_users_left_out", searches, numbers, most)
    kept = day.searches.filter(day.searches.user_id.notnull()).anti_join(left_out, "user_id")
    persons = replace(day, searches=kept.select(day.searches.columns))
    if engine.count(left_out) == 0:
        return persons, {}
    reasons = {"anonymous": left_out.nobody, "too_many_searches": ~left_out.nobody}
    told = {reason: _told(left_out.filter(users), searches, feed) for reason, users in reasons.items()}
    return persons, {reason: counts for reason, counts in told.items() if counts["users"]}


def no_persons(engine: Engine, name: str, rows: Table, anonymous: Sequence[int], most: int) -> Table:
    """(user_id, times, nobody), temporary table `name`: who is anonymous ("nobody") or has more than `most` rows."""
    users = rows.filter(rows.user_id.notnull()).group_by("user_id").aggregate(times=lambda t: t.count())
    nobody = users.user_id.isin(anonymous) if anonymous else users.times < 0
    return engine.materialise(name, users.mutate(nobody=nobody).filter(lambda t: t.nobody | (t.times > most)))


def user_numbers(logs: LogFolder, anonymous: Sequence[int | str]) -> list[int]:
    """Users as the platform writes them, as the logs number them.

    Raises:
      InputError: one is named in a way in which no user of these logs is.
    """
    numbers = {written: logs.declared.user(written) for written in anonymous}
    if strange := [repr(written) for written, number in numbers.items() if number is None]:
        raise InputError("anonymous_users", f"{', '.join(strange)}: the users of these logs are numbers")
    return list(numbers.values())


def _tell_unseen(name: str, numbers: Mapping[int | str, int], tables: Sequence[Table]) -> None:
    seen: set[int] = set()
    for table in tables if numbers else ():
        rows = table.filter(table.user_id.isin(list(numbers.values()))).select("user_id").distinct()
        seen |= {*rows.to_pyarrow()["user_id"].to_pylist()}
    if unseen := [repr(written) for written, number in numbers.items() if number not in seen]:
        said = "no search and no row of the feed; an id is named just as the logs write it, upper and lower case too"
        print(f"warning: anonymous_users: {', '.join(unseen)}: day {name!r} has {said}", file=sys.stderr)


def _told(users: Table, searches: Table, feed: Table) -> dict[str, Any]:
    """How many users, searches and rows of the feed; and the users who asked most, as the platform writes them."""
    import ibis

    first = users.order_by(ibis.desc("times"), "user_id").limit(_EXAMPLES)
    shown = PLATFORM["user"] if PLATFORM["user"] in searches.columns else "user_id"
    names = searches.semi_join(first, "user_id").select(shown).distinct().order_by(shown).to_pyarrow()
    return {
        "users": users.count().to_pyarrow().as_py(),
        "searches": users.times.sum().to_pyarrow().as_py(),
        "feed": feed.semi_join(users, "user_id").count().to_pyarrow().as_py(),
        "examples": names[shown].to_pylist(),
    }
