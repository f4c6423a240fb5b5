"""P3, world-knowledge positives: documents that a language model writes for a query, from one exemplar."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crops_jax.engines.engine import Engine, draw
from crops_jax.errors import InputError
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.mining.budget import Ledger
from crops_jax.mining.config import WorldKnowledgeConfig
from crops_jax.mining.day import ranked_first
from crops_jax.mining.endpoint import ask_all, asked
from crops_jax.mining.failed_questions import report_failures
from crops_jax.mining.journal import Journal
from crops_jax.mining.knowledge import KNOWLEDGE_SCHEMA, Asked, Knowledge, Question
from crops_jax.mining.near_duplicates import shingles, similarity
from crops_jax.mining.prompt import Exemplar, Written, messages, one_shot, read_answer
from crops_jax.mining.replies import Answer, Failure, shortened
from crops_jax.mining.request import asking_problems

if TYPE_CHECKING:
    from ibis.expr.types import Table


def write_knowledge(
    engine: Engine, funnel: Table, items: Table, config: WorldKnowledgeConfig, journal: Path
) -> Knowledge:
    """Chooses queries, asks, and reads the answers.

    Args:
      funnel: (query, request_id, item_id, source) of `funnel.funnel_rows`; its P0 rows are the exemplars.
      items: the items table.
      journal: file of the answers paid for.

    Raises:
      InputError: the endpoint cannot be used (see `endpoint.ask_all`), more than `max_failed_share` of the questions
        gave no document, or the journal is damaged.
    """
    if not config.enabled:
        return _collect([], {}, config)
    questions, without = choose_questions(engine, funnel, items, config)
    ledger = Ledger(config.max_requests, config.max_total_tokens, config.endpoint.max_tokens)
    with Journal(journal) as book:
        outcomes = ask_all([q.prompt for q in questions], config.endpoint, book, acceptance(questions, config), ledger)
    knowledge = _collect(questions, outcomes, config)
    report_failures(knowledge, config, journal)
    if without:
        knowledge.rejects["query_without_exemplar"] = without
    return knowledge


def choose_questions(
    engine: Engine, funnel: Table, items: Table, config: WorldKnowledgeConfig
) -> tuple[list[Question], int]:
    """All questions, those of the most searched queries first; and how many such queries have no exemplar.

    Raises:
      InputError: see `check_config`.
    """
    check_config(config)
    chosen, without = choose_queries(engine, funnel, config)
    return _questions(chosen, exemplars(funnel, items, chosen, config.per_query), config), without


def acceptance(questions: Iterable[Question], config: WorldKnowledgeConfig) -> Callable[[Asked, Answer], bool]:
    """Whether an answer is kept: one that is a document, or that declines."""
    by_key = {question.prompt.key: question for question in questions}

    def accepts(prompt: Asked, answer: Answer) -> bool:
        written = _written(answer, by_key[prompt.key], config)
        # A refusal in words is final: a later run would only pay for it again.
        return isinstance(written, Written) or written == "refused"

    return accepts


def check_config(config: WorldKnowledgeConfig) -> None:
    """Raises InputError, with all that is wrong, for a config with which nothing can be asked."""
    problems = []
    if not 0 < config.max_similarity <= 1:
        problems.append(f"max_similarity: {config.max_similarity} is no share above 0, at most 1")
    for name in ("max_queries", "per_query"):
        if getattr(config, name) < 1:
            problems.append(f"{name}: {getattr(config, name)} is below 1; enabled=False asks nothing")
    problems += asking_problems(config, one_shot)
    if problems:
        raise InputError("mining.world_knowledge", problems)


def choose_queries(engine: Engine, funnel: Table, config: WorldKnowledgeConfig) -> tuple[list[str], int]:
    """The `max_queries` most searched queries that have an exemplar, and how many of the most searched had none."""
    import ibis

    traffic = funnel.group_by("query").aggregate(
        searches=funnel.request_id.nunique(), clicked=(funnel.source == "P0").any()
    )
    traffic = engine.materialise("p3_traffic", traffic.mutate(draw=draw(traffic.query, config.seed)))
    order = [ibis.desc("searches"), "draw", "query"]
    chosen = traffic.filter(traffic.clicked).order_by(order).limit(config.max_queries).to_pyarrow().to_pylist()
    without = traffic.filter(~traffic.clicked)
    if len(chosen) == config.max_queries:  # those that stand before the last chosen one
        last = chosen[-1]
        drawn_before = (without.draw < last["draw"]) | (
            (without.draw == last["draw"]) & (without["query"] < last["query"])
        )
        as_often = (without.searches == last["searches"]) & drawn_before
        without = without.filter((without.searches > last["searches"]) | as_often)
    return [row["query"] for row in chosen], engine.count(without)


def exemplars(funnel: Table, items: Table, queries: Sequence[str], per_query: int) -> dict[str, list[Exemplar]]:
    """Up to `per_query` exemplars a query: the items clicked most often for it (ties: the smaller id)."""
    import ibis

    wanted = ibis.memtable(pa.table({"query": pa.array(queries, pa.string())}))
    clicks = funnel.filter(funnel.source == "P0").semi_join(wanted, "query")
    clicks = clicks.group_by(["query", "item_id"]).aggregate(clicks=clicks.count())
    best = ranked_first(clicks, [clicks.clicks.desc(), clicks.item_id], ["query"], keep=per_query)
    best = best.join(items, "item_id").order_by(best.query, best.clicks.desc(), best.item_id)
    found: dict[str, list[Exemplar]] = {}
    for row in best.select("query", "item_id", *TEXT_FIELDS).to_pyarrow().to_pylist():
        texts = {name: row[name] or "" for name in TEXT_FIELDS}
        found.setdefault(row["query"], []).append(Exemplar(row["item_id"], **texts))
    return found


def knowledge_id(written: Written) -> int:
    """The negative int64 id of a written document: a hash of its text, so that equal texts are one document."""
    digest = hashlib.sha256(json.dumps(vars(written), sort_keys=True).encode()).digest()
    return -1 - int.from_bytes(digest[:8], "little") % (2**63 - 1)


def _questions(
    queries: Iterable[str], found: dict[str, list[Exemplar]], config: WorldKnowledgeConfig
) -> list[Question]:
    questions, prompt = [], one_shot(config.prompt)
    for query in queries:
        examples = found[query]
        for number in range(config.per_query):
            exemplar = examples[number % len(examples)]
            chat = messages(query, exemplar, number + 1, config.per_query, config.max_exemplar_chars, prompt)
            questions.append(Question(query, exemplar, asked(chat, config.endpoint)))
    return questions


def _collect(
    questions: Sequence[Question], outcomes: Mapping[str, Answer | Failure], config: WorldKnowledgeConfig
) -> Knowledge:
    rejects: Counter[str] = Counter()
    examples: dict[str, str] = {}
    rows: dict[tuple[str, int], tuple[dict[str, Any], str]] = {}
    taken: dict[str, list[frozenset[str]]] = {}  # by query
    tokens: Counter[str] = Counter(prompt=0, completion=0)
    for question in questions:
        outcome = outcomes[question.prompt.key]
        tokens.update(prompt=outcome.prompt_tokens, completion=outcome.completion_tokens)
        written = _written(outcome, question, config)
        if isinstance(written, str):
            rejects[written] += 1
            examples.setdefault(written, _beginning(outcome))
            continue
        key = (question.query, knowledge_id(written))
        if key in rows:
            rejects["same_document_twice"] += 1
            continue
        text = shingles(written.ocr_cover, written.photo_caption)
        of_query = taken.setdefault(question.query, [])
        if any(similarity(text, other) > config.max_similarity for other in of_query):
            rejects["near_duplicate"] += 1
            continue
        of_query.append(text)
        texts = {"query": question.query, "item_id": key[1], **vars(written), **dict.fromkeys(COUNTERS, 0)}
        rows[key] = (texts, outcome.key)
    ordered = [rows[key] for key in sorted(rows)]
    table = pa.Table.from_pylist([texts for texts, _ in ordered], schema=KNOWLEDGE_SCHEMA)
    evidence = [key for _, key in ordered]
    return Knowledge(table, evidence, dict(sorted(rejects.items())), examples, len(questions), dict(tokens))


def _written(outcome: Answer | Failure, question: Question, config: WorldKnowledgeConfig) -> Written | str:
    if isinstance(outcome, Failure):
        return outcome.reason
    if outcome.refusal and outcome.refusal.strip():
        return "refused"
    return read_answer(
        outcome.content or "", question.query, question.exemplar, config.max_field_chars, config.max_similarity,
        one_shot(config.prompt),
    )  # fmt: skip


def _beginning(outcome: Answer | Failure) -> str:
    if isinstance(outcome, Failure):
        return outcome.detail
    return shortened(outcome.refusal or outcome.content or "")
