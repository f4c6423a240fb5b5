"""How sure a figure is: bootstrap intervals over queries, and Student's over the seeds of training, by SciPy.

Queries are drawn with all of their events, so that a frequent query is one draw and not a thousand independent ones.
Two methods are compared on the same draws (paired). Several seeds are averaged before, event by event, so an interval
over queries knows nothing of chance in training: for that a difference has one over seeds, too.
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
SEEDS_FOR_INTERVAL = 3  # with fewer, Student's interval is too wide to say anything


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
    """An interval as JSON knows it: None for NaN, and whether it differs from zero."""
    if found is None:
        return None
    numbers = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(found).items()}
    return numbers | {"differs": bool(found.differs)}


def signed(found: Mapping[str, Any], digits: int = 1) -> str:
    """A difference in percentage points with its intervals, as `told` gives them; the bounds may be None.

    >>> signed({"value": 0.012, "low": -0.001, "high": 0.02})
    '+1.2 [-0.1, +2.0]'
    >>> signed({"value": 0.012, "low": 0.001, "high": 0.02, "over_seeds": {"value": 0.012, "low": 0.0, "high": 0.024}})
    '+1.2 [+0.1, +2.0], over seeds [+0.0, +2.4]'
    """
    value, *bounds = (
        None if found[name] is None else f"{100 * found[name]:+.{digits}f}" for name in ("value", "low", "high")
    )
    over_queries = f"{value}" if None in bounds else f"{value} [{bounds[0]}, {bounds[1]}]"
    if not (seeds := found.get("over_seeds")):
        return over_queries
    return f"{over_queries}, over seeds [{100 * seeds['low']:+.{digits}f}, {100 * seeds['high']:+.{digits}f}]"


@dataclass(frozen=True)
class Estimate(Interval):
    """A mean over events and its 95 % interval; NaN bounds where one query alone has events."""

    events: int
    queries: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference of two methods; of `SEEDS_FOR_INTERVAL` seeds or more with Student's interval over pairs."""

    over_seeds: Interval | None

    @property
    def differs(self) -> bool:
        """Whether it is beyond chance: that of queries, and where it is known that of training."""
        return super().differs and (self.over_seeds is None or self.over_seeds.differs)


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


def difference(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], queries: np.ndarray, resamples: int, seed: int = 0
) -> Difference | None:
    """The mean of a - b over the same events, with its paired intervals; None where nothing was counted.

    Args:
      a: float64[E] a seed, as in `estimate`. `b` likewise; a method that draws nothing has one.
    """
    found = estimate(mean_of_seeds(a) - mean_of_seeds(b), queries, resamples, seed)
    if found is None:
        return None
    by_seed = np.subtract(*([np.nanmean(of_seed) for of_seed in side] for side in (a, b)))
    return Difference(**vars(found), over_seeds=over_seeds(by_seed) if len(by_seed) >= SEEDS_FOR_INTERVAL else None)


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


def over_seeds(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of one figure a seed, with Student's interval, which needs two seeds and is wide below five."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    low, high = t.interval(LEVEL, len(values) - 1, mean, sem(values))
    return Interval(mean, float(low), float(high))


def what_is_beyond_chance(seeds: int) -> str:
    """How `Difference.differs` is found with so many seeds, as a page says it."""
    if seeds >= SEEDS_FOR_INTERVAL:
        return (
            f"Figures are means of {seeds} seeds. A difference is beyond chance where two intervals leave out zero: "
            "one over queries, and Student's over seeds, which knows the chance of training."
        )
    of_seeds = "one seed, so" if seeds == 1 else f"figures are means of {seeds} seeds, but"
    return f'This interval is what "beyond chance" goes by; {of_seeds} chance in training is not in it.'
