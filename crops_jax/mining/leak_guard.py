"""The guard between the days: nothing of the test day, and nothing later than its start, may be mined, nor may settings
be chosen by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import Engine, open_engine
from crops_jax.errors import InputError
from crops_jax.logs.checks import LogReport, check_with
from crops_jax.logs.folder import LogFolder
from crops_jax.logs.times import moment_told
from crops_jax.progress import stage

if TYPE_CHECKING:
    from ibis.expr.types import Table

HELD_OUT = ("validation", "test")  # the days that are never mined


def check_days(logs: LogFolder, config: EngineConfig) -> None:
    """`guard_against_leak` between each day that can be mined and each held-out day, and between the held-out days, on
    an engine of its own.
    """
    with open_engine(config, []) as engine:
        for mined in (day for day in logs.days() if day not in HELD_OUT):
            for held_out in HELD_OUT:
                guard_against_leak(engine, logs, mined, held_out)
        guard_against_leak(engine, logs, *HELD_OUT)


def checked_day(engine: Engine, logs: LogFolder, day: str, held_out: bool = False) -> LogReport:
    """What a day holds, after the checks of its tables and the guard.

    Args:
      held_out: the day is one to evaluate on, after the train day; else one to mine, before the test day.

    Raises:
      InputError: as `logs.checks.check_logs` and `guard_against_leak`.
    """
    with stage(f"checking the {day} day"):
        report = check_with(engine, logs, day)
        if held_out:
            guard_against_leak(engine, logs, held_out=day)
            guard_against_leak(engine, logs, *HELD_OUT)
        else:
            guard_against_leak(engine, logs, day)
    return report


def _overlap(tables: Mapping[tuple[str, str], Table], mined: str, held_out: str) -> list[str]:
    """What lies where the two days overlap, of both: either may be the one with the wrong clock."""
    firsts = {name: t.ts.min().to_pyarrow().as_py() for (day, name), t in tables.items() if day == held_out}
    lasts = {name: t.ts.max().to_pyarrow().as_py() for (day, name), t in tables.items() if day == mined}
    start = min(((ts, name) for name, ts in firsts.items() if ts is not None), default=None)
    end = max((ts for ts in lasts.values() if ts is not None), default=None)
    if start is None or end is None or end < start[0]:
        return []
    problems = []
    for (day, name), table in tables.items():
        if day == mined and (rows := (table.ts >= start[0]).sum().to_pyarrow().as_py()):
            first = f"{start[0]} ({moment_told(start[0])}), the first moment of day {held_out!r} ({start[1]})"
            problems.append(f"{day}/{name}.ts: {rows} rows at or after {first}")
        if day == held_out and (rows := (table.ts <= end).sum().to_pyarrow().as_py()):
            last = f"{end} ({moment_told(end)}), the last moment of day {mined!r}"
            problems.append(f"{day}/{name}.ts: {rows} of {table.count().to_pyarrow().as_py()} rows at or before {last}")
    return problems


def guard_against_leak(engine: Engine, logs: LogFolder, mined: str = "train", held_out: str = "test") -> None:
    """Passes when every event of the mined day lies before the first event of the held-out day, if both are there.

    Args:
      mined: or the validation day, by which settings are chosen: it has to end before the test day as well.

    Raises:
      InputError: searches, feed rows or suggestions of the mined day at or after that moment, or requests of both days.
    """
    if not logs.has("searches", mined) or not logs.has("searches", held_out):
        return
    tables = {
        (day, name): logs.engine_table(engine, name, day)
        for day in (mined, held_out)
        for name in ("searches", "feed", "suggestions", "followed")
        if logs.has(name, day)
    }
    problems = _overlap(tables, mined, held_out)
    for name, called in (("searches", "requests"), ("suggestions", "requests for suggestions")):
        if (mined, name) not in tables or (held_out, name) not in tables:
            continue
        shared = tables[mined, name].semi_join(tables[held_out, name], "request_id")
        if count := shared.count().to_pyarrow().as_py():
            ids = shared.request_id.as_table().order_by("request_id").limit(3).to_pyarrow()["request_id"].to_pylist()
            problems.append(f"{count} {called} are in both days, e.g. {', '.join(ids)}")
    if problems:
        into = "validation, by which settings are chosen" if mined in HELD_OUT else "mining"
        raise InputError(f"{logs.root}: the {held_out} day leaks into {into}", problems)
