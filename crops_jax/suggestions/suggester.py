"""What is asked of anything that suggests queries, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SHOWN = 16  # suggestions that are asked for, and measured


@dataclass(frozen=True)
class Asked:
    """Requests for suggestions, in parallel sequences."""

    prefixes: Sequence[str]  # what was typed so far, in any spelling
    users: Sequence[int | None]  # None: nobody knows
    recent: Sequence[Sequence[str]]  # what the user searched before the request, the latest first


class Suggester(Protocol):
    """Anything that suggests queries. It answers each request on its own."""

    def suggest(self, asked: Asked, count: int = SHOWN) -> list[list[str]]:
        """At most `count` queries for each request, the best first; none is there twice (`normal_text`)."""
        ...
