"""The shape of a batch, the order of its groups, and how texts share rows."""

from __future__ import annotations

from dataclasses import dataclass

from crops_jax.errors import InputError, require_positive


@dataclass(frozen=True)
class PackingConfig:
    """The token budget of a batch, over all shards."""

    doc_row_tokens: int = 256
    """T: slots of a row of documents; at least the longest one. Attention within a row costs its square, so two or
    three texts a row are best on CPU; 256 or 512 on accelerators."""
    doc_rows: int = 512
    """Rows for documents in the global batch, a multiple of input.shards. These should run out first: a batch takes
    groups until its documents fill them."""
    query_row_tokens: int = 128
    """T: slots of a row of queries; at least the longest one."""
    query_rows: int = 64
    """Rows for queries in the global batch, a multiple of input.shards; a few more than the documents' groups need."""
    lookahead: int = 16
    """Groups that a shard may put off to its next batch, where one further on fills its rows better."""

    def __post_init__(self):
        require_positive("input.packing", self, ("doc_row_tokens", "doc_rows", "query_row_tokens", "query_rows"))
        if self.lookahead < 0:
            raise InputError("input.packing config", f"lookahead: {self.lookahead} is below zero")


@dataclass(frozen=True)
class InputConfig:
    """Batch shape, order and read-ahead."""

    batch_queries: int = 64
    """B: slots for query groups in a global batch, over all hosts. A padded batch fills them all; a packed one may run
    out of token slots first."""
    docs_per_query: int = 16
    """K: document slots of a group; smaller groups are padded. At least the largest group of the records."""
    shards: int = 8
    """S: parts that a batch is made of, each from its own part of the order; a multiple of the devices that the batch
    is split over. The same S gives the same batches on any number of devices."""
    packing: PackingConfig | None = None
    """Put several texts in a row instead of padding each to the longest allowed; none pads."""
    seed: int = 0
    """Seed of the order in which groups are read."""
    records_of: str = ""
    """Arm of the same workdir whose shards are read; empty: this arm's own."""
    sources: tuple[str, ...] = ()
    """Read the groups as if of their sources these alone had taken part: an ablation without writing records again.
    Empty: all that they were written with. docs/config.md says when it equals records written so."""
    known_positives: int = 0
    """Up to so many positives that a query has in any search of the train day are no in-batch negatives of it, though
    its own group does not hold them: the rule of the baselines' sources. Read from the mined candidates. 0: the group
    alone counts (the paper)."""
    prefetch: int = 4
    """Batches made ahead by the reading thread."""

    def __post_init__(self):
        require_positive("input", self, ("batch_queries", "docs_per_query", "shards", "prefetch"))
        sizes = {"batch_queries": self.batch_queries}
        if self.packing is not None:
            sizes |= {"packing.query_rows": self.packing.query_rows, "packing.doc_rows": self.packing.doc_rows}
        problems = [f"{name} = {size} is no multiple of shards = {self.shards}"
                    for name, size in sizes.items() if size % self.shards]  # fmt: skip
        if self.known_positives < 0:
            problems.append(f"known_positives: {self.known_positives} is below zero")
        if problems:
            raise InputError("input config", problems)
