"""The settings of the recipes."""

from __future__ import annotations

from dataclasses import dataclass

from crops_jax.errors import require_positive


@dataclass(frozen=True)
class AnceConfig:
    """ANCE (Xiong et al. 2021): negatives are the nearest documents of the model itself, mined anew every round.

    Train with `loss=PairwiseConfig()` on `labels.sources=("P0", "N1")`, from a trained model (`model.init_from`).
    """

    rounds: int = 10
    """Rounds of equal length; negatives are mined when one begins."""
    top: int = 200
    """Nearest documents of a query that its negatives are drawn from, known positives left out (paper: 200)."""

    def __post_init__(self) -> None:
        require_positive("baseline", self, ("rounds", "top"))


BaselineConfig = AnceConfig
