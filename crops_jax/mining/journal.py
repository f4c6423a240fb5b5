"""The journal of paid answers: JSON lines, appended and flushed to the disk one by one, never rewritten.

Days that are mined at the same time share one: a line is added under a lock, and who reads takes nothing away.

It keeps what a later run need not pay for again: complete answers that became a document, and refusals in words. A
line that cannot be used (older versions kept every reply) stays in the file, and its question is asked again. Of two
lines with the same key the later one counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from crops_jax.errors import InputError
from crops_jax.mining.replies import Answer, text_of, token_count


def answer_key(
    model: str, messages: Sequence[Mapping[str, str]], temperature: float, others: Mapping[str, Any] | None = None
) -> str:
    """The hash under which an answer is journaled: of all of the request that changes the answer.

    Args:
      others: further parts of the request, by name; without any, the key is the one of 0.2.3.
    """
    asked = json.dumps([model, list(messages), temperature], ensure_ascii=False, sort_keys=True)
    if others:
        asked += json.dumps(others, sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


@contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    """Holds the file against other processes, where the disk knows locks."""
    with suppress(OSError):
        flock(file, LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            flock(file, LOCK_UN)


class Journal:
    """All answers of earlier runs, by key; new ones are on the disk when `add` returns. Use as a context manager.

    A last line that was cut by a crash is removed when the next one is added. Threads, and processes, may add at the
    same time.
    """

    def __init__(self, path: str | Path):
        """Reads the journal, or starts one.

        Raises:
          InputError: a line before the last is not an answer: the file is not a journal or was damaged; or it cannot be
            read and written.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.answers, self._whole = self._read()
            self._file = self.path.open("a+b")
        except OSError as error:
            raise InputError(str(path), f"is no file that a journal can be kept in ({error.strerror})") from None

    def find(self, key: str, older_key: str | None) -> Answer | None:
        """The answer under `key`, or else what 0.2.3, which did not tell all requests apart, kept under `older_key`."""
        if key in self.answers or older_key is None:
            return self.answers.get(key)
        answer = self.answers.get(older_key)
        return answer if answer and answer.max_tokens is None else None

    def add(self, answer: Answer) -> None:
        """Appends one answer and waits until the disk has it."""
        try:
            line = json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # half a character, which only an escape can hold
            line = json.dumps(asdict(answer)).encode() + b"\n"
        with self._lock, _locked(self._file):
            self._drop_what_is_cut()
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.answers[answer.key] = answer

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def _drop_what_is_cut(self) -> None:
        """Removes half a line at the end, and no whole line that another process has added since."""
        self._file.seek(self._whole)
        added = self._file.read()
        whole = added.rfind(b"\n") + 1
        self._whole += whole
        if whole < len(added):
            self._file.truncate(self._whole)

    def _read(self) -> tuple[dict[str, Answer], int]:
        """The answers, and where the last whole line ends."""
        if not self.path.exists():
            return {}, 0
        answers, whole = {}, 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                answer = self._parse(line, number)
                answers[answer.key] = answer
                whole += len(line)
        return answers, whole

    def _parse(self, line: bytes, number: int) -> Answer:
        try:
            entry: dict[str, Any] = json.loads(line)
            answer = Answer(**entry)
            hash(answer.key)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self.path}, line {number}", f"is not a journaled answer ({error}); remove the line or the file"
            ) from None
        # 0.2.3 kept what the server sent, lists of parts and counts that are none included.
        return replace(
            answer,
            content=text_of(answer.content),
            refusal=text_of(answer.refusal),
            finish_reason=text_of(answer.finish_reason),
            prompt_tokens=token_count(answer.prompt_tokens),
            completion_tokens=token_count(answer.completion_tokens),
        )
