"""What a held-out day asks of suggestions: a prefix, who typed it after which searches, and what is right. Two truths:

taken   a suggestion that was taken. So only what production suggested can be asked for, and what production does well
        counts more than it would for users who could have chosen among all queries.
next    what the user searched next, suggested or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crops_jax.artifacts.folders import Folder
from crops_jax.artifacts.manifest import verify
from crops_jax.engines import files
from crops_jax.engines.engine import Engine, open_engine
from crops_jax.engines.files import Sorted
from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs
from crops_jax.mining.leak_guard import checked_day
from crops_jax.mining.testsets import HeldOutDay, sample_events
from crops_jax.progress import stage
from crops_jax.suggestions.config import SuggestMiningConfig, SuggestTestConfig
from crops_jax.suggestions.day import TypingDay, open_requests, open_typing_day
from crops_jax.suggestions.next_searches import next_searches
from crops_jax.suggestions.suggester import Asked
from crops_jax.suggestions.taken import queries_by, recent_searches, taken_suggestions

if TYPE_CHECKING:
    from ibis.expr.types import Table

KIND = "suggestion_testset"
_ASKED = [
    pa.field("event_id", pa.string(), False),  # the request for suggestions
    pa.field("user_id", pa.int64()),
    pa.field("prefix", pa.string(), False),  # in its normal form, as in what is mined
    pa.field("query", pa.string(), False),  # that is right
    pa.field("prefix_seen", pa.bool_(), False),  # somebody typed the prefix on the train day
    pa.field("prefix_length", pa.int32(), False),  # characters
]
TAKEN_EVENTS = pa.schema(  # the query that was taken; one row each where several were
    [*_ASKED, pa.field("ordered", pa.bool_(), False)]  # an item behind it was ordered
)
NEXT_EVENTS = pa.schema(  # the query that the user searched next
    [
        *_ASKED,
        pa.field("taken", pa.bool_(), False),  # it was taken from suggestions, in this request or a later one
        pa.field("shown", pa.bool_(), False),  # production showed it in this request
    ]
)
RECENT_EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string(), False),
        pa.field("back", pa.int32(), False),  # 1: the user's last search before the request
        pa.field("query", pa.string(), False),  # as the user typed it
    ]
)


@dataclass(frozen=True)
class Events:
    """E requests with what is right for each, in parallel sequences."""

    events: list[str]
    users: list[int | None]
    prefixes: list[str]
    queries: list[str]
    seen: np.ndarray  # bool[E]
    lengths: np.ndarray  # int32[E]
    recent: list[list[str]]  # the latest first

    @property
    def asked(self) -> Asked:
        """What a suggester may know."""
        return Asked(self.prefixes, self.users, self.recent)


@dataclass(frozen=True)
class TakenSuggestions(Events):
    """What was taken."""

    ordered: np.ndarray  # bool[E]

    @property
    def truths(self) -> dict[str, np.ndarray]:
        """bool[E] by name: every suggestion that was taken, and those behind which an item was ordered."""
        return {"click": np.ones(len(self.events), bool), "order": self.ordered}


@dataclass(frozen=True)
class NextSearches(Events):
    """What was searched next."""

    taken: np.ndarray  # bool[E]
    shown: np.ndarray  # bool[E]

    @property
    def truths(self) -> dict[str, np.ndarray]:
        """bool[E] by name: every search, and those that were typed to their end."""
        return {"next": np.ones(len(self.events), bool), "typed": ~self.taken}


@dataclass(frozen=True)
class SuggestionTest:
    """A test set: both truths of a day."""

    taken: TakenSuggestions
    next: NextSearches
    before_a_search: int  # requests of the day that are followed by a search; `next` are some of them
    without_a_search: int  # those of known users that are not
    without_user: int  # those of which nobody knows the user, and so not what was searched next

    @property
    def events(self) -> list[str]:
        """The events of the first, and then those of the second."""
        return self.taken.events + self.next.events

    @property
    def asked(self) -> Asked:
        """What a suggester may know, of the same events."""
        one, other = self.taken.asked, self.next.asked
        return Asked(one.prefixes + other.prefixes, one.users + other.users, one.recent + other.recent)


def build_suggestion_testset(
    logs_dir: str | Path,
    out: Folder,
    config: SuggestTestConfig,
    mining: SuggestMiningConfig,
    held_out: HeldOutDay = "test",
) -> dict[str, Any]:
    """Writes taken.parquet (`TAKEN_EVENTS`), next.parquet (`NEXT_EVENTS`) and recent.parquet (`RECENT_EVENTS`), and
    returns the counts.

    Args:
      mining: users left out, of both days, and the time within which a search follows are those of what is mined.

    Raises:
      InputError: a day has no log of suggestions, the held-out day breaks the contract, the days overlap, or nobody
        took a suggestion.
    """
    import ibis

    logs = open_logs(logs_dir)
    with open_engine(mining.engine, [out.path]) as engine:
        report = checked_day(engine, logs, held_out, held_out=True)
        with stage(f"reading suggestions that were taken from the {held_out} day"):
            day, users = open_typing_day(engine, logs, held_out, mining)
            train, _ = open_requests(engine, logs, "train", mining)
            taken, counts = _write_taken(engine, day, train, out, config)
        if not counts["events"]:
            raise InputError(str(logs.place("suggested", held_out)), "nobody took a suggestion: nothing is asked for")
        with stage("what their users searched next"):
            found = next_searches(day, mining.co_occurrence.prefix_window_ms)
            searched, of_next = _write_next(engine, found, train, out, config)
            unknown = engine.count(day.requests.filter(day.requests.user_id.isnull()))
            of_next["requests_without_user"] = unknown
            of_next["requests_without_a_search"] = counts["requests"] - unknown - of_next["requests_before_a_search"]
        with stage("what their users had searched before"):
            asked = (rows.select("user_id", "ts", request_id="event_id") for rows in (taken, searched))
            recent = recent_searches(engine, logs, ibis.union(*asked), config.recent).rename(event_id="request_id")
            before = engine.write_sorted(recent, out / "recent.parquet", Sorted(RECENT_EVENTS, ("event_id", "back")))
    counts |= of_next | {"recent": before, "rejects": {name: r.count for name, r in report.rejects.items()}}
    counts |= {"users": users} if users else {}
    out.counts.update(counts)
    return counts


def read_suggestion_testset(folder: str | Path) -> SuggestionTest:
    """A test set as `build_suggestion_testset` wrote it, events in the order of their ids.

    Raises:
      InputError: the folder is another kind, not complete, or damaged.
    """
    counts = verify(folder, KIND)["counts"]
    taken, searched, recent = (files.read(Path(folder) / f"{name}.parquet") for name in ("taken", "next", "recent"))
    before = queries_by(recent, "event_id")
    return SuggestionTest(
        TakenSuggestions(**_events(taken, before), ordered=taken["ordered"].to_numpy()),
        NextSearches(**_events(searched, before), **{flag: searched[flag].to_numpy() for flag in ("taken", "shown")}),
        counts["requests_before_a_search"],
        counts["requests_without_a_search"],
        counts["requests_without_user"],
    )


def _events(rows: pa.Table, before: dict[str, list[str]]) -> dict[str, Any]:
    ids, users, prefixes, queries = (rows[c].to_pylist() for c in ("event_id", "user_id", "prefix", "query"))
    seen, lengths = (rows[c].to_numpy() for c in ("prefix_seen", "prefix_length"))
    return {"events": ids, "users": users, "prefixes": prefixes, "queries": queries, "seen": seen, "lengths": lengths,
            "recent": [before.get(event, []) for event in ids]}  # fmt: skip


def _taken(day: TypingDay) -> Table:
    """(event_id, user_id, ts, prefix, query, ordered) of every suggestion that was taken."""
    rows = taken_suggestions(day)
    return rows.select("user_id", "ts", "prefix", "query", event_id="request_id", ordered=rows.level == "order")


def _write_taken(
    engine: Engine, day: TypingDay, train: Table, out: Folder, config: SuggestTestConfig
) -> tuple[Table, dict[str, Any]]:
    """Writes taken.parquet; returns its rows, and what is counted of them and of the day."""
    rows, in_all = sample_events(engine, _taken(day), "taken", config.max_events, config.seed)
    rows = engine.materialise("taken", _with_flags(rows, train))
    return rows, {
        "requests": engine.count(day.requests),
        "requests_with_a_taken_suggestion": in_all,
        "events": engine.write_sorted(rows, out / "taken.parquet", Sorted(TAKEN_EVENTS, ("event_id", "query"))),
        "ordered": engine.count(rows.filter(rows.ordered)),
        "prefix_unseen": engine.count(rows.filter(~rows.prefix_seen)),
        "without_user": engine.count(rows.filter(rows.user_id.isnull())),
    }


def _write_next(
    engine: Engine, found: Table, train: Table, out: Folder, config: SuggestTestConfig
) -> tuple[Table, dict[str, Any]]:
    """Writes next.parquet of rows of `next_searches`; returns its rows, and what is counted of them."""
    rows, in_all = sample_events(engine, engine.materialise("next_all", found), "next", config.max_next, config.seed)
    rows = engine.materialise("next", _with_flags(rows, train))
    return rows, {
        "requests_before_a_search": in_all,
        "next": engine.write_sorted(rows, out / "next.parquet", Sorted(NEXT_EVENTS, ("event_id",))),
        "next_prefix_unseen": engine.count(rows.filter(~rows.prefix_seen)),
    }


def _with_flags(events: Table, train: Table) -> Table:
    typed = train.select("prefix").distinct().mutate(seen=True)
    rows = events.left_join(typed, "prefix").drop("prefix_right")
    length = rows.prefix.length().cast("int32")
    return rows.mutate(prefix_seen=rows.seen.fill_null(False), prefix_length=length).drop("seen")
