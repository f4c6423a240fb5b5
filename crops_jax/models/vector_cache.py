"""Vectors of texts, kept on disk: what was encoded once is not encoded again, whatever was killed in between.

A folder holds segments, files of rows (key, checksum, vector) that are written whole or not at all. Several processes
may add to one folder; each sees what lay there when it looked. In memory a text takes 16 bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from crops_jax.errors import InputError
from crops_jax.stable_hash import hash_texts

SEGMENT = 1 << 14  # rows of a segment, at most: what a kill costs


@dataclass(frozen=True)
class Kept:
    """What a function gives for texts, of which each is computed once."""

    compute: Callable[[list[str], str], np.ndarray]  # (n texts, label of a bar) -> float32[n, ...]
    cache: VectorCache

    def of(self, texts: Sequence[str], what: str) -> np.ndarray:
        """float32[n, D], those of distinct texts; what is not kept yet is computed."""
        keys = hash_texts(texts)
        if self.cache.missing(keys).any():
            with self.preparing((0, 1), what) as prepare:
                prepare(texts)
        return self.cache.get(keys)

    @contextmanager
    def preparing(self, share: tuple[int, int], what: str) -> Iterator[Callable[[Sequence[str]], None]]:
        """Gives a function to call with texts, many times: it computes those of this share that are not kept yet.

        Args:
          share: (i, n): a text is computed by one of n processes, the i-th from 0.
        """
        index, count = share
        waiting: dict[int, str] = {}

        def take(most: int) -> None:
            while len(waiting) >= most:
                keys = list(waiting)[:SEGMENT]
                values = self.compute([waiting.pop(key) for key in keys], what)
                self.cache.add(np.array(keys, np.uint64), values)

        def prepare(texts: Sequence[str]) -> None:
            keys = hash_texts(texts)
            new = self.cache.missing(keys) & (keys % np.uint64(count) == index)
            waiting.update((int(keys[i]), texts[i]) for i in np.flatnonzero(new).tolist())
            take(SEGMENT)

        yield prepare
        take(1)


class VectorCache:
    """float32 vectors of one width by 64-bit key (`stable_hash.hash_texts`)."""

    def __init__(self, folder: Path | None):
        """Opens a folder, which is made if it is not there. None: kept in memory.

        Raises:
          InputError: a segment is damaged.
        """
        self._folder = folder
        self._segments: list[Path | np.ndarray] = []
        self._seen: set[Path] = set()
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # sorted keys, and where they are
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.look()

    def look(self) -> None:
        """Takes note of the segments that other processes have added."""
        if self._folder is None:
            return
        for path in sorted(set(self._folder.glob("[!.]*.npy")) - self._seen):
            self._note(np.ascontiguousarray(_open(path)["key"]), path)

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """bool[n]: which of uint64[n] keys are not here."""
        return self._places(keys) < 0

    def add(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Keeps float32[n, ...] vectors under uint64[n] keys, as one segment."""
        if not len(keys):
            return
        vectors = vectors.reshape(len(keys), -1)
        rows = np.empty(len(keys), _row(vectors.shape[1]))
        rows["key"], rows["vector"] = keys, vectors
        rows["sum"] = _sums(rows)
        if self._folder is None:
            self._note(keys, rows)
            return
        path = self._folder / f"{uuid.uuid4().hex}.npy"
        unfinished = path.with_name(f".{path.name}")
        np.save(unfinished, rows)
        unfinished.rename(path)
        self._note(keys, path)

    def get(self, keys: np.ndarray) -> np.ndarray:
        """float32[n, D] of uint64[n] keys that are all here.

        Raises:
          InputError: a segment is damaged.
        """
        segment, row = np.divmod(self._places(keys), 1 << 32)
        out: np.ndarray | None = None
        order = np.argsort(segment, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(segment[order])) + 1):
            if not len(some):
                continue
            held = self._segments[segment[some[0]]]
            rows = held[row[some]] if isinstance(held, np.ndarray) else _open(held)[row[some]]
            if not np.array_equal(rows["sum"], _sums(rows)):
                raise _damaged(held, "a checksum differs")
            out = np.empty((len(keys), rows["vector"].shape[1]), np.float32) if out is None else out
            out[some] = rows["vector"]
        return np.zeros((0, 1), np.float32) if out is None else out

    def _places(self, keys: np.ndarray) -> np.ndarray:
        """int64[n]: number of the segment << 32 | row; -1 where a key is not here."""
        out = np.full(len(keys), -1)
        for known, place in self._runs:
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            out = np.where(known[at] == keys, place[at], out)
        return out

    def _note(self, keys: np.ndarray, segment: Path | np.ndarray) -> None:
        """Runs are merged as they grow, so that there are few and no key is sorted often."""
        number = len(self._segments)
        self._segments.append(segment)
        if isinstance(segment, Path):
            self._seen.add(segment)
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        run = keys[order], (number << 32) | order
        while self._runs and len(self._runs[-1][0]) <= 2 * len(run[0]):
            both = [np.concatenate(parts) for parts in zip(self._runs.pop(), run, strict=True)]
            order = np.argsort(both[0], kind="stable")
            run = both[0][order], both[1][order]
        self._runs.append(run)


def _row(width: int) -> np.dtype:
    return np.dtype([("key", "<u8"), ("sum", "<u4"), ("vector", "<f4", (width,))])


def _sums(rows: np.ndarray) -> np.ndarray:
    """uint32[n]: the sum of a row's words, which no single flipped bit leaves as it was."""
    words = np.ascontiguousarray(rows["vector"]).view("<u4").sum(axis=1, dtype=np.uint32)
    keys = np.ascontiguousarray(rows["key"]).view("<u4").reshape(-1, 2).sum(axis=1, dtype=np.uint32)
    return words + keys


def _open(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if rows.dtype != _row(rows.dtype["vector"].shape[0]):
            raise ValueError(f"rows of {rows.dtype}")
    except (OSError, ValueError, KeyError, IndexError, SyntaxError, TokenError) as error:  # the last two of a header
        raise _damaged(path, str(error)) from None
    return rows


def _damaged(path: Path | np.ndarray, said: str) -> InputError:
    return InputError(str(path), f"is damaged ({said}); remove it and run the command again")
