"""Finds the JSON object in what a language model says: after its reasoning, in or out of a fence, among other words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Raw line breaks inside strings are no JSON, but models write them, and nothing else can be meant.
_DECODER = json.JSONDecoder(strict=False)
# A text with more brackets that start nothing is given up: each costs a try.
_MAX_TRIES = 10_000
_REASONING = r"[\w:.-]{0,20}(?:think|thought|reason|reflect|analysis|scratchpad|monologue|deliberat)[\w:.-]{0,20}"
_MARK = re.compile(
    rf"""
      <\|channel\|?>\s*(?P<channel>\w*)
    | (?P<end>assistantfinal|<channel\|>|<unused95>|<\|?end_of_thought\|?>|<\|?end_thinking\|?>)
    | (?P<close>\[/think\]|◁/think▷|<\s*/\s*\|?{_REASONING}\|?\s*>|<\|\s*/{_REASONING}\|>)
    | (?P<open>\[think\]|◁think▷|<unused94>|<\|?{_REASONING}\|?(?:\s[^<>]*)?(?<!/)>)
    | (?P<bracket>[{{\[])
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Possessive: a long row of marks can be cut in ever so many ways, and no second one is tried.
_NOTHING_MORE = re.compile(r"(?:\s|`{3,}+|~{3,}+|<[^<>]*>)*+")
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\\n]|\\.)*"?|,(?=\s*[}\]])')
_SEPARATORS = re.compile(r"[\W_]+")


def answer_object(content: str, names: Sequence[str]) -> dict[str, Any] | None:
    """The answer in `content`: the last whole JSON object after the reasoning that has all of `names` as keys.

    Keys are matched without regard to case and separators ("OCR-Cover" is ocr_cover), other keys are left out, an
    object inside another one ({"video": {...}}) counts, and so do objects with a comma before a closing bracket. Where
    no object has all names, the last one is returned with the names it has; None where there is no object.

    Reasoning is what stands in tags such as <think>, in a channel other than the final one, and before a closing tag
    that was never opened; a tag that is never closed hides what follows it. But an object that ends the text is the
    answer where there is no other: some models forget a tag, or write all they say between two.

    >>> answer_object('<think>{"a": 0}?</think> Here it is: ```json {"A": [1,], "b": 2}``` Enjoy!', ["a"])
    {'a': [1]}
    """
    inner = _inside_a_string(content)
    if inner is not None:
        return answer_object(inner, names)
    some = None
    for mended in (str, _without_extra_commas):
        values = _after_reasoning(mended(content))
        objects = [_named(o, names) for value in values for o in (*_objects_inside(value), value)]
        whole = [o for o in objects if len(o) == len(names)]
        if whole:
            return whole[-1]
        if some is None and objects:
            some = objects[-1]
    return some


def _after_reasoning(text: str) -> list[dict[str, Any]]:
    """The objects of `text` that are no part of its reasoning, in order."""
    answers: list[dict[str, Any]] = []
    drafts: list[dict[str, Any]] = []  # objects since the last tag, while one is open
    last: tuple[dict[str, Any], int] | None = None  # the last object of all, and where it ends
    depth, closed = 0, False
    for kind, value, end in _pieces(text):
        if kind == "object":
            (drafts if depth else answers).append(value)
            last = value, end
            continue
        drafts = []
        if kind == "open":
            depth, closed = depth + 1, closed and depth > 0
        elif kind == "close" and depth:
            depth, closed = depth - 1, True
        else:  # all so far was reasoning, whether a tag opened it or not
            depth, answers = 0, []
    if not answers and depth and closed:  # one closing tag for two opening ones
        answers = drafts
    if not answers and last and _NOTHING_MORE.fullmatch(text, last[1]):
        answers = [last[0]]
    return answers


def _pieces(text: str) -> Iterator[tuple[str, Any, int]]:
    """(kind, value, end) of each reasoning tag and each whole object: "open", "close", "end", or "object"."""
    at, tries = 0, 0
    while found := _MARK.search(text, at):
        at = found.end()
        if found["bracket"]:
            try:
                value, at = _DECODER.raw_decode(text, found.start())
            except (ValueError, RecursionError) as error:
                tries += 100 if isinstance(error, RecursionError) else 1  # the deep ones take long
                if tries > _MAX_TRIES:
                    return
                continue
            if isinstance(value, dict):  # a list of objects is no answer
                yield "object", value, at
        elif found["channel"] is not None:
            yield "end", None, at
            if not found["channel"].lower().startswith("final"):
                yield "open", None, at
        else:
            yield found.lastgroup or "", None, at


def _inside_a_string(content: str) -> str | None:
    """The text in a `content` that is one JSON string: an answer that was encoded twice."""
    text = content.strip("\ufeff \t\r\n")
    if not text.startswith('"'):
        return None
    try:
        inner = _DECODER.decode(text)
    except ValueError:
        return None
    return inner if len(inner) < len(text) else None


def _objects_inside(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [inner for inner in value.values() if isinstance(inner, dict)]


def _named(value: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    plain = {_plain(name): name for name in names}
    alike = {plain[_plain(key)]: v for key, v in value.items() if _plain(key) in plain}
    return alike | {name: value[name] for name in names if name in value}


def _plain(key: str) -> str:
    return _SEPARATORS.sub("", key).casefold()


def _without_extra_commas(text: str) -> str:
    return _STRING_OR_COMMA.sub(lambda found: "" if found[0] == "," else found[0], text)
