"""How a corpus is encoded, indexed, searched and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crops_jax.errors import InputError, require_positive, require_possible


@dataclass(frozen=True)
class EncodeConfig:
    """How texts are encoded outside training."""

    batch: int = 256
    """Rows of one device call; a multiple of the devices the batch is split over."""
    part: int = 65536
    """Items of one part on disk: a killed run encodes at most one part again."""
    buckets: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 128)
    """Token slots of the compiled shapes, below the tower's own maximum; a batch takes the smallest that holds it."""
    packed: Literal["auto", "yes", "no"] = "auto"
    """Several texts in a row of `row_tokens`, each attending to itself alone, and as many rows as `batch` texts of the
    greatest length would fill; else `batch` texts of about one length, padded to a bucket. auto: packed, but on CPU,
    where attention within long rows costs more than padding."""
    row_tokens: int = 512
    """Slots of a packed row; longer where a text is."""

    def __post_init__(self):
        require_positive("encode", self, ("batch", "part", "row_tokens"))
        if any(bucket < 1 for bucket in self.buckets):
            raise InputError("encode config", f"buckets = {self.buckets}: one is not above zero")


@dataclass(frozen=True)
class IndexConfig:
    """The ScaNN index and how hard it searches."""

    brute_force_below: int = 20_000
    """Below this many documents ScaNN scores all of them: a tree gains nothing there."""
    leaves: int = 0
    """Partitions of the tree; 0 takes the square root of the number of documents."""
    leaves_to_search: int = 0
    """Partitions a query looks into; 0 takes three tenths of them. A query that finds fewer documents than are asked
    for looks into more."""
    dimensions_per_block: int = 2
    """Dimensions hashed together; fewer is more exact and slower."""
    anisotropic_threshold: float = 0.2
    """How much more ScaNN's hash cares for large dot products (0.2 is its authors' value for unit vectors)."""
    reorder: int = 500
    """Candidates whose exact dot product is computed before the best k are returned; never fewer than 2k."""
    training_sample: int = 250_000
    """Documents that the partitions and the hash are trained on, at most."""

    def __post_init__(self):
        require_positive("index", self, ("dimensions_per_block", "reorder", "training_sample"))
        require_possible("index", self, ("anisotropic_threshold",))
        if (
            min(self.leaves, self.leaves_to_search, self.brute_force_below) < 0
            or 0 < self.leaves < self.leaves_to_search
        ):
            said = f"leaves_to_search = {self.leaves_to_search} of leaves = {self.leaves}"
            raise InputError("index config", f"{said}, brute_force_below = {self.brute_force_below}: none may be "
                             "negative, nor more leaves searched than there are")  # fmt: skip


@dataclass(frozen=True)
class EvaluateConfig:
    """Which numbers are computed."""

    cutoffs: tuple[int, ...] = (10, 50, 100)
    """K of Recall@K (paper: 100)."""
    ndcg_at: int = 4
    """K of NDCG@K (paper: 4)."""
    scann: bool = True
    """Also search the ScaNN index and report its recall against exact search."""
    compact: bool = True
    """Also search with fewer and smaller numbers a vector (int8, bits) and report what is still found."""

    def __post_init__(self):
        if not self.cutoffs or min(*self.cutoffs, self.ndcg_at) < 1:
            raise InputError("evaluate config", "cutoffs and ndcg_at must be at least 1, and one cutoff is needed")
        if len(set(self.cutoffs)) < len(self.cutoffs):
            raise InputError(
                "evaluate config", f"cutoffs = {self.cutoffs}: one is there twice, its events would be too"
            )


@dataclass(frozen=True)
class BM25Config:
    """BM25 in the Lucene form, whose idf is never negative."""

    k1: float = 1.2
    """How soon repeated terms stop to count (0.6 to 2.0 are usual)."""
    b: float = 0.75
    """How much long documents are held back, from 0 (not at all) to 1."""

    def __post_init__(self) -> None:
        require_possible("bm25", self, ("b",))
