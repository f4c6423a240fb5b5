"""What is mined from logs of suggestions, how queries are coded, and which loss learns from preferences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError, require_positive, require_possible


@dataclass(frozen=True)
class CoOccurrenceConfig:
    """Which prefixes and queries belong together."""

    prefix_window_ms: int = 60_000
    """A prefix belongs to the user's next search, if that comes at most so much later."""
    session_window_ms: int = 1_800_000
    """Two searches of a user belong together if they lie at most so far apart."""
    max_searches_after: int = 20
    """So many of the user's next searches are looked at."""
    min_users: int = 1
    """A pair needs so many users."""
    per_text: int = 50
    """Queries kept for a prefix, and for a query: those with the highest score."""

    def __post_init__(self) -> None:
        names = ("prefix_window_ms", "session_window_ms", "max_searches_after", "min_users", "per_text")
        require_positive("suggest_mining.co_occurrence", self, names)


@dataclass(frozen=True)
class RewardConfig:
    """Base weights lambda of the six levels of behaviour, and what the reward lambda * exp(p) takes as p."""

    order: float = 2.0
    """An item was ordered behind the suggestion."""
    item_click: float = 1.5
    """An item was clicked behind it."""
    click: float = 1.0
    """The suggestion was taken."""
    show: float = 0.5
    """It was shown, not taken."""
    not_show: float = 0.2
    """It was considered, not shown."""
    rand: float = 0.0
    """Another query, drawn at random."""
    frequency: Literal["prefix", "level"] = "prefix"
    """p is a query's share of what has its level: among the suggestions of the prefix, or among all of the day."""

    def __post_init__(self) -> None:
        require_possible("suggest_mining.rewards", self)


@dataclass(frozen=True)
class PreferenceConfig:
    """Pairs of a query that was taken and one that was not."""

    rejected_per_kind: int = 4
    """Rejected queries of each level (show, not_show, rand) for a query that was taken."""
    min_gap: float = 0.1
    """Pairs whose rewards differ by less are left out: rewards can turn the order of two levels around."""
    max_weight: float = 10.0
    """A pair weighs 1 / (difference of the rewards), and at most this."""
    seed: int = 0
    """Chooses the rejected queries where there are more."""

    def __post_init__(self) -> None:
        require_positive("suggest_mining.preferences", self, ("rejected_per_kind", "min_gap", "max_weight"))


@dataclass(frozen=True)
class SuggestMiningConfig:
    """What is mined from a day of suggestions."""

    co_occurrence: CoOccurrenceConfig = field(default_factory=CoOccurrenceConfig)
    """Prefixes and queries that belong together."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Levels of behaviour."""
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Pairs of a better and a worse suggestion."""
    anonymous_users: tuple[int | str, ...] = ()
    """Ids that stand for many people; their acts are no one person's."""
    max_searches_per_user: int = 1_000
    """A user with more searches on the day is a program, and is left out."""
    max_requests_per_user: int = 10_000
    """A user with more requests for suggestions on the day is a program, and is left out."""
    recent: int = 10
    """Queries that a user searched last before a request, at most."""
    part_rows: int = 4_000_000
    """Rows of a log table for which the results have one part; larger logs give more parts."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The engine that computes it."""

    def __post_init__(self) -> None:
        require_positive(
            "suggest_mining", self, ("max_searches_per_user", "max_requests_per_user", "recent", "part_rows")
        )


@dataclass(frozen=True)
class SuggestTestConfig:
    """What a held-out day asks of suggestions."""

    max_events: int = 10_000
    """Requests kept of those in which a suggestion was taken."""
    max_next: int = 5_000
    """Requests kept of those after which their user searched, whatever was suggested."""
    seed: int = 0
    """Chooses them where there are more."""
    recent: int = 10
    """Queries that the user searched last before the request, at most."""

    def __post_init__(self) -> None:
        require_positive("suggest_test", self, ("max_events", "max_next", "recent"))


