"""What an endpoint sends back: the body of a chat completion. Nothing about its form is taken for granted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_CUT = {"length", "max_tokens", "max_output_tokens", "model_length"}
_FILTERED = {"content_filter", "safety", "prohibited_content", "recitation"}
_TEXT_PARTS = ("text", "output_text")
_SHOWN_CHARS = 300


@dataclass(frozen=True)
class Answer:
    """What an endpoint answered to one prompt."""

    key: str
    model: str
    content: str | None
    refusal: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    max_tokens: int | None = None  # the limit it was asked with; none in journals of 0.2.3, which did not note it


@dataclass(frozen=True)
class Failure:
    """A question without a complete answer: the reason in a word, and what came instead."""

    reason: str
    detail: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


def read_reply(body: bytes, key: str, model: str, max_tokens: int) -> Answer | Failure:
    """The answer in the body of a reply with status 200, or why it holds none.

    Reasons: not_a_completion (a web page, half a body, other JSON), error_body (an error under status 200), no_answer
    (no choice, or no text in it), only_reasoning (text in the reasoning field alone), cut_short (the limit of tokens
    was reached), refused (by a content filter).
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        reply = None
    shown = shortened(body[:2000].decode(errors="replace")) or "an empty body"
    if not isinstance(reply, dict):
        return Failure("not_a_completion", shown)
    spent = _tokens(reply.get("usage"))
    choice = _dict(reply["choices"][0] if isinstance(reply.get("choices"), list) and reply["choices"] else None)
    if error := reply.get("error") or choice.get("error"):
        return Failure("error_body", shortened(_text(_dict(error).get("message")) or "") or shown, *spent)
    if "choices" not in reply:
        return Failure("not_a_completion", shown, *spent)
    message = _dict(choice.get("message"))
    answer = Answer(
        key=key,
        model=model,
        content=text_of(message.get("content")),
        refusal=_text(message.get("refusal")) or _refusal_part(message.get("content")),
        finish_reason=_text(choice.get("finish_reason")),
        prompt_tokens=spent[0],
        completion_tokens=spent[1],
        max_tokens=max_tokens,
    )
    reason = incomplete(answer)
    if reason == "no_answer" and any(_text(message.get(name)) for name in ("reasoning_content", "reasoning")):
        reason = "only_reasoning"
    return Failure(reason, shown, *spent) if reason else answer


def incomplete(answer: Answer) -> str | None:
    """Why this is no complete answer: one of `read_reply`'s reasons; None for text and for a refusal in words."""
    finish = (answer.finish_reason or "").lower()
    if finish in _CUT:
        return "cut_short"
    if finish == "error":
        return "error_body"
    if answer.refusal and answer.refusal.strip():
        return None
    if finish in _FILTERED:
        return "refused"
    return None if answer.content and answer.content.strip("\ufeff \t\r\n") else "no_answer"


def text_of(content: Any) -> str | None:
    """A message's content as text: a string as it is, a list of parts by its text parts; None for anything else."""
    if not isinstance(content, list):
        return _text(content)
    parts = [_dict(part).get("text") for part in content if _dict(part).get("type", "text") in _TEXT_PARTS]
    return "".join(text for text in parts if isinstance(text, str)) or None


def token_count(value: Any) -> int:
    """A count of tokens as a server gave it; 0 for what is no count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def shortened(text: str) -> str:
    """`text` on one line that fits into a message and leaves the terminal alone."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return line if len(line) <= _SHOWN_CHARS else line[:_SHOWN_CHARS] + " ..."


def _refusal_part(content: Any) -> str | None:
    parts = content if isinstance(content, list) else []
    return next((text for part in parts if (text := _text(_dict(part).get("refusal")))), None)


def spent_tokens(body: bytes) -> tuple[int, int]:
    """(prompt, completion) tokens that the body of a reply tells; zeros where it tells none."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return 0, 0
    return _tokens(_dict(reply).get("usage"))


def _tokens(usage: Any) -> tuple[int, int]:
    return token_count(_dict(usage).get("prompt_tokens")), token_count(_dict(usage).get("completion_tokens"))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
