"""A model as a judge: it grades documents that a language model wrote as people did for the paper's Fig. 6."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops_jax.errors import InputError
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.mining.budget import Ledger
from crops_jax.mining.config import AuditConfig
from crops_jax.mining.endpoint import ask_all, asked
from crops_jax.mining.failed_questions import mend
from crops_jax.mining.journal import Journal
from crops_jax.mining.json_answers import answer_object
from crops_jax.mining.knowledge import Asked
from crops_jax.mining.replies import Answer
from crops_jax.mining.request import asking_problems
from crops_jax.mining.templates import Prompt, read_prompt
from crops_jax.normal_text import normal_form

GRADES = ("very relevant", "relevant", "irrelevant")
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "grade",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"grade": {"type": "string", "enum": list(GRADES)}},
            "required": ["grade"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Judged:
    """The grade of every document, none where the judge gave none; and what became of those."""

    grades: list[str | None]
    rejects: dict[str, int]
    tokens: dict[str, int]  # of all answers, journaled ones included


def judge_prompt(path: str = "") -> Prompt:
    """The judge's prompt: a file's, or the package's own (`templates.read_prompt`)."""
    return read_prompt(path, "judge", ("query", "document"), ("query", "document"))


def judge_messages(query: str, document: Mapping[str, Any], prompt: Prompt) -> list[dict[str, str]]:
    """The chat that asks for the grade of one document; texts travel as JSON, and give no instruction."""
    shown = {("keywords" if name == "keyword" else name): document[name] or "" for name in TEXT_FIELDS}
    return prompt.messages(query=json.dumps(query, ensure_ascii=False), document=json.dumps(shown, ensure_ascii=False))


def read_grade(content: str) -> tuple[str | None, str]:
    """(grade, "") or (None, why there is none: not_json, missing_field, wrong_type or unknown_grade).

    >>> read_grade('<think>Hm.</think> {"grade": "Very_Relevant"}'), read_grade('{"grade": "good"}')
    (('very relevant', ''), (None, 'unknown_grade'))
    """
    answer = answer_object(content, ("grade",))
    if answer is None:
        return None, "not_json"
    if "grade" not in answer:
        return None, "missing_field"
    if not isinstance(answer["grade"], str):
        return None, "wrong_type"
    grade = normal_form(answer["grade"].replace("_", " ").replace("-", " "))
    return (grade, "") if grade in GRADES else (None, "unknown_grade")


def judge(documents: Sequence[Mapping[str, Any]], config: AuditConfig, journal: Path) -> Judged:
    """Asks for the grade of each document (`query` and the text fields of items).

    Raises:
      InputError: the config makes no request, the endpoint cannot be used (`endpoint.ask_all`), or more than
        `max_failed_share` of the documents got no grade.
    """
    check_audit(config)
    prompt = judge_prompt(config.prompt)
    prompts = [asked(judge_messages(d["query"], d, prompt), config.endpoint, SCHEMA) for d in documents]
    ledger = Ledger(config.max_requests, config.max_total_tokens, config.endpoint.max_tokens)
    with Journal(journal) as book:
        outcomes = ask_all(prompts, config.endpoint, book, _is_graded, ledger)
    grades, rejects, mends = [], Counter(), {}
    tokens = Counter(prompt=0, completion=0)
    for one in prompts:
        outcome = outcomes[one.key]
        tokens.update(prompt=outcome.prompt_tokens, completion=outcome.completion_tokens)
        grade, reason = _grade(outcome) if isinstance(outcome, Answer) else (None, outcome.reason)
        grades.append(grade)
        if reason:
            rejects[reason] += 1
            mends.setdefault(reason, mend(reason))
    failed = sum(n for reason, n in rejects.items() if reason != "budget_spent")
    if failed > config.max_failed_share * len(documents):
        lines = [f"{reason}: {n}; {mends[reason]}" for reason, n in sorted(rejects.items())]
        said = f"{failed} of {len(documents)} documents got no grade, which is above audit.max_failed_share"
        raise InputError(config.endpoint.base_url, [f"{said}; the others' are kept in {journal}", *lines])
    return Judged(grades, dict(sorted(rejects.items())), dict(tokens))


def check_audit(config: AuditConfig) -> None:
    """Raises InputError, with all that is wrong, for a config with which no grade can be asked for."""
    problems = []
    if config.documents < 1:
        problems.append(f"documents: {config.documents} is below 1")
    problems += asking_problems(config, judge_prompt)
    if problems:
        raise InputError("audit", problems)


def _is_graded(prompt: Asked, answer: Answer) -> bool:
    return _grade(answer)[0] is not None


def _grade(answer: Answer) -> tuple[str | None, str]:
    if answer.refusal and answer.refusal.strip():
        return None, "refused"
    return read_grade(answer.content or "")
