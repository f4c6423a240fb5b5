"""The watchdog: when no step finishes any more, the run prints the stacks of all threads and ends.

A process of a multi-host run that hangs blocks all others for ever, and the scheduler sees a job that is alive. With
an exit code of its own the run tells the scheduler to decide.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic

from crops_jax.errors import EXIT_STUCK
from crops_jax.parallel.processes import leave_at_once

_REMEMBERED = 101  # steps in the median
_WRITE_S = 5.0


class Watchdog:
    """Ends the process with EXIT_STUCK when no step has finished for max(floor_s, times * median step time).

    The stacks of all threads go to standard error and to `report`. Use as a context manager.
    """

    def __init__(self, report: Path, times: float, floor_s: float, slow_s: float | None = None):
        """`slow_s`: seconds for the first step, when none is known, and for `slow_work`; by default `floor_s`."""
        self._report, self._times, self._floor_s = Path(report), times, floor_s
        self._slow_s = floor_s if slow_s is None else slow_s
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)
        self._steps = 0
        self._since, self._limit_s = monotonic(), self._slow_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def step_finished(self) -> None:
        """A step's result has arrived from the device."""
        self._durations.append(monotonic() - self._since)
        self._steps += 1
        self._expect_step()

    @contextmanager
    def slow_work(self) -> Iterator[None]:
        """Work that takes longer than a step: restoring, compiling, saving, evaluating."""
        self._expect_slow_work()
        try:
            yield
        finally:
            self._expect_step()

    @contextmanager
    def ending_slowly(self) -> Iterator[None]:
        """What comes after this block is slow work, also after an error: a save that runs is finished."""
        try:
            yield
        finally:
            self._expect_slow_work()

    def _expect_slow_work(self) -> None:
        self._since, self._limit_s = monotonic(), max(self._limit_s, self._slow_s)

    def _expect_step(self) -> None:
        known = self._durations
        self._since = monotonic()
        self._limit_s = max(self._floor_s, self._times * median(known)) if known else self._slow_s

    def __enter__(self) -> Watchdog:
        self._since = monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._floor_s / 10)):
            if monotonic() - self._since > self._limit_s:
                self._end()

    def _end(self) -> None:
        said = f"\nstuck: no step finished in {self._limit_s:.0f} s, after {self._steps} that did"
        print(f"{said}; the stacks of all threads follow and are in {self._report}", file=sys.__stderr__, flush=True)
        faulthandler.dump_traceback(sys.__stderr__)
        writer = threading.Thread(target=self._write_report, daemon=True)
        writer.start()
        writer.join(_WRITE_S)  # the disk may be what hangs
        leave_at_once(EXIT_STUCK)

    def _write_report(self) -> None:
        with self._report.open("w") as file:
            faulthandler.dump_traceback(file)
