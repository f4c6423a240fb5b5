"""Where the negatives of a recipe other than CroPS come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crops_jax.errors import InputError, require_positive


@dataclass(frozen=True)
class NegativesConfig:
    """Groups of one click and of documents that a ranker finds near the query; known positives are left out.

    With its loss this is a recipe. DPR: ranker "bm25", top 100, InfoNCE. ANCE: ranker "model", rounds 10, the pairwise
    loss. STAR: ranker "model", one round, the pairwise loss with in-batch documents. TriSampler: ranker "model", rounds
    10, draw "triangle", InfoNCE. All but DPR start from a trained model (`model.init_from`).
    """

    ranker: Literal["bm25", "model"] = "model"
    """What finds the documents near a query: BM25, or the model as it is when a round begins."""
    rounds: int = 1
    """Rounds of equal length; negatives are found and drawn anew at the start of each."""
    top: int = 200
    """Nearest documents of a query that its negatives are drawn from."""
    count: int = 1
    """Negatives a group (1 in the papers; as many as CroPS has documents for the same budget)."""
    draw: Literal["uniform", "triangle"] = "uniform"
    """How they are drawn: all with equal chance, or by where they lie between query and positive (Yang et al. 2024)."""
    shortlist: int = 50
    """For draw "triangle": how many candidates are kept before the last draw."""
    graded: bool = False
    """Add the negatives, labelled as N1, to the graded groups of `labels` instead of to one click; every positive that
    the miners found for the query is known. With a loss whose `min_anchor_label` is above N1's label."""

    def __post_init__(self) -> None:
        require_positive("negatives", self, ("rounds", "top", "count", "shortlist"))
        if self.ranker == "bm25" and self.draw == "triangle":
            raise InputError("negatives config", "draw 'triangle' needs the vectors of ranker 'model'")


@dataclass(frozen=True)
class AdoreConfig:
    """ADORE: the query tower of a trained run learns from what it retrieves at every step.

    Needs `model.frozen.towers=("document",)`, `model.frozen.tau=True` and `model.init_from`; `loss` is not read.
    """

    top: int = 200
    """Documents retrieved for each query at every step."""
    cut: int = 200
    """Documents ranked behind this one have weight 0."""

    def __post_init__(self) -> None:
        require_positive("negatives", self, ("top", "cut"))
