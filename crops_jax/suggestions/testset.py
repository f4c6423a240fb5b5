"""What a held-out day asks of suggestions: a prefix, who typed it after which searches, and what was taken.

An event is a suggestion that was taken. So only what production suggested can be asked for, and what production does
well counts more than it would for users who could have chosen among all queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crops_jax.artifacts import Folder, read_manifest
from crops_jax.engines import files
from crops_jax.engines.engine import open_engine
from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs
from crops_jax.mining.leak_guard import checked_day
from crops_jax.mining.testsets import HeldOutDay, sample_events
from crops_jax.progress import stage
from crops_jax.suggestions.config import SuggestMiningConfig, SuggestTestConfig
from crops_jax.suggestions.day import TypingDay, open_requests, open_typing_day
from crops_jax.suggestions.suggester import Asked
from crops_jax.suggestions.taken import queries_by, recent_searches, taken_suggestions

if TYPE_CHECKING:
    from ibis.expr.types import Table

KIND = "suggestion_testset"
EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string(), False),  # the request for suggestions
        pa.field("user_id", pa.int64()),
        pa.field("prefix", pa.string(), False),  # in its normal form, as in what is mined
        pa.field("query", pa.string(), False),  # that was taken; one row each where several were
        pa.field("ordered", pa.bool_(), False),  # an item behind it was ordered
        pa.field("prefix_seen", pa.bool_(), False),  # somebody typed the prefix on the train day
        pa.field("prefix_length", pa.int32(), False),  # characters
    ]
)
RECENT = pa.schema(
    [
        pa.field("event_id", pa.string(), False),
        pa.field("back", pa.int32(), False),  # 1: the user's last search before the request
        pa.field("query", pa.string(), False),  # as the user typed it
    ]
)


@dataclass(frozen=True)
class SuggestionTest:
    """A test set of E events, in parallel sequences."""

    events: list[str]
    users: list[int | None]
    prefixes: list[str]
    queries: list[str]
    ordered: np.ndarray  # bool[E]
    seen: np.ndarray  # bool[E]
    lengths: np.ndarray  # int32[E]
    recent: list[list[str]]  # the latest first

    @property
    def asked(self) -> Asked:
        """What a suggester may know."""
        return Asked(self.prefixes, self.users, self.recent)


def build_suggestion_testset(
    logs_dir: str | Path,
    out: Folder,
    config: SuggestTestConfig,
    mining: SuggestMiningConfig,
    held_out: HeldOutDay = "test",
) -> dict[str, Any]:
    """Writes events.parquet (`EVENTS`) and recent.parquet (`RECENT`) into `out`, and returns the counts.

    Args:
      mining: users left out, of both days, are those of what is mined.

    Raises:
      InputError: a day has no log of suggestions, the held-out day breaks the contract, the days overlap, or nobody
        took a suggestion.
    """
    logs = open_logs(logs_dir)
    with open_engine(mining.engine, [out.path]) as engine:
        report = checked_day(engine, logs, held_out, held_out=True)
        with stage(f"reading suggestions that were taken from the {held_out} day"):
            day, users = open_typing_day(engine, logs, held_out, mining)
            events, taken = sample_events(engine, _taken(day), "taken", config.max_events, config.seed)
            if not taken:
                raise InputError(
                    str(logs.place("suggested", held_out)), "nobody took a suggestion: nothing is asked for"
                )
            train, _ = open_requests(engine, logs, "train", mining)
            events = engine.materialise("events", _with_flags(events, train))
            counts = {
                "requests": engine.count(day.requests),
                "requests_with_a_taken_suggestion": taken,
                "events": engine.write_sorted(events, out / "events.parquet", EVENTS, ("event_id", "query")),
                "ordered": engine.count(events.filter(events.ordered)),
                "prefix_unseen": engine.count(events.filter(~events.prefix_seen)),
                "without_user": engine.count(events.filter(events.user_id.isnull())),
            }
        with stage("what their users had searched before"):
            recent = recent_searches(engine, logs, events.rename(request_id="event_id"), config.recent)
            recent = recent.rename(event_id="request_id")
            counts["recent"] = engine.write_sorted(recent, out / "recent.parquet", RECENT, ("event_id", "back"))
    counts["rejects"] = {name: reject.count for name, reject in report.rejects.items()}
    counts |= {"users": users} if users else {}
    out.counts.update(counts)
    return counts


def read_suggestion_testset(folder: str | Path) -> SuggestionTest:
    """A test set as `build_suggestion_testset` wrote it, events in the order of their ids.

    Raises:
      InputError: the folder is another kind, not complete, or damaged.
    """
    read_manifest(folder, KIND)
    events, recent = (files.read(Path(folder) / f"{name}.parquet") for name in ("events", "recent"))
    searched = queries_by(recent, "event_id")
    ids, users, prefixes, queries = (events[c].to_pylist() for c in ("event_id", "user_id", "prefix", "query"))
    flags = (events[c].to_numpy() for c in ("ordered", "prefix_seen", "prefix_length"))
    return SuggestionTest(ids, users, prefixes, queries, *flags, [searched.get(event, []) for event in ids])


def _taken(day: TypingDay) -> Table:
    """(event_id, user_id, ts, prefix, query, ordered) of every suggestion that was taken."""
    rows = taken_suggestions(day)
    return rows.select("user_id", "ts", "prefix", "query", event_id="request_id", ordered=rows.level == "order")


def _with_flags(events: Table, train: Table) -> Table:
    typed = train.select("prefix").distinct().mutate(seen=True)
    rows = events.left_join(typed, "prefix").drop("prefix_right")
    length = rows.prefix.length().cast("int32")
    return rows.mutate(prefix_seen=rows.seen.fill_null(False), prefix_length=length).drop("seen")