@dataclass(frozen=True)
class RWRConfig:
    """Reward-weighted ranking: a policy learns preferences against the frozen model that it started from."""

    rows: Literal["list", "pair"] = "list"
    """list: a winner against all its losers at once; pair: against each of them, averaged."""
    form: Literal["margin", "hinge_plus", "printed"] = "margin"
    """margin: the winner's implicit reward should exceed the loser's by `margin`, softly. hinge_plus: the same, and no
    more once it does. printed: as the formulas are in print; it has no gradient where policy and reference agree."""
    beta: float = 0.5
    """Implicit reward = beta * (log-probability of the policy - that of the reference)."""
    margin: float = 0.5
    """delta, by which a winner should lead."""
    sft_weight: float = 0.4
    """alpha, the weight of the winner's negative log-likelihood."""

    def __post_init__(self) -> None:
        require_positive("suggest.rwr", self, ("beta",))
        require_possible("suggest.rwr", self)


@dataclass(frozen=True)
class RQVAEConfig:
    """Semantic ids by a residual-quantised autoencoder."""

    levels: int = 4
    """Codes of an id."""
    codes: int = 512
    """Codes of each level."""
    width: int = 64
    """Width of what is quantised."""
    hidden: tuple[int, ...] = (256,)
    """Hidden widths of the encoder; the decoder has them in reverse."""
    commitment: float = 0.25
    """Weight of the term that holds the encoder near the codes."""
    steps: int = 2_000
    """Training steps."""
    batch: int = 1_024
    """Vectors of a step."""
    learning_rate: float = 1e-3
    """Of Adam."""
    reseed_every: int = 100
    """Codes that no vector had in so many steps move to where vectors are."""
    seed: int = 0
    """Initial weights, the order of the vectors, where dead codes go."""

    def __post_init__(self) -> None:
        names = ("levels", "codes", "width", "steps", "batch", "learning_rate", "reseed_every")
        require_positive("suggest.ids", self, names)
        require_possible("suggest.ids", self)
        if low := [width for width in self.hidden if width < 1]:
            raise InputError("suggest.ids config", f"hidden: {low[0]} is no width of a layer, 1 or more")
        _require_room(self.codes**self.levels)


@dataclass(frozen=True)
class RQKMeansConfig:
    """Semantic ids by residual k-means, and product quantisation of what is left."""

    codes: tuple[int, ...] = (4_096, 1_024, 512)
    """Codes of each level of k-means."""
    balanced: bool = True
    """No code of the last level has more than its even share of the queries, rounded up."""
    opq_parts: int = 2
    """Further codes of an id: parts of the rotated residual, each with a codebook of its own; 0: none."""
    opq_codes: int = 256
    """Codes of each part."""
    iterations: int = 20
    """Rounds of k-means, balanced k-means and of the rotation, at most."""
    seed: int = 0
    """Where k-means starts."""

    def __post_init__(self) -> None:
        require_positive("suggest.ids", self, ("opq_codes", "iterations"))
        if not self.codes or min(self.codes) < 1 or self.opq_parts < 0:
            problem = (
                f"codes {self.codes}, opq_parts {self.opq_parts}: at least one level of one code or more is needed"
            )
            raise InputError("suggest.ids config", problem)
        _require_room(math.prod(self.codes) * self.opq_codes**self.opq_parts)


def _require_room(ids: int) -> None:
    """Ids are kept as numbers of 63 bits."""
    if ids >= 1 << 62:
        raise InputError("suggest.ids config", f"{ids:.1e} ids are possible, more than 4.6e18: take fewer codes")


QuantiserConfig = RQVAEConfig | RQKMeansConfig


