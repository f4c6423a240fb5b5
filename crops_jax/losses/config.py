"""Which loss is trained, and its settings where the paper leaves a choice."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from crops_jax.errors import InputError, require_positive, require_possible


@dataclass(frozen=True)
class HInfoNCEConfig:
    """H-InfoNCE on graded groups, the paper's loss. Use it with the full ladder of labels 1..5."""

    form: Literal["factored", "streaming", "ring", "nxn"] = "factored"
    """Equal in value and gradient. factored: B x N memory; streaming: document tiles, O((B + N) D) memory; ring: the
    same without ever gathering the documents on one device; nxn: the paper's N x N form, for tests."""
    tile: int = 512
    """Documents compared at a time by streaming and ring."""
    reduction: Literal["mean", "sum", "per_query"] = "mean"
    """How anchors' losses combine: mean over the global batch's anchors, their sum, or the mean of per-query means."""
    min_anchor_label: int = 1
    """Documents graded lower are negatives only, never anchors (1: every graded document is an anchor)."""
    min_in_batch_label: int = 1
    """Anchors graded lower contrast with their own group alone (1: every anchor contrasts with in-batch documents)."""
    rung_weights: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Weight of the row of an anchor labelled 1, 2, 3, 4, 5 (the paper: all equal)."""
    rung_temperatures: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Factor of tau in the rows of anchors labelled 1, 2, 3, 4, 5 (the paper: one tau for all). Each further value that
    differs from the others costs one more product with the in-batch documents."""
    mask_duplicate_ids: bool = True
    """Do not count another group's copy of a document as a negative of a query whose own group holds it."""

    def __post_init__(self) -> None:
        require_positive("H-InfoNCE", self, ["tile", "min_anchor_label", "min_in_batch_label"])
        weights, temperatures = self.rung_weights, self.rung_temperatures
        problems = [f"rung_weights: {w} is no number of zero or more" for w in weights if not 0 <= w < inf]
        problems += [f"rung_temperatures: {t} is no number above zero" for t in temperatures if not 0 < t < inf]
        if not any(weights[min(self.min_anchor_label, len(weights)) - 1 :]):
            problems.append(f"rung_weights: no anchor counts, from min_anchor_label = {self.min_anchor_label} on")
        if problems:
            raise InputError("H-InfoNCE config", problems)


@dataclass(frozen=True)
class InfoNCEBinaryConfig:
    """InfoNCE with positives and negatives only: the paper's ablation of the label ladder."""

    min_positive_label: int = 4
    """Documents graded at least this are positives and anchors, the rest of the group are negatives."""
    reduction: Literal["mean", "sum", "per_query"] = "mean"
    """How anchors' losses combine: mean over the global batch's anchors, their sum, or the mean of per-query means."""
    mask_duplicate_ids: bool = True
    """Do not count another group's copy of a document as a negative of a query whose own group holds it."""

    def __post_init__(self) -> None:
        require_positive("InfoNCE", self, ["min_positive_label"])


@dataclass(frozen=True)
class InfoNCEPerPositiveConfig:
    """InfoNCE of one positive at a time: the documents of a group's highest label are its anchors, each against all
    others. `labels.one_anchor` writes groups that have one.
    """

    reduction: Literal["mean", "sum", "per_query"] = "mean"
    """How anchors' losses combine: mean over the global batch's anchors, their sum, or the mean of per-query means."""
    mask_duplicate_ids: bool = True
    """Do not count another group's copy of a document as a negative of a query whose own group holds it."""


@dataclass(frozen=True)
class SoftmaxCEConfig:
    """Softmax cross-entropy against grades: one softmax a query, no label mask."""

    gain: Literal["linear", "exponential"] = "linear"
    """A grade's share of the target: linear takes the label l itself, exponential takes 2^l - 1."""
    form: Literal["normalised", "sum"] = "normalised"
    """normalised: targets of a query sum to 1; sum: every document adds gain * its own cross-entropy."""
    reduction: Literal["mean", "sum"] = "mean"
    """Mean over the queries of the global batch, or their sum."""
    mask_duplicate_ids: bool = True
    """Leave another group's copy of a document out of the softmax of a query whose own group holds it."""


@dataclass(frozen=True)
class PairwiseConfig:
    """Pairwise logistic loss. As it stands ANCE's; STAR: in_batch=True; FS-LR: in_batch=True, min_anchor_label=1."""

    min_anchor_label: int = 4
    """Documents graded at least this are compared with every lower-graded one."""
    in_batch: bool = False
    """Whether other queries' documents are compared with too, as graded below all others."""
    in_batch_weight: float = 1.0
    """How much a pair with another query's document counts beside one within the group."""
    lambda_rank: bool = False
    """Weigh each pair by the change of NDCG that swapping the two would make."""
    mask_duplicate_ids: bool = True
    """Do not count another group's copy of a document as a negative of a query whose own group holds it."""

    def __post_init__(self) -> None:
        require_positive("pairwise", self, ["min_anchor_label", "in_batch_weight"])
        require_possible("pairwise", self)


@dataclass(frozen=True)
class NCEConfig:
    """Noise-contrastive estimation with in-batch noise: the paper's NCE row."""

    mode: Literal["hardest", "binary"] = "hardest"
    """The hardest in-batch negative alone, or the classifier of data against noise."""
    noise_documents: int = 10_000
    """Of binary: documents that uniform noise is drawn from, the corpus."""
    min_positive_label: int = 4
    """Documents graded at least this are positives."""
    mask_duplicate_ids: bool = True
    """Do not count another group's copy of a document as a negative of a query whose own group holds it."""

    def __post_init__(self) -> None:
        require_positive("NCE", self, ["noise_documents", "min_positive_label"])


LossConfig = (
    HInfoNCEConfig | InfoNCEBinaryConfig | InfoNCEPerPositiveConfig | SoftmaxCEConfig | PairwiseConfig | NCEConfig
)
