"""Progress bars: one way to show that a long stage is alive, silent for stages under two seconds."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_DELAY_S = 2.0


def progress(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "it", shown: bool = True
) -> Iterator[T]:
    """Yields `items` unchanged and draws a bar on stderr once the loop has lasted over two seconds."""
    silent = not shown
    return iter(
        tqdm(
            items,
            desc=what,
            total=total,
            unit=unit,
            delay=_DELAY_S,
            dynamic_ncols=True,
            mininterval=0.5,
            disable=silent,
        )
    )


def bar(what: str, total: int | None = None, unit: str = "it", shown: bool = True) -> tqdm:
    """A bar that the caller moves with `.update(n)`; use it as a context manager."""
    silent = not shown
    return tqdm(desc=what, total=total, unit=unit, delay=_DELAY_S, dynamic_ncols=True, mininterval=0.5, disable=silent)


def quiet(package: str) -> None:
    """Lets a package that puts its own logger to DEBUG tell warnings alone."""
    logging.getLogger(package).setLevel(logging.WARNING)


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Prints the stage's name when it starts and its wall time when it ends; a clock runs beside it after two seconds.

    The clock keeps silent while a bar of the stage's own is drawn.
    """
    print(f"-- {what}", file=sys.stderr, flush=True)
    start, over = monotonic(), Event()
    clock = Thread(target=_clock, args=(what, start, over), daemon=True)
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()
    print(f"   {what}: {monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def _clock(what: str, start: float, over: Event) -> None:
    while not over.wait(_DELAY_S):
        if not tqdm._instances:  # the bars that are drawn now
            print(f"   {what}: {monotonic() - start:.0f} s ...", end="\r", file=sys.stderr, flush=True)