@dataclass(frozen=True)
class AlignmentConfig:
    """Which pairs of texts bring a text encoder's vectors of prefixes and queries together."""

    min_users: int = 1
    """A pair needs so many users; more leave out accidents, and rare queries."""
    min_score: float = 0.0
    """And at least this score, the cosine of its two sets of users."""
    per_prefix: int = 8
    """Pairs of a prefix at most, drawn with its queries' scores as chances; 0: no prefixes."""
    per_query: int = 8
    """Pairs of a query with another one at most, drawn alike; 0: none."""

    def __post_init__(self) -> None:
        require_positive("suggest.pairs", self, ("min_users",))
        require_possible("suggest.pairs", self, shares=("min_score",))
        if not self.per_prefix + self.per_query:
            told = "per_prefix, per_query: both are 0, so that there is no pair at all"
            raise InputError("suggest.pairs config", told)


@dataclass(frozen=True)
class RelatedConfig:
    """Which queries are looked up for a prefix."""

    count: int = 3
    """Related queries of a prefix."""
    weight: float = 0.5
    """How far a prefix's vector moves to the mean of the queries that co-occur with it, within 0..1."""

    def __post_init__(self) -> None:
        require_positive("suggest.related", self, ("count",))
        if not 0 <= self.weight <= 1:
            raise InputError("suggest.related config", f"weight: {self.weight} is not within 0..1")


@dataclass(frozen=True)
class CascadeConfig:
    """Suggestions in stages: candidates are recalled in three ways, and a small model ranks them."""

    popular: int = 50
    """Candidates of a prefix: its most popular completions."""
    own: int = 20
    """Those of the user's own searches that begin with the prefix, the latest and most frequent ones."""
    near: int = 50
    """Queries whose vectors are nearest to that of the prefix."""
    near_among: Literal["begin", "all"] = "begin"
    """The nearest are those among the queries that begin with the prefix, or among all of the dictionary."""
    history: int = 100
    """Searches before a request that the ranker learns a user's habits from, at most."""
    max_requests: int = 20_000
    """Requests of the train day that the ranker learns from, at most."""
    negatives: int = 30
    """Candidates of a request that were not taken and that the ranker learns from, at most."""
    kept_apart: float = 0.25
    """Share of the users whose requests the ranker learns from. Popularity and co-occurrence that it learns with are
    those of all others: else what a user takes would be counted before it is taken."""
    trees: int = 100
    """Trees of the ranker."""
    leaves: int = 15
    """Leaves of a tree."""
    learning_rate: float = 0.1
    """Of the ranker."""
    seed: int = 0
    """Chooses users, requests and candidates to learn from."""

    def __post_init__(self) -> None:
        names = ("popular", "history", "max_requests", "negatives", "trees", "leaves", "learning_rate")
        require_positive("CascadeConfig", self, names)
        wrong = [f"{n}: {getattr(self, n)} is below zero" for n in ("own", "near") if getattr(self, n) < 0]
        if not 0 < self.kept_apart < 1:
            wrong.append(f"kept_apart: {self.kept_apart} is not between 0 and 1")
        if wrong:
            raise InputError("CascadeConfig", wrong)


@dataclass(frozen=True)
class BeamConfig:
    """How suggestions are written: beam search."""

    beams: int = 32
    """Texts that are kept while they grow."""
    suggestions: int = 16
    """The best of the finished ones, which are given back; at most `beams`."""
    max_tokens: int = 24
    """Tokens of a text at most, the last one that ends it included."""
    length_penalty: float = 1.0
    """A text's score is the log-probability of its tokens / their number ** this."""
    unfinished: bool = False
    """Give back texts too that were cut at `max_tokens`."""

    def __post_init__(self) -> None:
        require_positive("suggest.beam", self, ("beams", "suggestions", "max_tokens"))
        if not math.isfinite(self.length_penalty):
            raise InputError("suggest.beam config", f"length_penalty: {self.length_penalty} is no number")
        if self.suggestions > self.beams:
            raise InputError(
                "suggest.beam config", f"suggestions {self.suggestions} of {self.beams} beams: at most as many"
            )
