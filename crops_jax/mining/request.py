"""One request to a chat endpoint: which fields its body has, and what is wrong with a config that makes none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, get_args
from urllib.parse import urlsplit

from crops_jax.errors import InputError
from crops_jax.mining.config import (
    AuditConfig,
    EndpointConfig,
    LengthField,
    ResponseFormat,
    WorldKnowledgeConfig,
)
from crops_jax.mining.templates import Prompt

_NEVER = ("messages", "stream", "n")
_SET_BY = {
    "model": "model", "temperature": "temperature", "max_tokens": "max_tokens", "max_completion_tokens": "max_tokens",
    "response_format": "response_format",
}  # fmt: skip


def body_fields(config: EndpointConfig, response_format: ResponseFormat, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request besides model, messages and temperature; `schema` is the answer's, as a field has it."""
    fields: dict[str, Any] = {config.length_field: config.max_tokens}
    match response_format:
        case "json_schema":
            fields["response_format"] = schema
        case "json_object":
            fields["response_format"] = {"type": "json_object"}
    return fields | extra_fields(config)


def extra_fields(config: EndpointConfig) -> dict[str, Any]:
    """The request fields of `extra_body`.

    Raises:
      InputError: it is no JSON object, or sets what has a setting of its own.
    """
    place = "endpoint.extra_body"
    if not config.extra_body.strip():
        return {}
    try:
        fields = json.loads(config.extra_body)
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(place, f"{config.extra_body!r} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(place, f'{config.extra_body!r} is not a JSON object, such as {{"top_p": 0.9}}')
    problems = [f"{name!r} cannot be set" for name in _NEVER if name in fields]
    problems += [f"{name!r} is set by endpoint.{own}" for name, own in _SET_BY.items() if name in fields]
    if problems:
        raise InputError(place, problems)
    return fields


def asking_problems(config: WorldKnowledgeConfig | AuditConfig, read_prompt: Callable[[str], Prompt]) -> list[str]:
    """What is wrong with how a config asks: its limits, its prompt's file, its endpoint."""
    problems = []
    if not 0 <= config.max_failed_share <= 1:
        problems.append(f"max_failed_share: {config.max_failed_share} is no share from 0 to 1")
    for name in ("max_requests", "max_total_tokens"):
        if getattr(config, name) < 0:
            problems.append(f"{name}: {getattr(config, name)} is below 0")
    try:
        read_prompt(config.prompt)
    except InputError as error:
        problems += [f"prompt: {error.place}: {problem}" for problem in error.problems]
    try:
        check_endpoint(config.endpoint)
    except InputError as error:
        problems += [f"endpoint.{problem}" for problem in error.problems]
    return problems


def check_endpoint(config: EndpointConfig) -> None:
    """Raises InputError, with all that is wrong, for a config from which no request can be made."""
    problems = []
    try:
        if "@" in config.base_url:  # before anything that shows it
            said = "holds a name or a password: name the variable of the environment that has the key in api_key_env"
            raise InputError("base_url", said)
        url = urlsplit(config.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.port == 0:
            raise ValueError("it has to look like http://127.0.0.1:8000/v1")
        if url.query or url.fragment or config.base_url.endswith(("?", "#")):
            shown = f"{url.scheme}://{url.netloc}{url.path}"
            problems.append(f"base_url: something follows {shown}; routes are put behind the whole address, so nothing "
                            "may follow its path")  # fmt: skip
    except InputError as error:
        problems.append(str(error))
    except ValueError as error:
        problems.append(f"base_url: {config.base_url!r} is no address of an endpoint: {error}")
    for name in ("concurrency", "timeout_s", "max_tokens", "give_up_after"):
        value = getattr(config, name)
        if not (value > 0 and math.isfinite(value)):
            problems.append(f"{name}: {value} is not above zero")
    for name in ("retries", "temperature"):
        value = getattr(config, name)
        if not (value >= 0 and math.isfinite(value)):
            problems.append(f"{name}: {value} is not zero or more")
    for name, known in (("length_field", get_args(LengthField)), ("response_format", get_args(ResponseFormat))):
        if getattr(config, name) not in known:
            problems.append(f"{name}: {getattr(config, name)!r} is none of {', '.join(known)}")
    try:
        extra_fields(config)
    except InputError as error:
        problems += [f"extra_body: {problem}" for problem in error.problems]
    if problems:
        raise InputError("endpoint", problems)
