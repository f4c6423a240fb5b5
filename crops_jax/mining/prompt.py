"""The one-shot prompt of world-knowledge enrichment, and what is accepted as its answer.

The paper shows its prompt only as a picture (Fig. 5). What its text says about the prompt is kept in
`prompts/one_shot.txt`: a query, a single exemplar video relevant to it, and an answer in JSON with four fields. Search
terms and keywords are lists joined by `|`. A config may name a file of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crops_jax.mining.json_answers import answer_object
from crops_jax.mining.near_duplicates import shingles, similarity
from crops_jax.mining.templates import Prompt, read_prompt
from crops_jax.normal_text import has_text, normal_form, strip_blanks

ANSWER_FIELDS = ("ocr_cover", "photo_caption", "click_query", "keywords")
LIST_FIELDS = ("click_query", "keywords")
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "video",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ANSWER_FIELDS},
            "required": list(ANSWER_FIELDS),
            "additionalProperties": False,
        },
    },
}
_LIST_MARKS = re.compile("[,;、，；\n]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Far above any answer with its reasoning; nobody searches a whole book for an object.
_MAX_CHARS = 1_000_000


@dataclass(frozen=True)
class Exemplar:
    """A video relevant to the query, in the fields of the items table."""

    item_id: int
    ocr_cover: str
    photo_caption: str
    keyword: str
    click_query: str


@dataclass(frozen=True)
class Written:
    """A document a language model wrote, in the fields of the items table."""

    ocr_cover: str
    photo_caption: str
    keyword: str
    click_query: str


def one_shot(path: str = "") -> Prompt:
    """The prompt of a file, or the package's own (`templates.read_prompt`)."""
    return read_prompt(path, "one_shot", ("query", "example", "number", "total"), ("query", "example"))


def messages(
    query: str, exemplar: Exemplar, number: int, total: int, max_exemplar_chars: int, prompt: Prompt | None = None
) -> list[dict[str, str]]:
    """The chat of document `number` (from 1) of `total` for a query. Exemplar fields are cut to the given length."""
    shown = {
        "ocr_cover": exemplar.ocr_cover[:max_exemplar_chars],
        "photo_caption": exemplar.photo_caption[:max_exemplar_chars],
        "click_query": exemplar.click_query[:max_exemplar_chars],
        "keywords": exemplar.keyword[:max_exemplar_chars],
    }
    # Query and example travel as JSON strings, so that no text of a user can pass for an instruction's line.
    return (prompt or one_shot()).messages(
        query=json.dumps(query, ensure_ascii=False),
        example=json.dumps(shown, ensure_ascii=False),
        number=str(number),
        total=str(total),
    )


def read_answer(
    content: str, query: str, exemplar: Exemplar, max_field_chars: int, max_similarity: float = 1.0,
    prompt: Prompt | None = None,
) -> Written | str:  # fmt: skip
    """The document in an answer, or the reason for which it is refused.

    The answer is the JSON object that `json_answers.answer_object` finds. A list may be an array of strings.

    Reasons: not_json, missing_field, wrong_type, broken_text (half a character: a lone surrogate), empty_text (no
    title or no caption), too_long (a field above `max_field_chars`), wrong_delimiter (a list joined by something else
    than |), copy_of_exemplar (the same, or more similar than `max_similarity`), echo (nothing but the query, or the
    prompt's own words).
    """
    if len(content) > _MAX_CHARS:
        return "too_long"
    answer = answer_object(content, ANSWER_FIELDS)
    if answer is None:
        return "not_json"
    answer |= {name: "|".join(answer[name]) for name in LIST_FIELDS if _is_list_of_texts(answer.get(name))}
    if reason := _bad_fields(answer, max_field_chars):
        return reason
    written = Written(
        strip_blanks(answer["ocr_cover"]), strip_blanks(answer["photo_caption"]),
        _joined(answer["keywords"]), _joined(answer["click_query"]),
    )  # fmt: skip
    if _texts(written) == _texts(exemplar) or _similarity(written, exemplar) > max_similarity:
        return "copy_of_exemplar"
    return "echo" if _is_echo(written, query, prompt or one_shot()) else written


def _texts(document: Written | Exemplar) -> tuple[str, str]:
    return normal_form(document.ocr_cover), normal_form(document.photo_caption)


def _similarity(written: Written, exemplar: Exemplar) -> float:
    return similarity(shingles(*_texts(written)), shingles(*_texts(exemplar)))


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _bad_fields(answer: Mapping[str, Any], max_field_chars: int) -> str | None:
    if any(name not in answer for name in ANSWER_FIELDS):
        return "missing_field"
    if any(not isinstance(answer[name], str) for name in ANSWER_FIELDS):
        return "wrong_type"
    if any(_SURROGATE.search(answer[name]) for name in ANSWER_FIELDS):
        return "broken_text"
    if not has_text(answer["ocr_cover"]) or not has_text(answer["photo_caption"]):
        return "empty_text"
    if any(len(answer[name]) > max_field_chars for name in ANSWER_FIELDS):
        return "too_long"
    if any("|" not in answer[name] and _LIST_MARKS.search(answer[name].strip()) for name in LIST_FIELDS):
        return "wrong_delimiter"
    return None


def _is_echo(written: Written, query: str, prompt: Prompt) -> bool:
    own_words = {normal_form(text) for text in (written.ocr_cover, written.photo_caption)}
    if own_words == {normal_form(query)}:
        return True
    told = normal_form(prompt.own_words)
    return any(len(text) > 30 and text in told for text in own_words)


def _joined(terms: str) -> str:
    return "|".join(term for part in terms.split("|") if (term := strip_blanks(strip_blanks(part).rstrip("\\"))))
