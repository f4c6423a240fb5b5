"""theta, the semantic discriminator of Eqs. 1 and 2, as mining sees it; and the calibration of its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from crops_jax.errors import InputError


class Unscored(Exception):
    """Pairs wait for theta, which is on another machine: `crops_jax.score` scores them there."""

    def __init__(self, name: str, parts: int):
        super().__init__(f"{parts} {'part waits' if parts == 1 else 'parts wait'} for theta in {name}")


class Relevance(Protocol):
    """A relevance model. Mining hands it pairs in batches; what it computes of a text is best kept between them."""

    def scores(self, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float32[n] in [0, 1]: theta(query, document text) of each pair."""
        ...

    def query_similarity(self, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """float32[n]: how similar in meaning two queries are, 1 for the same."""
        ...


def checked_scores(values: np.ndarray, count: int, place: str, low: float = 0.0) -> np.ndarray:
    """What a relevance model gave for `count` pairs, as float32[count].

    float32 throughout: against a float64 threshold, a score of exactly 0.6 would count as above 0.6.

    Args:
      low: the least value that there may be.

    Raises:
      InputError: another shape, NaN, or values outside [low, 1]; it names `place`.
    """
    values = np.asarray(values, np.float32)
    if values.shape != (count,):
        raise InputError(place, f"gave an array of shape {values.shape} for {count} pairs")
    if nan := int(np.isnan(values).sum()):
        said = f"gave NaN for {nan} of {count} pairs, the first of which is number {int(np.isnan(values).argmax())}"
        raise InputError(place, f"{said}: weights that are damaged, or a text with tokens that the model has not")
    if count and (values.min() < low - 1e-3 or values.max() > 1 + 1e-3):
        raise InputError(place, f"gave values in [{values.min()}, {values.max()}], outside [{low:g}, 1]")
    return values


def scores_of(relevance: Relevance, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """`Relevance.scores`, checked as by `checked_scores`."""
    return checked_scores(relevance.scores(queries, texts), len(queries), "relevance.scores")


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it does on the judged pairs it was chosen on."""

    alpha: float
    precision: float
    recall: float
    pairs: int
    positives: int


def calibrate(scores: np.ndarray, labels: np.ndarray, precision: float) -> Calibration:
    """The lowest threshold whose kept pairs (score > alpha) are relevant with at least the given precision.

    Args:
      scores: float[n], theta of judged pairs; compared as float32, as in mining.
      labels: bool[n], whether the judges call the pair relevant.
      precision: the precision to reach, in (0, 1].

    Raises:
      InputError: no pairs, a NaN, no relevant pair, or no threshold that reaches the precision (the best is named).
    """
    scores, labels = np.asarray(scores, np.float32), np.asarray(labels, bool)
    _check_pairs(scores, labels)
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    last_of_score = np.append(ranked[1:] < ranked[:-1], True)  # a threshold cannot part equal scores
    kept = np.flatnonzero(last_of_score)
    precisions = hits[kept] / (kept + 1)
    good = np.flatnonzero(precisions >= precision)
    if not len(good):
        best = int(np.argmax(precisions))
        raise InputError(
            "calibration",
            f"no threshold reaches a precision of {precision:g}: the best is {precisions[best]:.3f}, "
            f"keeping {kept[best] + 1} of {len(scores)} pairs",
        )
    cut = kept[good[-1]]
    below = ranked[cut + 1] if cut + 1 < len(ranked) else np.float32(ranked[cut] - 1e-6)
    between = (ranked[cut] + below) / 2  # half way to the best rejected pair: safe against rounding
    return Calibration(
        alpha=float(between if between < ranked[cut] else below),  # there may be no float32 between
        precision=float(precisions[good[-1]]),
        recall=float(hits[cut] / hits[-1]),
        pairs=len(scores),
        positives=int(hits[-1]),
    )


def threshold_table(scores: np.ndarray, labels: np.ndarray, alphas: np.ndarray) -> list[list[str]]:
    """(alpha, pairs kept, precision, recall) as text, for each alpha; a pair is kept when its score is above it.

    Both are float32, as in mining: beside a float64 0.6, a score of exactly 0.6 would count as above it.

    >>> threshold_table(np.array([0.9, 0.7, 0.2]), np.array([True, False, True]), np.array([0.6]))
    [['0.60', '2', '0.500', '0.500']]
    """
    scores, labels = np.asarray(scores, np.float32), np.asarray(labels, bool)
    _check_pairs(scores, labels)
    rows = []
    for alpha in np.asarray(alphas, np.float32):
        kept = scores > alpha
        hits = labels[kept].sum()
        rows.append([f"{alpha:.2f}", str(kept.sum()), f"{hits / max(kept.sum(), 1):.3f}", f"{hits / labels.sum():.3f}"])
    return rows


def _check_pairs(scores: np.ndarray, labels: np.ndarray) -> None:
    problems = []
    if scores.shape != labels.shape or scores.ndim != 1:
        problems.append(f"scores {scores.shape} and labels {labels.shape} must be two vectors of one length")
    if not len(scores):
        problems.append("no judged pairs")
    if np.isnan(scores).any():
        problems.append(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN")
    if len(scores) and not labels.any():
        problems.append("no pair is judged relevant")
    if problems:
        raise InputError("calibration", problems)
