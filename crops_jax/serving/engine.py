"""A bundle that answers many clients, and the shelf of those that are served now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from crops_jax.retrieval.ranking import NO_ITEM
from crops_jax.serving.batcher import Batcher
from crops_jax.serving.bundle import Bundle, open_bundle
from crops_jax.serving.config import ServeConfig
from crops_jax.serving.examples import examples
from crops_jax.serving.metrics import Metrics
from crops_jax.suggestions.suggester import Suggester


@dataclass(frozen=True)
class Found:
    """What one query found, best first."""

    ids: list[int]
    cosines: list[float]


class Engine:
    """A bundle with its batches."""

    def __init__(self, bundle: Bundle, config: ServeConfig, metrics: Metrics):
        self.bundle, self._metrics = bundle, metrics
        self._searches: Batcher[tuple[str, int], Found] = Batcher(self._search, config.batch)
        self._encodings: Batcher[tuple[str, str], np.ndarray] = Batcher(self._encode, config.batch)

    def search(self, query: str, k: int) -> asyncio.Future[Found]:
        """The k documents nearest to a query, or all where there are fewer."""
        return self._searches.ask((query, k))

    async def embed(self, texts: Sequence[str], tower: str) -> list[np.ndarray]:
        """float32[D] of each text."""
        return list(await asyncio.gather(*(self._encodings.ask((tower, text)) for text in texts)))

    async def close(self) -> None:
        """Answers what was asked before."""
        await self._searches.close()
        await self._encodings.close()

    def _search(self, asked: Sequence[tuple[str, int]]) -> list[Found]:
        self._metrics.batch.observe(len(asked))
        start = time.perf_counter()
        vectors = self.bundle.towers["query"].encode([query for query, _ in asked])
        encoded = time.perf_counter()
        ids, cosines = self.bundle.index.search(vectors, max(k for _, k in asked))
        self._metrics.encode.observe(encoded - start)
        self._metrics.search.observe(time.perf_counter() - encoded)
        return [_found(row, of_row, k) for row, of_row, (_, k) in zip(ids, cosines, asked, strict=True)]

    def _encode(self, asked: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        self._metrics.batch.observe(len(asked))
        start = time.perf_counter()
        out: list[np.ndarray] = [np.empty(0)] * len(asked)
        for tower, encoder in self.bundle.towers.items():
            chosen = [i for i, (wanted, _) in enumerate(asked) if wanted == tower]
            if chosen:
                for i, vector in zip(chosen, encoder.encode([asked[i][1] for i in chosen]), strict=True):
                    out[i] = vector
        self._metrics.encode.observe(time.perf_counter() - start)
        return out


def _found(ids: np.ndarray, cosines: np.ndarray, k: int) -> Found:
    real = ids[:k] != NO_ITEM
    return Found(ids[:k][real].tolist(), cosines[:k][real].tolist())


def _named_apart(bundles: Sequence[Bundle]) -> list[Bundle]:
    """The bundles, of which each has a title of its own by which it is asked for: two days of an arm share one."""
    titles = [bundle.title for bundle in bundles]
    return [
        replace(bundle, title=f"{title} ({titles[: n + 1].count(title)})") if titles.count(title) > 1 else bundle
        for n, (bundle, title) in enumerate(zip(bundles, titles, strict=True))
    ]


class Shelf:
    """The engines, and the writer, that answer now. A request keeps its own to its end, so a new bundle drops none."""

    def __init__(self, config: ServeConfig, load_writer: Callable[[], Suggester] | None = None):
        """Loads nothing yet. `load_writer` gives what suggests queries, where something does."""
        self._config, self.metrics = config, Metrics()
        self._load_writer = load_writer
        self.writer: Suggester | None = None
        self._taking = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reload")
        self.engines: list[Engine] = []
        self.examples: list[dict[str, str]] = []

    def open(self) -> None:
        """Loads every bundle, and the writer.

        Raises:
          InputError: one of them does not verify; what was served before is served further.
        """
        bundles = _named_apart([open_bundle(path, self._config) for path in self._config.bundles])
        writer = self._load_writer() if self._load_writer else self.writer
        shown = examples(bundles, self._config.examples)
        engines = [Engine(bundle, self._config, self.metrics) for bundle in bundles]
        self.engines, self.examples, self.writer = engines, shown, writer  # all or nothing
        self.metrics.documents.clear()
        for engine in engines:
            bundle = engine.bundle
            self.metrics.documents.labels(bundle.title, bundle.sha256[:12]).set(len(bundle.ids))

    async def take_anew(self) -> None:
        """Reads the same paths again while what was read before answers, then lets the new answer.

        Raises:
          InputError: as `open`.
        """
        async with self._taking:
            old = self.engines
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self.open)
            except Exception:
                self.metrics.reloads.labels("refused").inc()
                raise
            self.metrics.reloads.labels("taken").inc()
            for engine in old:
                await engine.close()

    async def close(self) -> None:
        """Answers what was asked before."""
        for engine in self.engines:
            await engine.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
