"""Asks an OpenAI-compatible endpoint many prompts: bounded concurrency, retries, a journal that never pays twice."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from crops_jax.errors import InputError
from crops_jax.mining.budget import Ledger
from crops_jax.mining.config import EndpointConfig, ResponseFormat
from crops_jax.mining.failed_questions import mend
from crops_jax.mining.journal import Journal, answer_key
from crops_jax.mining.knowledge import Asked
from crops_jax.mining.prompt import RESPONSE_FORMAT
from crops_jax.mining.replies import Answer, Failure, incomplete, read_reply, shortened
from crops_jax.mining.request import body_fields, check_endpoint, extra_fields
from crops_jax.progress import progress

if TYPE_CHECKING:
    import openai

# What every request of 0.2.3 asked with, but for its limit. These are left out of the key: its journals stay in use.
_ASKED_BEFORE = {"max_tokens": 400, "length_field": "max_tokens", "response_format": "json_schema", "extra_body": {}}
_ABOUT_THE_FORMAT = re.compile(
    r"response.?format|json.?(?:schema|object|mode)|structured.?output|guided|grammar", re.IGNORECASE
)


_NOT_ASKED = Failure("budget_spent", "the budget of requests or tokens ended before it")


def asked(
    messages: list[dict[str, str]], config: EndpointConfig, response_format: dict[str, Any] = RESPONSE_FORMAT
) -> Asked:
    """A prompt with its journal key; `response_format` is the schema of its answer, by default a document's.

    Raises:
      InputError: `extra_body` is of no use (see `request.extra_fields`).
    """
    parts = {name: getattr(config, name) for name in _ASKED_BEFORE} | {"extra_body": extra_fields(config)}
    others = {name: value for name, value in parts.items() if value != _ASKED_BEFORE[name]}
    key = answer_key(config.model, messages, config.temperature, others)
    # The keys of 0.2.3 leave the limit out, and what it kept that is complete fits under any limit.
    older = answer_key(config.model, messages, config.temperature) if list(others) == ["max_tokens"] else None
    return Asked(key, older, messages, response_format)


def missing_answers(
    prompts: Sequence[Asked], journal: Journal, accepts: Callable[[Asked, Answer], bool]
) -> tuple[dict[str, Answer], list[Asked], int]:
    """(usable answers of the journal by key, the prompts to be asked, how many of these have one of no use)."""
    known: dict[str, Answer] = {}
    missing: dict[str, Asked] = {}
    unusable = 0
    for prompt in prompts:
        answer = journal.find(prompt.key, prompt.older_key)
        if answer and not incomplete(answer) and accepts(prompt, answer):
            known[prompt.key] = answer
        else:
            unusable += answer is not None and prompt.key not in missing
            missing[prompt.key] = prompt
    return known, list(missing.values()), unusable


def ask_all(
    prompts: Sequence[Asked],
    config: EndpointConfig,
    journal: Journal,
    accepts: Callable[[Asked, Answer], bool],
    ledger: Ledger | None = None,
) -> dict[str, Answer | Failure]:
    """What became of every prompt, by key: the answer of the journal, a new one, or a failure.

    Args:
      accepts: whether a complete answer can be used. Only such answers are journaled, and only such are taken from the
        journal: the other questions are asked again whenever a day is mined.
      ledger: where every request is counted, and whose budget ends the asking; what it spent is kept beside the
        journal. Without one there is no budget.

    Raises:
      InputError: the config makes no request, or the endpoint refuses the key, does not know the model or the path,
        redirects to another host, or left `give_up_after` questions in a row without a complete answer.
    """
    check_endpoint(config)
    known, missing, unusable = missing_answers(prompts, journal, accepts)
    outcomes: dict[str, Answer | Failure] = {**known}
    if unusable:
        print(f"   {unusable} journaled answers are of no use and are asked for again", file=sys.stderr)
    if missing:
        ledger = ledger or Ledger(0, 0, config.max_tokens)
        ledger.keep_beside(journal.path)
        asker = _Asker(_client(config, ledger), config, journal, accepts, ledger)
        try:
            with _sigterm_as_exit():
                outcomes |= zip((prompt.key for prompt in missing), asker.ask_many(missing), strict=True)
        finally:
            ledger.keep()
            print(f"   {config.model}: {ledger.line()}", file=sys.stderr)
    return {prompt.key: outcomes[prompt.key] for prompt in prompts}


def _client(config: EndpointConfig, ledger: Ledger) -> openai.OpenAI:
    from crops_jax.mining.http_client import open_client

    key = "none"
    if config.api_key_env:
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            raise InputError(config.base_url, f"the environment variable {config.api_key_env} holds no key; set it")
        if not (key.isascii() and key.isprintable()):
            raise InputError(config.base_url, f"{config.api_key_env} holds characters that no key has; set it again")
    return open_client(config.base_url, key, config.timeout_s, config.retries, ledger)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """While questions are asked SIGTERM is an exit as Ctrl-C is: what was sent is kept. Elsewhere it ends at once."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # somebody else has a use for it
        yield
        return

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Asker:
    """Asks from several threads, and counts questions in a row without a complete answer over all of them."""

    def __init__(
        self, client: openai.OpenAI, config: EndpointConfig, journal: Journal,
        accepts: Callable[[Asked, Answer], bool], ledger: Ledger,
    ):  # fmt: skip
        self._client, self._config, self._journal, self._accepts = client, config, journal, accepts
        self._ledger = ledger
        self._format: ResponseFormat = config.response_format
        self._failed_in_a_row, self._lock = 0, threading.Lock()

    def ask_many(self, prompts: Sequence[Asked]) -> list[Answer | Failure]:
        """What became of each prompt, in their order. Closes the client."""
        pool = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="ask")
        try:
            answers = pool.map(self._ask_or_end, prompts)
            return list(progress(answers, f"asking {self._config.model}", len(prompts), "doc"))
        except BaseException:  # an error, Ctrl-C, SIGTERM
            self._ledger.end()
            with suppress(OSError):
                self._ledger.keep()  # who stops it may not wait for what is under way
            if (left := self._ledger.under_way) > 0:
                told = f"requests under way: {left}, for some {2 * self._config.timeout_s:g} s at most"
                print(f"   {told}; what they answer is kept", file=sys.stderr)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self._client.close()

    def _ask_or_end(self, prompt: Asked) -> Answer | Failure:
        try:
            return self.ask(prompt)
        except InputError:
            self._ledger.end()  # at once: a busy main thread may see the error many paid requests later
            raise

    def ask(self, prompt: Asked) -> Answer | Failure:
        """Asks, and journals what can be used; a failure after all retries leaves no entry."""
        import openai

        from crops_jax.mining.http_client import BudgetSpent

        if self._ledger.spent:
            return _NOT_ASKED
        try:
            outcome = read_reply(self._request(prompt), prompt.key, self._config.model, self._config.max_tokens)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            told = f"refuses model {self._config.model!r}: {shortened(str(error))}"
            raise InputError(self._config.base_url, told) from error
        except BudgetSpent:
            return _NOT_ASKED
        except openai.OpenAIError as error:
            if isinstance(error.__cause__, InputError):  # openai 2 takes a refused redirect for a lost connection
                raise error.__cause__ from None
            cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) else ""
            outcome = Failure("endpoint_error", shortened(f"{type(error).__name__}: {error}{cause}"))
        if isinstance(outcome, Answer) and self._accepts(prompt, outcome):
            self._journal.add(outcome)
        # A filter that refuses one question says nothing about the next.
        self._count(outcome if isinstance(outcome, Failure) and outcome.reason != "refused" else None)
        return outcome

    def _request(self, prompt: Asked) -> bytes:
        import openai

        kind = self._format
        try:
            return self._send(prompt, kind)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.RateLimitError):
            raise
        except openai.APIStatusError as error:
            if kind == "none" or not _ABOUT_THE_FORMAT.search(f"{error} {error.body}"):
                raise
            body = self._send(prompt, "none")
            self._ask_without_format(kind, error)
            return body

    def _send(self, prompt: Asked, response_format: ResponseFormat) -> bytes:
        reply = self._client.chat.completions.with_raw_response.create(
            model=self._config.model,
            messages=prompt.messages,
            temperature=self._config.temperature,
            extra_body=body_fields(self._config, response_format, prompt.response_format),
        )
        return reply.http_response.content

    def _ask_without_format(self, kind: ResponseFormat, error: openai.APIStatusError) -> None:
        with self._lock:
            first, self._format = self._format == kind, "none"
        if first:
            told = f"{self._config.base_url} refuses response_format={kind} and is asked without: {error}"
            print(f"   {shortened(told)}", file=sys.stderr)

    def _count(self, failure: Failure | None) -> None:
        with self._lock:
            self._failed_in_a_row = self._failed_in_a_row + 1 if failure else 0
            many = self._failed_in_a_row >= self._config.give_up_after
        if failure and many:
            last = failure.detail if failure.reason == "endpoint_error" else f"{failure.reason}: {failure.detail}"
            raise InputError(
                self._config.base_url,
                f"{self._config.give_up_after} requests in a row failed, the last by {last}; {mend(failure.reason)}; "
                f"{len(self._journal.answers)} answers are kept in {self._journal.path}: the same command continues",
            )
