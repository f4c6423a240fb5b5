"""A day of suggestions, mined: pairs that belong together, rewards, preferences."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crops_jax.artifacts.folders import Folder, write_json
from crops_jax.engines.engine import PART, open_engine
from crops_jax.errors import InputError
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.mining.leak_guard import checked_day
from crops_jax.mining.work import Work, digits_for
from crops_jax.progress import stage
from crops_jax.suggestions.co_occurrence import PREFIX_QUERY, QUERY_QUERY, prefix_query_pairs, query_query_pairs
from crops_jax.suggestions.config import SuggestMiningConfig
from crops_jax.suggestions.day import TypingDay, open_typing_day
from crops_jax.suggestions.levels import REWARDS, TAKEN_LEVELS, behaviour, rewards
from crops_jax.suggestions.preferences import KINDS, PREFERENCES, PREFERENCES_ORDER, guarded, preference_pairs
from crops_jax.suggestions.searched import SEARCHED, SEARCHED_ORDER, searched_queries
from crops_jax.suggestions.taken import RECENT, RECENT_ORDER, TAKEN, TAKEN_ORDER, recent_searches, taken_suggestions

if TYPE_CHECKING:
    from ibis.expr.types import Table

TABLES = ("searched", "prefix_query", "query_query", "rewards", "preferences", "taken", "recent")


def mine_suggestions(
    logs_dir: str | Path, out: Folder, config: SuggestMiningConfig, work: Path | None = None, day: str = "train"
) -> dict[str, Any]:
    """Mines one day of a log folder into `out` and returns the counts.

    Writes a folder of parts for each of `TABLES` (each part holds whole prefixes, or whole queries; sorted) and
    rejects.json: rows that cannot be used and users left out, by reason.

    Args:
      work: folder of what is finished, where the same call goes on after a kill (`artifacts.folders.kept_for`). None:
        nothing is kept.

    Raises:
      InputError: the day has no log of suggestions, the logs break the contract, the days overlap, or nobody took a
        suggestion.
    """
    logs = open_logs(logs_dir)
    root = work or out.path / ".work"
    with open_engine(config.engine, [root]) as engine:
        report = checked_day(engine, logs, day)
        work_of = Work(engine, root, digits_for(max(report.rows.values()), config.part_rows))
        rows, users = open_typing_day(engine, logs, day, config)
        with stage("what was searched"):
            searched = _placed(work_of, searched_queries(rows), "query")
            work_of.write("searched", SEARCHED, SEARCHED_ORDER, searched)
        _write_pairs(work_of, rows, config)
        kinds = _write_preferences(work_of, rows, config)
        _write_taken(work_of, rows, logs, config)
        counts: dict[str, Any] = {name: engine.count(work_of.read(name)) for name in TABLES}
        for name in TABLES:
            out.facts += work_of.hand_over(name, out / name, out.path)
    if work is None:
        shutil.rmtree(root)
    rejects = {"logs": {reason: asdict(reject) for reason, reject in report.rejects.items()}}
    rejects |= {"users": users} if users else {}
    write_json(out / "rejects.json", rejects, sort_keys=True)
    counts |= {"kinds": kinds, "log_rows": report.rows}
    out.counts.update(counts)
    return counts


def _write_pairs(work: Work, day: TypingDay, config: SuggestMiningConfig) -> None:
    with stage("prefixes and queries that belong together"):
        rows = prefix_query_pairs(day, config.co_occurrence)
        work.write("prefix_query", PREFIX_QUERY, ("prefix", "query"), _placed(work, rows, "prefix"))
        rows = query_query_pairs(day.searches, config.co_occurrence)
        work.write("query_query", QUERY_QUERY, ("query", "related"), _placed(work, rows, "query"))


def _write_preferences(work: Work, day: TypingDay, config: SuggestMiningConfig) -> dict[str, dict[str, int]]:
    """Writes rewards and preferences; returns the pairs of each kind, and how many of them the guard left out."""
    if (found := work.counts("preferences")) is not None:
        return found["kinds"]
    with stage("rewards"):
        acts = work.engine.materialise("behaviour", behaviour(day))
        rewarded = work.engine.materialise("rewards", rewards(acts, config.rewards))
        work.write("rewards", REWARDS, ("prefix", "query", "level"), _placed(work, rewarded, "prefix"))
    with stage("preferences"):
        pairs = preference_pairs(work.engine, "preferences", day, acts, rewarded, config.preferences, config.rewards)
        pairs = work.engine.materialise("preferences_all", pairs)
        kinds = _kinds(pairs, config.preferences.min_gap)
        if not kinds:
            taken = work.engine.count(acts.filter(acts.level.isin(TAKEN_LEVELS)))
            why = "nobody took a suggestion on this day"
            if taken:
                why = f"{taken} suggestions were taken, and there was no other query to prefer one of them to"
            raise InputError("suggestions", f"{why}: there is no preference to learn")
        kept = _placed(work, guarded(pairs, config.preferences), "prefix")
        work.write("preferences", PREFERENCES, PREFERENCES_ORDER, kept, {"kinds": kinds})
    return kinds


def _write_taken(work: Work, day: TypingDay, logs: LogFolder, config: SuggestMiningConfig) -> None:
    if work.counts("recent") is not None:
        return
    with stage("what was taken, and what its users had searched before"):
        taken = work.engine.materialise("taken", taken_suggestions(day))
        work.write("taken", TAKEN, TAKEN_ORDER, _placed(work, taken, "prefix"))
        recent = recent_searches(work.engine, logs, taken, config.recent)
        recent = recent.join(taken.select("request_id", "prefix").distinct(), "request_id")
        work.write("recent", RECENT, RECENT_ORDER, _placed(work, recent, "prefix"))


def _kinds(pairs: Table, min_gap: float) -> dict[str, dict[str, int]]:
    near = (pairs.gap < min_gap).cast("int64").sum()
    told = pairs.group_by(["chosen_level", "rejected_level"]).aggregate(pairs=pairs.count(), near=near)
    rows = {(r["chosen_level"], r["rejected_level"]): r for r in told.to_pyarrow().to_pylist()}
    names = [kind for kind in KINDS if kind in rows]
    return {f"{a} > {b}": {"pairs": rows[a, b]["pairs"], "rewards too near": rows[a, b]["near"]} for a, b in names}


def _placed(work: Work, rows: Table, by: str) -> Table:
    return rows.mutate(**{PART: work.part_of(rows[by])})
