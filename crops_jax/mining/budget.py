"""What asking a language model may cost, and what it did cost: every request that leaves the machine is counted here.

A request that would go beyond the budget is not sent. What is under way counts as if it came back with the longest
answer, so that no number of threads can go beyond it either.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

_KEEP_S = 5.0  # from one line of a run's account to the next: what a kill may leave out
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
        self.under_way = 0  # requests
        self._limits = max_requests, max_tokens
        self._longest_answer = longest_answer
        self._sent, self._open_tokens, self._change = 0, 0, threading.Condition()
        self._over = False
        self._run, self._kept_s = uuid4().hex[:12], -math.inf
        self._journal: Path | None = None

    @property
    def spent(self) -> bool:
        """Whether there will be no further request: one was refused, or `end` was called."""
        return self._over

    def end(self) -> None:
        """No request is sent from here on, be it a first one or one that is repeated."""
        with self._change:
            self._over = True
            self._change.notify_all()

    def take(self, size: int) -> int | None:
        """Opens a request of `size` bytes and returns the tokens put aside for it; None where the budget ends.

        Where only what is put aside for others leaves no room, it waits for their answers: most are shorter.
        """
        aside = estimated_tokens(size) + self._longest_answer
        requests, tokens = self._limits
        with self._change:
            while not self._over:
                spent = self.told_tokens + self.assumed_tokens + aside
                self._over = bool(requests and self._sent >= requests) or bool(tokens and spent > tokens)
                if self._over or not tokens or spent + self._open_tokens <= tokens:
                    break
                self._change.wait()
            if self._over:
                self._change.notify_all()
                return None
            self._sent += 1
            self.under_way += 1
            self._open_tokens += aside
            self._keep_now_and_then()
        return aside

    def close(self, aside: int, came: str, tokens: int | None) -> None:
        """Ends a request: what came of it in a word, and its tokens; None where nobody knows whether it was paid."""
        with self._change:
            self.under_way -= 1
            self._open_tokens -= aside
            self.requests[came] += 1
            if tokens is None:
                self.assumed_tokens += aside
            else:
                self.told_tokens += tokens
            self._change.notify_all()
            self._keep_now_and_then()

    def facts(self) -> dict[str, Any]:
        """As it is kept, and told."""
        maybe = self.assumed_tokens + self._open_tokens
        requests = dict(sorted(self.requests.items())) | ({"under way": self.under_way} if self.under_way else {})
        return {"requests": requests, "tokens": self.told_tokens,
                "tokens of requests without an answer, at most": maybe}  # fmt: skip

    def line(self) -> str:
        """As a person reads it."""
        came = ", ".join(f"{n} {what}" for what, n in sorted(self.requests.items()))
        maybe = f", and {self.assumed_tokens} at most of requests without an answer" if self.assumed_tokens else ""
        return f"{sum(self.requests.values())} requests ({came}), {self.told_tokens} tokens{maybe}"

    def keep_beside(self, journal: Path) -> None:
        """Names the journal beside which it is kept: every few seconds from here on, for a run that is killed."""
        self._journal = journal

    def keep(self) -> None:
        """Appends what was spent so far to the file beside the journal; of a run's lines the last one counts."""
        with self._change:
            self._keep()

    def _keep_now_and_then(self) -> None:
        if monotonic() - self._kept_s > _KEEP_S:
            try:
                self._keep()
            except OSError:  # a paid answer is worth more; the last line of the run says what is wrong
                self._kept_s = monotonic()

    def _keep(self) -> None:
        if self._journal is None or not self._sent:
            return
        with spent_file(self._journal).open("a") as file:
            file.write(json.dumps({"run": self._run, **self.facts()}) + "\n")
        self._kept_s = monotonic()


def spent_file(journal: Path) -> Path:
    """The file that keeps what each run spent; of the lines of one `run` the last counts."""
    return journal.with_name(f"{journal.name.removesuffix('.jsonl')}.spent.jsonl")
