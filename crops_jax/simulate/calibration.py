"""Behaviour taken from real logs as aggregates: gaps between queries, kinds of query change, clicks by rank.

`calibration.json` ships with the package; another file of the same form can be given by path. It holds numbers
computed over two public logs (SogouQ mini of 2008, Excite small of 1997), never a row of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from crops_jax.errors import InputError

KINDS = ("add_terms", "drop_terms", "substitute", "disjoint", "same_terms")
_LEAST_GAP_S = 3.0


@dataclass(frozen=True)
class Calibration:
    """Aggregates over the logs of the file, each log weighing the same."""

    gap_seconds: tuple[tuple[np.ndarray, np.ndarray], ...]  # for each log: (probabilities, log seconds), both rising
    kinds: np.ndarray  # float64[5], shares of KINDS
    examination: np.ndarray  # float64[ranks], click share of a rank relative to the first, never rising

    def gaps(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """float64[n] seconds between a query and the same user's next one."""
        u, which = rng.random(n), rng.integers(len(self.gap_seconds), size=n)
        drawn = [np.exp(np.interp(u, p, s)) for p, s in self.gap_seconds]
        return np.choose(which, drawn)


def read_calibration(path: str | None) -> Calibration:
    """The calibration at `path`, or the one that ships with the package for None.

    Raises:
      InputError: not JSON, or a log lacks gap_seconds or change_kinds, or no log has click_rank_share.
    """
    place = Path(path) if path else files("crops_jax.simulate").joinpath("calibration.json")
    try:
        logs = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(place), f"cannot be read as JSON ({error})") from None
    problems = [
        f"log {name!r} has no {key}"
        for name, log in logs.items()
        for key in ("gap_seconds", "change_kinds")
        if key not in log
    ]
    ranked = [log["click_rank_share"] for log in logs.values() if "click_rank_share" in log]
    if not ranked:
        problems.append("no log has click_rank_share")
    if problems:
        raise InputError(str(place), problems)
    gaps = tuple(_gap_curve(log["gap_seconds"], log.get("share_of_gaps_within_90s")) for log in logs.values())
    counts = np.mean([_shares([log["change_kinds"].get(k, 0) for k in KINDS]) for log in logs.values()], axis=0)
    return Calibration(gaps, counts, np.mean([_examination(r) for r in ranked], axis=0))


def _gap_curve(quantiles: dict[str, float], within_90: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles joined in log seconds, with the measured share within 90 s as one more point."""
    points = {float(name[1:]) / 100: seconds for name, seconds in quantiles.items()}
    if within_90 is not None:
        points[within_90] = 90.0
    ordered = [(0.0, min(_LEAST_GAP_S, min(points.values()))), *sorted(points.items()), (1.0, 2 * max(points.values()))]
    p, seconds = np.array(ordered).T
    return p, np.log(np.maximum.accumulate(seconds))


def _shares(values: list[float]) -> np.ndarray:
    total = np.asarray(values, float)
    return total / total.sum()


def _examination(by_rank: dict[str, float]) -> np.ndarray:
    """Shares of ranks 1 to 10, relative to the first; the logs' last rank gathers the rest and is left out."""
    share = np.array([by_rank[str(rank)] for rank in range(1, 11)])
    return np.minimum.accumulate(share / share[0])
