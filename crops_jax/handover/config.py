"""What is handed over beside the towers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HandoverConfig:
    """What a bundle holds."""

    evidence: bool = True
    """Put into the bundle what training knew of every query: other users' queries among it. The explorer shows it."""
