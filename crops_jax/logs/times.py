"""Moments and spans as they lie on disk -> whole milliseconds; and whether a moment looks like one.

A timestamp carries its unit, and without a time zone it is UTC. An integer has the unit that is declared with the log
folder. Nobody has logs from before 2000 or after 2100: such a moment is a number in another unit.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa

from crops_jax.logs.casts import EXACT, Cast, WrongType, cast, plain
from crops_jax.logs.declared import TimeUnit

EARLIEST, LATEST = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000) for year in (2000, 2100))
MAX_DAYS = 31
_MANY = 100  # rows that never come within a second
_MOST = 2**53  # a greater number is no moment in any unit; it is taken for 1970, which is none either
_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_NAMES: dict[TimeUnit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def moments(array: pa.Array, declared: TimeUnit) -> Cast:
    """int64 milliseconds since the epoch, UTC; bad is what lies outside 2000 to 2100.

    Raises:
      WrongType: neither a timestamp nor a number.
    """
    array = plain(array)
    carried = pa.types.is_timestamp(array.type)
    unit = array.type.unit if carried else declared
    found = _milliseconds(array.cast(pa.int64()) if carried else array, unit)
    if found.bad.any():
        return replace(found, why=found.why or "are no moments; cast the column to a timestamp, or to an integer")
    none = found.array.is_null().to_numpy(zero_copy_only=False)
    value = found.array.fill_null(0).to_numpy()
    off = ~none & ~((value >= EARLIEST) & (value < LATEST))
    if not off.any():
        return found
    why = f"lie outside 2000 to 2100 as {_NAMES[unit]} since the epoch"
    if not carried:
        why += _looks_like(array[int(np.argmax(off))].as_py())
    return Cast(pa.array(value, mask=none | off), found.bad | off, why)


def days_told(first: int, last: int) -> str:
    """The days from one moment to another, in ms, as UTC writes them.

    >>> days_told(1_750_000_000_000, 1_750_000_000_001)
    '2025-06-15'
    """
    begins, ends = (datetime.fromtimestamp(ms / 1000, UTC).date().isoformat() for ms in (first, last))
    return begins if begins == ends else f"{begins} to {ends}"


def day_problems(first: int, last: int, rows: int) -> list[str]:
    """What keeps moments from `first` to `last` (ms) of one table from being those of a day's log."""
    days = (last - first) / 86_400_000
    if days > MAX_DAYS:
        ends = f"{moment_told(first)} to {moment_told(last)}"
        return [f"column ts: the rows span {days:.0f} days, {ends}; a day's log holds one day, {MAX_DAYS} at most"]
    if rows >= _MANY and last - first < 1000:
        what = f"all {rows} rows lie within a second of {moment_told(first)}"
        return [f"column ts: {what}: that is a date, or no time at all; the moment of each row is needed"]
    return []


def moment_told(ms: int) -> str:
    """A moment, ms, as UTC writes it.

    >>> moment_told(1_750_000_000_000)
    '2025-06-15 15:06:40+00:00'
    """
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(" ", "seconds")


def spans(array: pa.Array) -> Cast:
    """int64 milliseconds: a duration in its own unit, a number as it is.

    Raises:
      WrongType: neither a duration nor a number.
    """
    array = plain(array)
    if pa.types.is_duration(array.type):
        return _milliseconds(array.cast(pa.int64()), array.type.unit)
    return cast(array, pa.int64())


def _milliseconds(array: pa.Array, unit: TimeUnit) -> Cast:
    per_second = _PER_SECOND[unit]
    if pa.types.is_boolean(array.type):
        raise WrongType
    if pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        return _of_fractions(array, per_second)
    found = cast(array, pa.int64())
    if unit == "ms":
        return found
    none = found.array.is_null().to_numpy(zero_copy_only=False)
    value = found.array.fill_null(0).to_numpy()
    if unit == "s":
        value = np.where(np.abs(value.astype(np.float64)) > _MOST, 0, value) * 1000
    else:
        value = value // (per_second // 1000)
    return Cast(pa.array(value, mask=none), found.bad, found.why)


def _of_fractions(array: pa.Array, per_second: int) -> Cast:
    """Milliseconds of floats and decimals, which often hold seconds with a fraction."""
    if pa.types.is_decimal(array.type):
        exact = [None if v is None else v * 1000 / Decimal(per_second) for v in array.to_pylist()]
        value = np.array([np.nan if v is None else float(v) for v in exact], np.float64)
    else:
        # A float of seconds is off by less than a microsecond, and must not fall to the millisecond before.
        value = np.round(array.to_numpy(zero_copy_only=False).astype(np.float64) * 1000 / per_second, 3)
    none = np.isnan(value)
    most = EXACT[array.type] if array.type in (pa.float16(), pa.float32()) else np.inf
    bad = np.abs(value) * per_second / 1000 > most
    why = (
        f"lie where {array.type} is rounded by seconds; write double, whole numbers or a timestamp" if bad.any() else ""
    )
    whole = np.floor(np.where(none | bad | (np.abs(value) > _MOST), 0, value)).astype(np.int64)
    return Cast(pa.array(whole, mask=none | bad), bad, why)


def _looks_like(value: object) -> str:
    for unit, per_second in _PER_SECOND.items():
        try:
            if EARLIEST <= float(value) * 1000 / per_second < LATEST:
                return f"; they look like {_NAMES[unit]}: declare it with `check_logs DIR --time-unit {unit}`"
        except (TypeError, ValueError):
            break
    return ""
