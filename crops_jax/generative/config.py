"""What an arm that writes item ids is: how items are coded, what it learns from, how it is searched."""

from __future__ import annotations

from dataclasses import dataclass, field

from crops_jax.errors import InputError, require_positive
from crops_jax.models.config import BartConfig, Dtype, Remat
from crops_jax.suggestions.config import BeamConfig, QuantiserConfig, RQKMeansConfig


@dataclass(frozen=True)
class GeneratorConfig:
    """An arm that writes the ids of items: an encoder-decoder reads a query, and beam search gives the items."""

    encoder: str = "crops"
    """Arm of the same workdir, a dual encoder, whose vectors of the items are coded."""
    ids: QuantiserConfig = field(default_factory=lambda: RQKMeansConfig(codes=(256, 256), opq_parts=0))
    """How they are coded. One more code tells the items of equal codes apart."""
    model: BartConfig = field(default_factory=BartConfig)
    """The shape of encoder and decoder. Its vocabulary holds the tokeniser's tokens and, behind them, all codes."""
    label_weights: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0, 1.0)
    """What an item of the label 1, 2, ... counts in its group, beside the group's others; 0: it is no positive."""
    positives: int = 4
    """Positives of a group that a step learns from; of more, a seeded choice."""
    item_texts: int = 1
    """How often an epoch reads every item's own text as if it were a query for that item; 0: never. An item that no
    group has as a positive is written for no query otherwise."""
    max_source_tokens: int = 16
    """Token slots of what is read; longer queries and texts are cut."""
    dtype: Dtype = "float32"
    """Compute type; master weights, norms and the loss are float32."""
    remat: Remat = "none"
    """What the backward pass recomputes."""
    beams: int = 100
    """Ids that are kept while they grow; no search finds more items."""
    beam_queries: int = 16
    """Queries that are searched at once."""

    def __post_init__(self) -> None:
        require_positive("suggest", self, ("positives", "max_source_tokens", "beams", "beam_queries"))
        problems = []
        if not self.encoder:
            problems.append("encoder: is empty; name the arm of a dual encoder")
        if min(self.label_weights, default=0) < 0 or not any(self.label_weights):
            problems.append(f"label_weights = {self.label_weights}: none may be negative, and one has to be above zero")
        if self.item_texts < 0:
            problems.append(f"item_texts = {self.item_texts} is below zero")
        longest = max(self.max_source_tokens, self.id_tokens)
        if longest > self.model.max_positions:
            problems.append(f"rows of up to {longest} tokens, but model.max_positions is {self.model.max_positions}")
        if self.max_source_tokens < 3:
            problems.append("max_source_tokens below 3: no room for text")
        if problems:
            raise InputError("generator config", problems)

    @property
    def id_tokens(self) -> int:
        """T: tokens of an id, the one that makes it unique included."""
        match self.ids:
            case RQKMeansConfig(codes=codes, opq_parts=parts):
                return len(codes) + parts + 1
            case _:
                return self.ids.levels + 1

    @property
    def beam(self) -> BeamConfig:
        """Every id has T tokens and none ends earlier: the score is the log-probability of the id."""
        return BeamConfig(self.beams, self.beams, self.id_tokens, length_penalty=0.0, unfinished=True)
