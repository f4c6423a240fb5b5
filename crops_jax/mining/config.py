"""What the data engine mines, and how it asks a language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crops_jax.artifacts.folders import nearest
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError, require_positive, require_possible

LengthField = Literal["max_tokens", "max_completion_tokens"]

ResponseFormat = Literal["json_schema", "json_object", "none"]

_JOURNAL = "knowledge.journal.jsonl"


@dataclass(frozen=True)
class ThresholdConfig:
    """alpha of Eqs. 1 and 2, and what is known about it."""

    alpha: float = 0.6
    """A document is kept when theta(query, document) > alpha, strictly (paper: 0.6, for its own discriminator)."""
    precision: float | None = None
    """Precision on judged pairs that `calibrate` gave for this alpha and this discriminator; none: not measured."""
    recall: float | None = None
    """Recall on the same pairs."""

    def __post_init__(self) -> None:
        problems = [] if -1 <= self.alpha <= 1 else [f"alpha: {self.alpha} is no threshold of cosines, from -1 to 1"]
        problems += [f"{name}: {value} is no share from 0 to 1" for name, value in
                     {"precision": self.precision, "recall": self.recall}.items()
                     if value is not None and not 0 <= value <= 1]  # fmt: skip
        if problems:
            raise InputError("mining.threshold config", problems)


@dataclass(frozen=True)
class FunnelConfig:
    """What search itself put out and nobody clicked: X3, U2 and F1."""

    alpha: float | None = None
    """Keep these documents only where theta is above this, strictly, as P1 and P2 are kept. None keeps all of them (the
    paper). H-InfoNCE as printed pulls each of them towards its query: docs/ladder.md says what purer ones bring. Every
    such pair of query and document costs a score of theta, and every document a pass of it."""

    def __post_init__(self) -> None:
        if self.alpha is not None and not -1 <= self.alpha <= 1:
            said = f"alpha: {self.alpha} is no threshold of cosines, from -1 to 1"
            raise InputError("mining.funnel config", said)


@dataclass(frozen=True)
class QueryLevelConfig:
    """What counts as a reformulation, and as consuming a video after it."""

    window_ms: int = 90_000
    """Longest time from a query to its reformulation, inclusive (paper: 90 s)."""
    min_query_similarity: float = 0.5
    """Least similarity of the two queries, inclusive (the paper does not say; a cosine of query embeddings)."""
    min_watch_ms: int = 10_000
    """Watching a result this long counts as an interaction even without a click or a like."""
    max_searches_after: int = 100
    """So many of the user's next searches are looked at; a person does not get there, a program is held to it."""

    def __post_init__(self):
        require_positive("mining.query_level", self, ("window_ms", "max_searches_after"))
        require_possible("mining.query_level", self)


@dataclass(frozen=True)
class SystemLevelConfig:
    """Which feed interactions are looked at for a query."""

    window_ms: int = 86_400_000
    """Longest time between the query and the feed interaction, before or after (the paper does not say; a day)."""
    max_items_per_user: int = 100
    """Feed items looked at for one user and query (paper: 100; 0: none)."""
    min_watch_ms: int = 10_000
    """Watching a feed item this long counts as an interaction even without a click or a like."""

    def __post_init__(self) -> None:
        require_possible("mining.system_level", self)


@dataclass(frozen=True)
class EndpointConfig:
    """Where the language model answers, and how patiently it is asked."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Any OpenAI-compatible endpoint: vLLM, SGLang, TGI, Ollama, a hosted one."""
    model: str = "Qwen/Qwen2.5-14B-Instruct"
    """The model's name at the endpoint (paper: Qwen2.5-14B)."""
    api_key_env: str = ""
    """Environment variable that holds the key; empty: the endpoint asks for none."""
    concurrency: int = 8
    """Requests under way at a time."""
    timeout_s: float = 60.0
    """Seconds until a request counts as failed."""
    retries: int = 4
    """Times a failed request is sent again, with growing pauses, before it is counted as an endpoint error."""
    temperature: float = 0.8
    """Sampling temperature."""
    max_tokens: int = 400
    """Longest answer, in tokens; a model that reasons first needs room for that too."""
    length_field: LengthField = "max_tokens"
    """The request field that carries `max_tokens`: some servers know only the other name."""
    response_format: ResponseFormat = "json_schema"
    """How JSON is asked for besides the prompt. Where the endpoint refuses that, it is asked without, and that is
    told."""
    extra_body: str = ""
    """Further request fields, as a JSON object: '{"chat_template_kwargs": {"enable_thinking": false}}'. A config file
    may give a dict."""
    give_up_after: int = 20
    """So many questions in a row without a complete answer end the run with an error; what was answered stays in the
    journal."""

    def __post_init__(self) -> None:
        if isinstance(self.extra_body, Mapping):  # text, so that every config is one flat line of flags
            object.__setattr__(self, "extra_body", json.dumps(self.extra_body))


