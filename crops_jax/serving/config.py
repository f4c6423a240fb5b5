"""What a server allows, and where it listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from crops_jax.errors import InputError, require_positive


@dataclass(frozen=True)
class ServeConfig:
    """Bundles, address and limits."""

    bundles: Annotated[tuple[str, ...], tyro.conf.Positional]
    """One bundle, or two that the explorer shows beside each other: the baseline first."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no password: let nobody reach it whom the logs are not meant for."""
    port: int = 8080
    """Port to listen on; 0 takes a free one and says which."""
    exact: bool = False
    """Search exactly even where the bundle has a ScaNN index."""
    writer: str = ""
    """An exported writer of suggestions (`python -m crops_jax.suggest`), for /suggest, and for the explorer while one
    types. Empty: none."""
    examples: tuple[str, ...] = ()
    """Queries that the explorer offers first; those on which two bundles differ most follow."""
    max_k: int = 200
    """Most results of a search."""
    max_chars: int = 1999
    """Characters of the longest text that is taken; the log contract leaves longer queries out too."""
    max_texts: int = 64
    """Most texts of one /embed request."""
    max_body: int = 1 << 20
    """Bytes of the largest request."""
    max_concurrent: int = 64
    """Requests that are answered at a time; who comes then is told to come again (429)."""
    max_suggesting: int = 8
    """/suggest has a number of its own: its writer answers one at a time, and who types keeps no search out."""
    batch: int = 32
    """Most queries that are encoded and searched together. Nobody is waited for: who is there is taken along."""
    grace_s: int = 30
    """Seconds that a request may still take after SIGTERM."""

    def __post_init__(self):
        require_positive(
            "serve",
            self,
            ("max_k", "max_chars", "max_texts", "max_body", "max_concurrent", "max_suggesting", "batch", "grace_s"),
        )
        if not 1 <= len(self.bundles) <= 2:
            usage = "python -m crops_jax.serve BUNDLE [BUNDLE]"
            raise InputError("serve", f"{len(self.bundles)} bundles; one or two are served: {usage}")
