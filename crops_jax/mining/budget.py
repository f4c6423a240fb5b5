"""What asking a language model may cost, and what it did cost: every request that leaves the machine is counted here.

A request that would go beyond the budget is not sent. What is under way counts as if it came back with the longest
answer, so that no number of threads can go beyond it either.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

_BYTES_A_TOKEN = 4  # of UTF-8: English has some 4 letters a token, Chinese some 1.3 characters of 3 bytes


def estimated_tokens(size: int) -> int:
    """About how many tokens a text of `size` bytes has."""
    return -(-size // _BYTES_A_TOKEN)


class Ledger:
    """The account of one run; threads may use it at the same time.

    Args:
      max_requests: requests that may be sent, retries included; 0 for any number.
      max_tokens: tokens of prompts and answers that may be spent; 0 for any number.
      longest_answer: the most tokens of one answer.
    """

    def __init__(self, max_requests: int, max_tokens: int, longest_answer: int):
        self.requests: Counter[str] = Counter()  # by what came of them
        self.told_tokens = 0  # by the endpoint's own count, or by the size of an answer that tells none
        self.assumed_tokens = 0  # of requests without an answer, which may have been paid all the same
        self._limits = max_requests, max_tokens
        self._longest_answer = longest_answer
        self._sent, self._open_tokens, self._lock = 0, 0, threading.Lock()
        self._over = False

    @property
    def spent(self) -> bool:
        """Whether a request was refused: there will be no further one."""
        return self._over

    def take(self, size: int) -> int | None:
        """Opens a request of `size` bytes and returns the tokens put aside for it; None where the budget ends."""
        aside = estimated_tokens(size) + self._longest_answer
        with self._lock:
            requests, tokens = self._limits
            committed = self.told_tokens + self.assumed_tokens + self._open_tokens + aside
            self._over |= bool(requests and self._sent >= requests) or bool(tokens and committed > tokens)
            if self._over:
                return None
            self._sent += 1
            self._open_tokens += aside
        return aside

    def close(self, aside: int, came: str, tokens: int | None) -> None:
        """Ends a request: what came of it in a word, and its tokens; None where nobody knows whether it was paid."""
        with self._lock:
            self._open_tokens -= aside
            self.requests[came] += 1
            if tokens is None:
                self.assumed_tokens += aside
            else:
                self.told_tokens += tokens

    def facts(self) -> dict[str, Any]:
        """As it is kept, and told."""
        return {"requests": dict(sorted(self.requests.items())), "tokens": self.told_tokens,
                "tokens of requests without an answer, at most": self.assumed_tokens}  # fmt: skip

    def line(self) -> str:
        """As a person reads it."""
        came = ", ".join(f"{n} {what}" for what, n in sorted(self.requests.items()))
        maybe = f", and {self.assumed_tokens} at most of requests without an answer" if self.assumed_tokens else ""
        return f"{sum(self.requests.values())} requests ({came}), {self.told_tokens} tokens{maybe}"

    def keep(self, journal: Path) -> None:
        """Appends a line to the file of what was spent, which lies beside the journal."""
        if self.requests:
            with spent_file(journal).open("a") as file:
                file.write(json.dumps(self.facts()) + "\n")


def spent_file(journal: Path) -> Path:
    """The file that keeps what each run spent."""
    return journal.with_name(f"{journal.name.removesuffix('.jsonl')}.spent.jsonl")
