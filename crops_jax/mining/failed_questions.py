"""Messages about questions to the language model that gave no document, and the limit at which they end the run."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.compute as pc

from crops_jax.errors import InputError
from crops_jax.mining.config import WorldKnowledgeConfig
from crops_jax.mining.knowledge import Knowledge

# What says nothing about the model: a document that is there already, and a question that a budget left for later.
_NO_FAILURE = ("same_document_twice", "near_duplicate", "budget_spent")
_FEW = 10  # queries that may share a document, and the part of all queries that may
_MENDS = {
    "endpoint_error": "look at the endpoint's own log, timeout_s and retries; what it does not know of a request's "
    "fields is changed by length_field, response_format and extra_body",
    "not_a_completion": "what answers is no chat endpoint: look at base_url and at gateways on the way",
    "error_body": "look at the endpoint's own log",
    "no_answer": "the model said nothing: look at the endpoint's chat template",
    "only_reasoning": "all came as reasoning: switch that off (extra_body), or mend the server's parser of it",
    "cut_short": "raise max_tokens, or switch reasoning off (extra_body)",
    "refused": "the model declines; its words are kept, and asked for again once the journal is removed",
    "not_json": "look at max_tokens and response_format, or take a model that keeps to a format",
}


def mend(reason: str) -> str:
    """What helps against answers refused for this reason."""
    return _MENDS.get(reason, "take a model that keeps to the prompt")


def report_failures(knowledge: Knowledge, config: WorldKnowledgeConfig, journal: Path) -> None:
    """Says on stderr how many questions gave no document, or ends the run where they are too many.

    Args:
      journal: where good answers are kept.

    Raises:
      InputError: the share of questions without a document is above `max_failed_share`.
    """
    failed = {reason: count for reason, count in knowledge.rejects.items() if reason not in _NO_FAILURE}
    if left := knowledge.rejects.get("budget_spent"):
        told = f"   P3: the budget is spent, and {left} of {knowledge.questions} questions were not asked"
        mended = "raise mining.world_knowledge.max_requests or max_total_tokens and run again to go on"
        print(f"{told}; {mended}", file=sys.stderr)
    _tell_repeated(knowledge)
    total = sum(failed.values())
    if not knowledge.questions:
        print("   P3: nothing was asked, as no query has a clicked item to show", file=sys.stderr)
    if not total:
        return
    if total <= config.max_failed_share * knowledge.questions:
        counts = ", ".join(f"{reason} {count}" for reason, count in failed.items())
        print(f"   P3: {total} of {knowledge.questions} questions gave no document ({counts})", file=sys.stderr)
        return
    raise InputError(
        config.endpoint.base_url,
        [
            f"{total} of {knowledge.questions} questions gave no document, which is more than the share of "
            f"{config.max_failed_share:g} that mining.world_knowledge.max_failed_share allows",
            *(_line(reason, count, knowledge.examples[reason]) for reason, count in failed.items()),
            f"{knowledge.documents.num_rows} documents are kept in {journal}: the same command asks for the others",
        ],
    )


def _tell_repeated(knowledge: Knowledge) -> None:
    """Warns of a document that stands for many queries: a cache that keeps one answer gives it to every question."""
    queries = pc.count_distinct(knowledge.documents["query"]).as_py()
    times = pc.max(pc.value_counts(knowledge.documents["item_id"]).field("counts")).as_py() or 0
    if times > max(_FEW, queries // _FEW):
        told = f"warning: P3: one and the same document was written for {times} of {queries} queries"
        print(f"   {told}; look whether the endpoint, or a cache before it, reads the question", file=sys.stderr)


def _line(reason: str, count: int, example: str) -> str:
    shown = f" (for instance: {example})" if example else ""
    return f"{reason}: {count}; {mend(reason)}{shown}"
