"""The journal of paid answers: JSON lines, appended and flushed to the disk one by one, never rewritten."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from crops_jax.errors import InputError


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


def answer_key(model: str, messages: Sequence[Mapping[str, str]], temperature: float) -> str:
    """The hash under which an answer is journaled: of the model, the whole prompt and the temperature."""
    asked = json.dumps([model, list(messages), temperature], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


class Journal:
    """All answers of earlier runs, by key; new ones are on the disk when `add` returns. Use as a context manager.

    A last line that was cut by a crash is removed on opening. Threads may add at the same time.
    """

    def __init__(self, path: str | Path):
        """Reads the journal, or starts one.

        Raises:
          InputError: a line before the last is not an answer; the file is not a journal or was damaged.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self.answers = self._read()
        self._file = self.path.open("ab")

    def add(self, answer: Answer) -> None:
        """Appends one answer and waits until the disk has it."""
        line = json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.answers[answer.key] = answer

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def _read(self) -> dict[str, Answer]:
        if not self.path.exists():
            return {}
        answers, whole = {}, 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                answer = self._parse(line, number)
                answers[answer.key] = answer
                whole += len(line)
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)
        return answers

    def _parse(self, line: bytes, number: int) -> Answer:
        try:
            entry: dict[str, Any] = json.loads(line)
            return Answer(**entry)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.path}, line {number}", f"is not a journaled answer ({error}); remove the line or the file"
            ) from None
