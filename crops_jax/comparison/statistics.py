"""How sure a figure is: bootstrap intervals over queries, by SciPy.

Queries are drawn with all of their events, so that a frequent query is one draw and not a thousand independent ones.
Two methods are compared on the same draws (paired). Several seeds are averaged before, event by event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap, sem, t

from crops_jax.errors import InputError
from crops_jax.normal_text import normal_form

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; NaN bounds where nothing says how sure it is."""

    value: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def told(found: Interval | None) -> dict[str, Any] | None:
    """An interval as JSON knows it: None for NaN, and whether it leaves zero out."""
    if found is None:
        return None
    numbers = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(found).items()}
    return numbers | {"differs": bool(found.differs)}


def signed(found: Mapping[str, Any], digits: int = 1) -> str:
    """A difference in percentage points with its interval, of `value`, `low` and `high`; the bounds may be None.

    >>> signed({"value": 0.012, "low": -0.001, "high": 0.02})
    '+1.2 [-0.1, +2.0]'
    """
    value, *bounds = (
        None if found[name] is None else f"{100 * found[name]:+.{digits}f}" for name in ("value", "low", "high")
    )
    return f"{value}" if None in bounds else f"{value} [{bounds[0]}, {bounds[1]}]"


@dataclass(frozen=True)
class Estimate(Interval):
    """A mean over events and its 95 % interval; NaN bounds where one query alone has events."""

    events: int
    queries: int


def mean_of_seeds(values: Sequence[np.ndarray]) -> np.ndarray:
    """float64[E]: the mean over seeds of float64[E] each, event by event.

    Raises:
      InputError: the seeds counted different events.
    """
    whole = np.stack(values)
    missing = np.isnan(whole)
    if np.any(missing.any(0) != missing.all(0)):
        raise InputError("benchmark", "the seeds of one method were evaluated on different events")
    return whole.mean(0)


def estimate(values: np.ndarray, queries: np.ndarray, resamples: int, seed: int = 0) -> Estimate | None:
    """The mean of float64[E] `values` and its interval; None where nothing was counted.

    Args:
      values: NaN where an event has no ground truth.
      queries: object[E], the query of each event.
      resamples: draws of the queries behind the interval.
    """
    counted = ~np.isnan(values)
    if not counted.any():
        return None
    of_event = _numbered(queries[counted])
    sums, counts = np.bincount(of_event, values[counted]), np.bincount(of_event).astype(float)
    value = float(sums.sum() / counts.sum())
    size = (int(counted.sum()), len(sums))
    if len(sums) < 2:
        return Estimate(value, np.nan, np.nan, *size)
    if np.ptp(sums / counts) == 0:
        return Estimate(value, value, value, *size)

    def mean(s: np.ndarray, c: np.ndarray, axis: int = -1) -> np.ndarray:
        return s.sum(axis) / c.sum(axis)

    return Estimate(value, *_over_queries((sums, counts), mean, resamples, seed), *size)


def _numbered(queries: np.ndarray) -> np.ndarray:
    """int64[E]: a number a query, the same for all of its spellings."""
    typed, of_event = np.unique(queries, return_inverse=True)
    _, of_typed = np.unique(np.array(list(map(normal_form, typed)), object), return_inverse=True)
    return of_typed[of_event]


def _over_queries(
    columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], resamples: int, seed: int
) -> tuple[float, float]:
    """The interval of a statistic of several float64[queries], which are drawn together."""
    found = bootstrap(
        columns, statistic, paired=True, vectorized=True, n_resamples=resamples, batch=100, confidence_level=LEVEL,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def difference(a: np.ndarray, b: np.ndarray, queries: np.ndarray, resamples: int, seed: int = 0) -> Estimate | None:
    """The mean of a - b over the same events, with its paired interval."""
    return estimate(a - b, queries, resamples, seed)


def share_difference(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], resamples: int, seed: int = 0
) -> Interval:
    """Share a minus share b, each sum(of) / sum(out of) over the same queries, which are drawn together.

    Args:
      a: (of, out of), float64[Q] each; a query that was not asked has zeros. `b` likewise.
    """
    counted = (a[1] + b[1]) > 0
    columns = [part[counted] for part in (*a, *b)]

    def apart(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        top_a, bottom_a, top_b, bottom_b = (part.sum(axis) for part in parts)
        return top_a / bottom_a - top_b / bottom_b

    value = float(apart(*columns))
    if np.array_equal(columns[0], columns[2]) and np.array_equal(columns[1], columns[3]):
        return Interval(value, value, value)
    if counted.sum() < 2:
        return Interval(value, np.nan, np.nan)
    return Interval(value, *_over_queries(columns, apart, resamples, seed))


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of one figure a seed, with Student's interval, which needs two seeds and is wide below five."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    low, high = t.interval(LEVEL, len(values) - 1, mean, sem(values))
    return Interval(mean, float(low), float(high))