@dataclass(frozen=True)
class WorldKnowledgeConfig:
    """For which queries documents are written, how many, and which answers are refused."""

    enabled: bool = True
    """Ask the endpoint at all; without it there are no P3 documents."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """The language model."""
    max_queries: int = 10_000
    """Queries that get documents: those searched most often, ties in a seeded order."""
    per_query: int = 1
    """Documents written for each query, each from the next of its exemplars."""
    max_field_chars: int = 2_000
    """An answer with a longer field is refused."""
    max_exemplar_chars: int = 600
    """Each field of the exemplar is cut to this length in the prompt."""
    max_similarity: float = 0.8
    """A document more similar to its exemplar, or to another one of its query, is dropped: the share of sequences of
    four characters, of title and caption, that two texts have in common (Jaccard)."""
    prompt: str = ""
    """File of the prompt; empty: crops_jax/mining/prompts/one_shot.txt, which shows the form."""
    max_failed_share: float = 0.5
    """Share of questions that may end without a document; above it mining ends with an error and writes nothing."""
    max_requests: int = 0
    """Requests that a run may send, retries included; the other questions are left for the next run of `mine`
    (a pipeline keeps the folder as it is). 0: any number."""
    max_total_tokens: int = 0
    """Tokens of prompts and answers that a run may spend; a request that could go beyond is not sent. 0: any
    number."""
    journal: str = ""
    """File that keeps every good answer paid for; empty: knowledge.journal.jsonl beside the output
    folder, or in a folder above it that has one."""
    seed: int = 0
    """Seed of the choice among equally frequent queries."""

    def journal_in(self, folder: Path) -> Path:
        """The journal of a data set: in this folder, or in the nearest one above it that has one."""
        return Path(self.journal) if self.journal else nearest(folder, _JOURNAL)

    def share_journal(self, folder: Path) -> None:
        """Lets all data sets below a folder keep one journal, so that no answer is paid for twice."""
        if self.enabled and not self.journal:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _JOURNAL).touch()


@dataclass(frozen=True)
class AuditConfig:
    """Who judges the documents of P3, and how many of them."""

    documents: int = 1_000
    """Documents drawn of all that were written (paper: 1,000)."""
    endpoint: EndpointConfig = field(default_factory=lambda: EndpointConfig(temperature=0.0, max_tokens=200))
    """The judge: better another model than the one that wrote."""
    prompt: str = ""
    """File of the judge's prompt; empty: crops_jax/mining/prompts/judge.txt, with the paper's three grades."""
    max_failed_share: float = 0.5
    """Share of documents that may end without a grade; above it the audit ends with an error."""
    max_requests: int = 0
    """Requests that a run may send, retries included. 0: any number."""
    max_total_tokens: int = 0
    """Tokens of prompts and answers that a run may spend. 0: any number."""
    journal: str = ""
    """File that keeps every grade paid for; empty: audit.journal.jsonl beside the output folder."""
    seed: int = 0
    """Seed of the sample."""


@dataclass(frozen=True)
class MiningConfig:
    """The data engine's settings, one group a source."""

    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    """theta's threshold alpha, for P1 and P2 alike."""
    funnel: FunnelConfig = field(default_factory=FunnelConfig)
    """X3, U2 and F1: what nobody clicked."""
    query_level: QueryLevelConfig = field(default_factory=QueryLevelConfig)
    """P1: reformulations."""
    system_level: SystemLevelConfig = field(default_factory=SystemLevelConfig)
    """P2: the recommendation feed."""
    world_knowledge: WorldKnowledgeConfig = field(default_factory=WorldKnowledgeConfig)
    """P3: a language model."""
    anonymous_users: tuple[int | str, ...] = ()
    """User ids that stand for anybody, as the platform writes them (0, "guest"): P1, P2 and QR leave them out."""
    max_searches_per_user: int = 1_000
    """P1, P2 and QR leave out users with more searches on a day: a program, or many people behind one id."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DuckDB, or Spark."""
    part_rows: int = 1 << 23
    """Aim of the number of rows a part: candidates, pairs and scores are folders of 1, 16, 256, ... parts."""

    def __post_init__(self):
        require_positive("mining", self, ("max_searches_per_user", "part_rows"))


@dataclass(frozen=True)
class SimulatedLLMConfig:
    """How often the simulated model errs."""

    irrelevant_rate: float = 0.04
    """Share of answers about another query (the paper's human check found 4.2 % irrelevant)."""
    malformed_rate: float = 0.02
    """Share of answers that break the format: no JSON, a missing field, a wrong type, a wrong delimiter."""
    seed: int = 0
    """Seed of what is answered to which prompt."""

    def __post_init__(self) -> None:
        require_possible("simulated_llm", self, ("irrelevant_rate", "malformed_rate"))


@dataclass(frozen=True)
class HeldOutConfig:
    """How many events of the test day are kept, and what counts as relevant in the never-exposed set."""

    max_events: int = 10_000
    """Events kept of CT and of QR each (paper: 10,000)."""
    seed: int = 0
    """Seed of the sample."""
    min_grade: float = 2.0
    """Items graded at least this for a test query, and never exposed for it on either day, make the third set."""
    require_qr: bool = True
    """Whether a day in which QR has no event is an error; False, where users do not reword their queries: a warning."""

    def __post_init__(self) -> None:
        require_positive("held_out", self, ("max_events",))
        require_possible("held_out", self)
