"""Asks an OpenAI-compatible endpoint many prompts: bounded concurrency, retries, a journal that never pays twice."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crops_jax.errors import InputError
from crops_jax.mining.journal import Answer, Journal, answer_key
from crops_jax.mining.prompt import RESPONSE_FORMAT
from crops_jax.progress import progress

if TYPE_CHECKING:
    import openai


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
    """Longest answer, in tokens."""
    give_up_after: int = 20
    """So many endpoint errors in a row end the run with an error; what was answered stays in the journal."""


@dataclass(frozen=True)
class Asked:
    """One prompt and the key of its answer."""

    key: str
    messages: list[dict[str, str]]


def asked(messages: list[dict[str, str]], config: EndpointConfig) -> Asked:
    """A prompt with its journal key."""
    return Asked(answer_key(config.model, messages, config.temperature), messages)


def ask_all(prompts: Sequence[Asked], config: EndpointConfig, journal: Journal) -> dict[str, Answer]:
    """Answers by key: those in the journal, and new ones for the rest. Keys without an answer failed at the endpoint.

    Raises:
      InputError: the endpoint refuses the key, does not know the model or the path, or failed `give_up_after` times
        in a row.
    """
    missing = list({p.key: p for p in prompts if p.key not in journal.answers}.values())
    if missing:
        client = _client(config)
        asker = _Asker(client, config, journal)
        pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="ask")
        try:
            for _ in progress(pool.map(asker.ask, missing), f"asking {config.model}", len(missing), "doc"):
                pass
        finally:
            # After an error or Ctrl-C no new request leaves; those under way are still journaled.
            pool.shutdown(cancel_futures=True)
            client.close()
    return {p.key: journal.answers[p.key] for p in prompts if p.key in journal.answers}


def _client(config: EndpointConfig) -> openai.OpenAI:
    import openai

    key = "none"
    if config.api_key_env:
        key = os.environ.get(config.api_key_env, "")
        if not key:
            raise InputError(config.base_url, f"the environment variable {config.api_key_env} holds no key; set it")
    return openai.OpenAI(base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=config.retries)


class _Asker:
    """Asks one prompt at a time, from any thread, and counts failures in a row over all threads."""

    def __init__(self, client: openai.OpenAI, config: EndpointConfig, journal: Journal):
        self._client, self._config, self._journal = client, config, journal
        self._failed_in_a_row, self._lock = 0, threading.Lock()

    def ask(self, prompt: Asked) -> None:
        """Asks and journals; a failure after all retries is counted and leaves no entry."""
        import openai

        try:
            answer = self._request(prompt)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise InputError(self._config.base_url, f"refuses model {self._config.model!r}: {error}") from error
        except openai.APIError as error:
            self._failed(error)
            return
        self._journal.add(answer)
        with self._lock:
            self._failed_in_a_row = 0

    def _request(self, prompt: Asked) -> Answer:
        config = self._config
        reply = self._client.chat.completions.create(
            model=config.model,
            messages=prompt.messages,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            response_format=RESPONSE_FORMAT,
        )
        choice, usage = (reply.choices or [None])[0], reply.usage
        return Answer(
            key=prompt.key,
            model=config.model,
            content=choice.message.content if choice else None,
            refusal=choice.message.refusal if choice else None,
            finish_reason=choice.finish_reason if choice else None,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._failed_in_a_row += 1
            many = self._failed_in_a_row >= self._config.give_up_after
        if many:
            raise InputError(
                self._config.base_url,
                f"{self._config.give_up_after} requests in a row failed, the last by {type(error).__name__}: {error}; "
                f"{len(self._journal.answers)} answers are kept in {self._journal.path}: the same command continues",
            ) from error
