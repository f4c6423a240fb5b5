"""Progress bars: one way to show that a long stage is alive, silent for stages under two seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_DELAY_S = 2.0


def progress(items: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yields `items` unchanged and draws a bar on stderr once the loop has lasted over two seconds."""
    return iter(tqdm(items, desc=what, total=total, unit=unit, delay=_DELAY_S, dynamic_ncols=True, mininterval=0.5))


def bar(what: str, total: int | None = None, unit: str = "it") -> tqdm:
    """A bar that the caller moves with `.update(n)`; use it as a context manager."""
    return tqdm(desc=what, total=total, unit=unit, delay=_DELAY_S, dynamic_ncols=True, mininterval=0.5)


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Prints the stage's name when it starts and its wall time when it ends."""
    print(f"-- {what}", file=sys.stderr, flush=True)
    start = monotonic()
    yield
    print(f"   {what}: {monotonic() - start:.1f} s", file=sys.stderr, flush=True)
