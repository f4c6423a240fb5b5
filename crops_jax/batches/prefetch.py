"""Batches made ahead: a thread reads and collates while the devices compute."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from itertools import count
from time import monotonic

import numpy as np

from crops_jax.batches.stream import Batches, Loaded


class Prefetcher:
    """Iterates over (step, Loaded), made in a thread; `waited_s` is the time the consumer stood still.

    Use as a context manager.
    """

    def __init__(self, batches: Batches, step: int, position: np.ndarray, stop: int | None = None):
        """From `step`, whose batch is at `position`, to `stop`, or for ever without one."""
        self.waited_s = 0.0
        self._queue: queue.Queue[tuple[int, Loaded] | BaseException | None] = queue.Queue(batches.config.prefetch)
        self._stop = threading.Event()
        steps = count(step) if stop is None else range(step, stop)
        work = (batches, steps, position)
        self._thread = threading.Thread(target=self._read_ahead, args=work, daemon=True, name="input-pipeline")
        self._thread.start()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> tuple[int, Loaded]:
        started = monotonic()
        made = self._queue.get()
        self.waited_s += monotonic() - started
        if made is None or isinstance(made, BaseException):
            self._queue.put(made)  # so that asking again answers the same instead of waiting for ever
            raise StopIteration if made is None else made
        return made

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the thread and waits for it."""
        self._stop.set()
        while self._thread.is_alive():
            try:  # the thread may stand before a full queue
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _read_ahead(self, batches: Batches, steps: Iterable[int], position: np.ndarray) -> None:
        try:
            for step in steps:
                if self._stop.is_set():
                    return
                loaded = batches.load(position)
                self._queue.put((step, loaded))
                position = loaded.position
            self._queue.put(None)
        except BaseException as error:  # raised again where the batch is asked for
            self._queue.put(error)
