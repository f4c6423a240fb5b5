"""The types of P3: questions to the language model, the documents it wrote, and what became of the rest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from crops_jax.logs.schema import arrow_schema
from crops_jax.mining.prompt import RESPONSE_FORMAT, Exemplar

KNOWLEDGE_SCHEMA = pa.schema([pa.field("query", pa.string(), nullable=False), *arrow_schema("items")])


@dataclass(frozen=True)
class Asked:
    """One prompt and the key of its answer."""

    key: str
    older_key: str | None  # where 0.2.3 kept the answer, if elsewhere
    messages: list[dict[str, str]]
    response_format: dict[str, Any] = field(default_factory=lambda: RESPONSE_FORMAT)  # the answer's JSON schema


@dataclass(frozen=True)
class Question:
    """One document to be written: its query, its exemplar and the prompt."""

    query: str
    exemplar: Exemplar
    prompt: Asked


@dataclass(frozen=True)
class Knowledge:
    """The documents written, and what became of the questions."""

    documents: pa.Table  # KNOWLEDGE_SCHEMA, sorted by (query, item_id)
    evidence: list[str]  # the journal key of each document
    rejects: dict[str, int]  # by reason
    examples: dict[str, str]  # for some reasons, the beginning of what came instead of a document
    questions: int
    tokens: dict[str, int]  # prompt and completion tokens of all answers, journaled ones included

    @property
    def rows(self) -> pa.Table:
        """(query, item_id, evidence): what candidates say of the documents."""
        return self.documents.select(["query", "item_id"]).append_column(
            "evidence", pa.array(self.evidence, pa.string())
        )

    @property
    def digest(self) -> str:
        """sha256 of `rows`."""
        return hashlib.sha256(json.dumps(self.rows.to_pydict()).encode()).hexdigest()
