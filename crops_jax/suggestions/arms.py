"""What an arm of an experiment on suggestions trains: a writer of suggestions, or the encoder that it looks up with."""

from __future__ import annotations

from dataclasses import dataclass, field

from crops_jax.errors import InputError, require_positive
from crops_jax.models.config import BartConfig, Dtype, Remat
from crops_jax.suggestions.config import (
    AlignmentConfig,
    BeamConfig,
    QuantiserConfig,
    RelatedConfig,
    RQVAEConfig,
    RWRConfig,
)


@dataclass(frozen=True)
class WriterConfig:
    """An arm that writes suggestions: an encoder-decoder reads prefix, related queries and the user's last searches."""

    model: BartConfig = field(default_factory=BartConfig)
    """Its shape."""
    init_from: str | None = None
    """A BART checkpoint to start from: a local folder or a hub id (facebook/bart-base); none starts from random
    weights."""
    start: str = ""
    """Arm of the same workdir whose trained writer it starts from, and which is the reference of `rwr`; empty: none."""
    rwr: RWRConfig | None = None
    """How it learns what users preferred, against the arm that it starts from; none: it learns to write what was
    taken."""
    losers: int = 4
    """Rejected queries of a row that `rwr` learns from; where there are more, each kind has its turn."""
    encoder: str = ""
    """Arm of the same workdir that aligned an encoder, with whose vectors related queries are found; empty: the writer
    reads none."""
    related: RelatedConfig = field(default_factory=RelatedConfig)
    """Which queries are looked up for a prefix."""
    ids: QuantiserConfig = field(default_factory=RQVAEConfig)
    """Semantic ids, by which they are looked up."""
    recent: int = 10
    """Searches of the user before the request that it reads, at most; 0 reads none."""
    max_source_tokens: int = 64
    """Token slots of what is read. Of a longer prefix the end is read; what does not fit behind it is left out."""
    max_query_tokens: int = 16
    """Token slots of what is written, with the token that ends it."""
    shards: int = 8
    """Shard files of the records."""
    dtype: Dtype = "float32"
    """Compute type; master weights, norms and the loss are float32."""
    remat: Remat = "none"
    """What the backward pass recomputes."""
    known: bool = True
    """Write only queries that somebody searched on the train day; else any text."""
    beam: BeamConfig = field(default_factory=BeamConfig)
    """How suggestions are searched for; of at most `max_query_tokens` tokens each."""
    beam_requests: int = 16
    """Requests that are answered at once."""

    def __post_init__(self) -> None:
        names = ("losers", "max_source_tokens", "max_query_tokens", "shards", "beam_requests")
        require_positive("suggest", self, names)
        longest, problems = max(self.max_source_tokens, self.max_query_tokens), []
        if self.rwr is not None and not self.start:
            problems.append("rwr needs start: the arm of a trained writer, which is its reference")
        if self.start and self.init_from is not None:
            problems.append(f"start = {self.start!r}, init_from = {self.init_from!r}: it can start from one alone")
        if self.recent < 0:
            problems.append(f"recent = {self.recent} is below zero")
        if longest > self.model.max_positions:
            problems.append(f"texts of up to {longest} tokens, but model.max_positions is {self.model.max_positions}")
        if self.max_source_tokens < 4 or self.max_query_tokens < 2:
            problems.append("max_source_tokens below 4 or max_query_tokens below 2: no room for text")
        if problems:
            raise InputError("suggest config", problems)

    @property
    def answers(self) -> int:
        """Answers of a row that a step reads: what was taken and, where there is `rwr`, the losers."""
        return 1 + (0 if self.rwr is None else self.losers)


@dataclass(frozen=True)
class AlignedEncoderConfig:
    """An arm that aligns a text encoder: its dual encoder learns which prefixes and queries belong together."""

    pairs: AlignmentConfig = field(default_factory=AlignmentConfig)
    """Which pairs of the mined day."""


SuggestConfig = WriterConfig | AlignedEncoderConfig
