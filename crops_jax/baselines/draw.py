"""How negatives are drawn from the documents near a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_WIDEST = np.deg2rad(60)


def uniform(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Places of `count` of `size` candidates without replacement, each alike; all of them where there are fewer."""
    return rng.permutation(size)[:count]


@dataclass(frozen=True)
class Triangle:
    """The quasi-triangular draw of TriSampler (Yang et al. 2024), in the reading that its public descriptions allow.

    Candidates whose angle to the query differs from the positive's by more than 60 degrees are left out. Of the others
    a shortlist is drawn by p1 ~ exp(-(s(q, d) - s(q, d+))^2 / 4), and from it the negatives by
    p2 ~ max(0, s(d+, d) - s(q, d)): not nearer to the query than to the positive. s = cosine / tau.
    """

    tau: float
    shortlist: int = 50

    def allowed(self, positive: float, cosines: np.ndarray) -> np.ndarray:
        """bool[n]: the candidates within 60 degrees of the positive's angle; all are cosines with the query."""
        angle = np.arccos(np.clip(cosines, -1, 1)) - np.arccos(np.clip(positive, -1, 1))
        return np.abs(angle) <= _WIDEST

    def first(self, positive: float, cosines: np.ndarray) -> np.ndarray:
        """p1, float[n]."""
        gap = ((cosines - positive) / self.tau) ** 2
        weight = np.exp((gap.min() - gap) / 4)  # the nearest has weight 1: at a small tau all would be zero otherwise
        return weight / weight.sum()

    def second(self, cosines: np.ndarray, to_positive: np.ndarray) -> np.ndarray:
        """Weights of p2, float[n], not normalised: all may be zero."""
        return np.maximum(0, (to_positive - cosines) / self.tau)

    def draw(
        self, count: int, positive: float, cosines: np.ndarray, to_positive: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The places of `count` candidates, or of all where there are fewer.

        Where p2 is zero for the whole shortlist, p1 alone decides; where too few are left, the nearest fill up.

        Args:
          positive: cosine of query and positive.
          cosines: float[n], of the query and the candidates, falling.
          to_positive: float[n], of the positive and the candidates.
        """
        places = np.flatnonzero(self.allowed(positive, cosines))
        p1 = self.first(positive, cosines[places]) if len(places) else np.zeros(0)
        short = places[_without_replacement(p1, self.shortlist, rng)]
        p2 = self.second(cosines[short], to_positive[short])
        weights = p2 if p2.any() else self.first(positive, cosines[short]) if len(short) else p2
        chosen = short[_without_replacement(weights, count, rng)]
        rest = np.setdiff1d(np.arange(len(cosines)), chosen)  # by rank
        return np.concatenate([chosen, rest[: count - len(chosen)]])


def _without_replacement(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` places with a weight above zero, drawn one after the other (the largest of Gumbel-shifted logs)."""
    noise = rng.gumbel(size=len(weights))
    with np.errstate(divide="ignore"):
        order = np.argsort(-(np.log(weights) + noise), kind="stable")
    return order[: min(count, int((weights > 0).sum()))]
