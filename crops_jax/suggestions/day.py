"""A day of suggestions as Ibis tables, without the rows that `logs.checks` rejects and without programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crops_jax.engines.engine import Engine, normalised
from crops_jax.errors import InputError
from crops_jax.logs.checks import usable_query
from crops_jax.logs.folder import LogFolder
from crops_jax.mining.day import open_day, spelled_as_most
from crops_jax.mining.users import no_persons, of_persons, user_numbers
from crops_jax.suggestions.config import SuggestMiningConfig

if TYPE_CHECKING:
    from ibis.expr.types import Table


@dataclass(frozen=True)
class TypingDay:
    """What users typed, what was suggested, what they took, and what they searched.

    Queries that are one (`normal_text`) have one spelling, that of most searches and taken suggestions of the day
    (ties: the smallest). Prefixes are in their normal form, so that a blank at the end or a capital adds none.
    """

    requests: Table  # request_id, user_id (null: nobody knows), prefix, ts
    suggested: Table  # request_id, query, shown, clicked; a query once a request; requests as above
    followed: Table  # request_id, query, ordered; one row for a suggestion behind which items were clicked
    searches: Table  # request_id, user_id, query, ts; of persons
    anonymous: Table  # query, ts; searches of which nobody knows the user


def open_typing_day(
    engine: Engine, logs: LogFolder, name: str, config: SuggestMiningConfig
) -> tuple[TypingDay, dict[str, Any]]:
    """The day of a log folder, and the users left out by reason.

    Left out are `config.anonymous_users` and users above the bounds of the config. What has no user stays: what was
    taken in a request is known, and a search says that its query is one.

    Raises:
      InputError: the day has no log of suggestions, or an anonymous user is named as no user of these logs is.
    """
    requests, left_out = open_requests(engine, logs, name, config)
    day = open_day(engine, logs, name)
    nobody = day.searches.filter(day.searches.user_id.isnull())
    day, told = of_persons(engine, logs, name, day, config.anonymous_users, config.max_searches_per_user)
    suggested = logs.engine_table(engine, "suggested", name, ("request_id", "query", "shown", "clicked"))
    suggested = suggested.filter(usable_query(suggested.query)).semi_join(requests, "request_id")
    spelled = _one_spelling(engine, name, day.searches.union(nobody), suggested)
    searches, anonymous = (rows.drop("query").join(spelled, "typed") for rows in (day.searches, nobody))
    suggested = suggested.rename(typed="query").join(spelled, "typed").group_by(["request_id", "query"])
    suggested = suggested.aggregate(shown=lambda t: t.shown.any(), clicked=lambda t: t.clicked.any())
    made = TypingDay(
        requests,
        engine.materialise(f"{name}_suggested", suggested),
        engine.materialise(f"{name}_followed", _followed(engine, logs, name, spelled)),
        engine.materialise(f"{name}_searches", searches.select("request_id", "user_id", "query", "ts")),
        engine.materialise(f"{name}_anonymous", anonymous.select("query", "ts")),
    )
    return made, told | left_out


def open_requests(
    engine: Engine, logs: LogFolder, name: str, config: SuggestMiningConfig
) -> tuple[Table, dict[str, Any]]:
    """`TypingDay.requests` of a day, and the users left out by reason.

    Raises:
      InputError: as `open_typing_day`.
    """
    if not logs.has("suggestions", name):
        raise InputError(
            f"{logs.root} (day {name!r})",
            "holds no suggestions.parquet: what was suggested to users who typed was not logged. data/README.md names "
            "the tables; a simulated world writes them with --simulate.typing.enabled=True",
        )
    requests = logs.engine_table(engine, "suggestions", name, ("request_id", "user_id", "prefix", "ts"))
    requests, left_out = _of_persons(engine, logs, name, requests, config)
    requests = requests.filter(usable_query(requests.prefix))
    return engine.materialise(f"{name}_requests", _in_normal_form(engine, f"{name}_prefixes", requests)), left_out


def _of_persons(
    engine: Engine, logs: LogFolder, name: str, requests: Table, config: SuggestMiningConfig
) -> tuple[Table, dict[str, Any]]:
    numbers, most = user_numbers(logs, config.anonymous_users), config.max_requests_per_user
    left_out = no_persons(engine, f"{name}_typists_left_out", requests, numbers, most)
    rows = left_out.to_pyarrow().to_pylist()
    if not rows:
        return requests, {}
    kinds = {"typing_anonymous": True, "too_many_requests": False}
    told = {kind: [row["times"] for row in rows if row["nobody"] == nobody] for kind, nobody in kinds.items()}
    counts = {kind: {"users": len(n), "requests": sum(n)} for kind, n in told.items() if n}
    return requests.anti_join(left_out, "user_id"), counts


def _in_normal_form(engine: Engine, name: str, requests: Table) -> Table:
    typed = requests.select(typed="prefix").distinct()
    forms = engine.materialise(name, typed.mutate(prefix=normalised(typed.typed)))
    return requests.rename(typed="prefix").join(forms, "typed").select("request_id", "user_id", "prefix", "ts")


def _one_spelling(engine: Engine, name: str, searches: Table, suggested: Table) -> Table:
    """(typed, query): every spelling of the day, and the one that stands for it."""
    searched = searches.group_by("typed").aggregate(times=searches.count())
    offered = suggested.group_by(typed="query").aggregate(times=suggested.clicked.cast("int64").sum())
    both = searched.union(offered)
    spellings = both.group_by("typed").aggregate(times=both.times.sum())
    spelled = spelled_as_most(engine, f"{name}_typed", spellings).rename(query="most")
    return engine.materialise(f"{name}_spelled", spelled)


def _followed(engine: Engine, logs: LogFolder, name: str, spelled: Table) -> Table:
    """One row for each suggestion behind which an item was clicked; none where the log does not tell."""
    if not logs.has("followed", name):
        return spelled.limit(0).select(request_id="typed", query="query", ordered=spelled.typed == spelled["query"])
    rows = logs.engine_table(engine, "followed", name, ("request_id", "query", "ordered"))
    rows = rows.rename(typed="query").join(spelled, "typed")
    return rows.group_by(["request_id", "query"]).aggregate(ordered=rows.ordered.any())
