"""What P3 would ask, before anything is sent: how many questions, requests and tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crops_jax.engines.engine import Engine
from crops_jax.mining.budget import estimated_tokens
from crops_jax.mining.config import WorldKnowledgeConfig
from crops_jax.mining.endpoint import missing_answers
from crops_jax.mining.journal import Journal
from crops_jax.mining.world_knowledge import acceptance, choose_questions

if TYPE_CHECKING:
    from ibis.expr.types import Table


@dataclass(frozen=True)
class Plan:
    """The questions of a run, and what the endpoint would be sent; tokens are estimates of 4 bytes each."""

    queries: int
    without_exemplar: int
    questions: int
    journaled: int
    requests: int
    prompt_tokens: int
    longest_answers: int
    usual_answers: int | None
    """Tokens if answers are as long as those of the journal; none where it has none."""

    def lines(self, config: WorldKnowledgeConfig) -> list[str]:
        """As a person reads it."""
        retries, limit = config.endpoint.retries, config.endpoint.max_tokens
        usual = "" if self.usual_answers is None else f"; {self.usual_answers:,} if they are as long as the journal's"
        budget = {"max_requests": config.max_requests, "max_total_tokens": config.max_total_tokens}
        set_ = ", ".join(f"{name}={value:,}" for name, value in budget.items() if value)
        return [
            f"queries: {self.queries:,} ({self.without_exemplar:,} that are searched as often have no clicked item)",
            f"questions: {self.questions:,}, {config.per_query} a query; {self.journaled:,} are in the journal",
            f"requests: {self.requests:,} if none fails, {self.requests * (1 + retries):,} at most (retries={retries})",
            f"prompt tokens: about {self.prompt_tokens:,}, each prompt sent once",
            f"answer tokens: {self.longest_answers:,} at most (max_tokens={limit}){usual}",
            f"budget: {set_ or 'none (mining.world_knowledge.max_requests, max_total_tokens)'}",
        ]


def plan_knowledge(engine: Engine, funnel: Table, items: Table, config: WorldKnowledgeConfig, journal: Path) -> Plan:
    """The plan of `world_knowledge.write_knowledge` with these arguments. Nothing is sent, and no file is made.

    Raises:
      InputError: the config makes no request, or the journal is damaged.
    """
    questions, without = choose_questions(engine, funnel, items, config)
    prompts, missing, lengths = [question.prompt for question in questions], {}, []
    if journal.exists():
        with Journal(journal) as book:
            known, left, _ = missing_answers(prompts, book, acceptance(questions, config))
        missing = {prompt.key: prompt for prompt in left}
        lengths = [answer.completion_tokens for answer in known.values() if answer.completion_tokens]
    else:
        missing = {prompt.key: prompt for prompt in prompts}
    sizes = [len(json.dumps(prompt.messages, ensure_ascii=False).encode()) for prompt in missing.values()]
    return Plan(
        queries=len({question.query for question in questions}),
        without_exemplar=without,
        questions=len(questions),
        journaled=len({prompt.key for prompt in prompts} - set(missing)),
        requests=len(missing),
        prompt_tokens=sum(map(estimated_tokens, sizes)),
        longest_answers=len(missing) * config.endpoint.max_tokens,
        usual_answers=round(len(missing) * sum(lengths) / len(lengths)) if lengths else None,
    )
