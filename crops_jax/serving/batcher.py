"""Requests that wait at the same time are computed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Gives whatever waits to one function, in one thread, batch by batch.

    Nobody is waited for: an idle batcher computes a lone request at once, and what comes meanwhile is the next batch.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]], most: int):
        """`work` gives a result for each item of a batch of at most `most`, in its order."""
        self._work, self._most = work, most
        self._waiting: asyncio.Queue[tuple[T, asyncio.Future[R]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._task: asyncio.Task[None] | None = None

    def ask(self, item: T) -> asyncio.Future[R]:
        """The result for `item`, or what `work` raised for its batch.

        The item waits from this call on, not from when its result is awaited: `close` answers it.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, answer))
        return answer

    async def close(self) -> None:
        """Answers what waits and ends the thread."""
        await self._waiting.join()
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._most and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            # Whoever went away (a closed connection) is not computed for.
            asked = [(item, answer) for item, answer in batch if not answer.done()]
            try:
                if asked:
                    results = await loop.run_in_executor(self._thread, self._work, [item for item, _ in asked])
                    for (_, answer), result in zip(asked, results, strict=True):
                        if not answer.done():
                            answer.set_result(result)
            except Exception as error:
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
            finally:
                for _ in batch:
                    self._waiting.task_done()
