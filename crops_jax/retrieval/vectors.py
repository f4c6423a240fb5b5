"""The artefact "embeddings": unit vectors of a corpus in parts, so that nobody has to hold all of them.

```
embeddings/  manifest.json
             part-00000/  manifest.json item_ids.npy vectors.npy [item_ids.parquet]
             part-00001/  ...
```

A part is a sealed folder: int64[c] ids in rising order, float32[c, D], and, where the platform's own ids are hashed,
both ids. A folder with the two arrays in itself, as versions before wrote it, is one part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from crops_jax.engines.table_rows import sort_rows
from crops_jax.errors import InputError
from crops_jax.logs.tables import read_table
from crops_jax.retrieval.corpus import ID_TABLE
from crops_jax.retrieval.ranking import check_ids

IDS, VECTORS = "item_ids.npy", "vectors.npy"
BLOCK_BYTES = 1 << 31  # of vectors that are searched at a time; a corpus of up to so many is searched as one


@dataclass(frozen=True)
class Vectors:
    """Some parts as arrays, in the order of their ids."""

    ids: np.ndarray  # int64[c], rising
    vectors: np.ndarray  # float32[c, D]


@dataclass(frozen=True)
class Embeddings:
    """C vectors in parts; each is read when it is asked for."""

    parts: tuple[Path, ...]

    def __len__(self) -> int:
        return sum(_array(part / IDS).shape[0] for part in self.parts)

    @property
    def width(self) -> int:
        """D."""
        return _array(self.parts[0] / VECTORS).shape[1]

    def ids(self) -> np.ndarray:
        """int64[C], rising."""
        return np.sort(np.concatenate([np.load(part / IDS) for part in self.parts]))

    def read(self) -> Vectors:
        """All of them, in memory."""
        return _read(self.parts)

    def blocks(self) -> list[Embeddings]:
        """Parts together, as many as have `BLOCK_BYTES`, at least one; all where that is enough."""
        groups: list[list[Path]] = [[]]
        held = 0
        for part in self.parts:
            size = _array(part / VECTORS).nbytes
            if groups[-1] and held + size > BLOCK_BYTES:
                groups.append([])
                held = 0
            groups[-1].append(part)
            held += size
        if len(groups) > 1 and held < BLOCK_BYTES // 8:  # ScaNN wants more than a few documents
            last = groups.pop()
            groups[-1] += last
        return [Embeddings(tuple(group)) for group in groups]

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids, vectors) of each part, the vectors mapped from disk."""
        for part in self.parts:
            yield np.load(part / IDS), _array(part / VECTORS)

    def names(self) -> pa.Table | None:
        """The id tables of the parts as one, by item; None where the platform has no other ids."""
        if not (self.parts[0] / ID_TABLE).is_file():
            return None
        return sort_rows(pa.concat_tables(read_table(part / ID_TABLE) for part in self.parts), "item_id")


def open_embeddings(folder: Path) -> Embeddings:
    """The embeddings in a folder whose manifest was checked.

    Raises:
      InputError: there are none.
    """
    parts = [folder] if (folder / VECTORS).is_file() else sorted(folder.glob("part-*"))
    if not parts:
        raise InputError(
            str(folder), "holds no vectors; write it again with `python -m crops_jax.encode --config FILE`"
        )
    return Embeddings(tuple(parts))


def _array(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _read(parts: tuple[Path, ...]) -> Vectors:
    if len(parts) == 1:
        ids, vectors = (np.load(parts[0] / name) for name in (IDS, VECTORS))
    else:
        ids, vectors = (np.concatenate([_array(part / name) for part in parts]) for name in (IDS, VECTORS))
    order = np.argsort(ids, kind="stable")
    if np.array_equal(order, np.arange(len(order))):
        return Vectors(ids, vectors)
    return Vectors(ids[order], vectors[order])


def by_id(ids: np.ndarray, vectors: np.ndarray, place: str, *, unit: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(int64[C] rising, float32[C, D]): both in the order of the ids, checked as by `check_vectors`."""
    order = np.argsort(ids, kind="stable")
    same = vectors.ndim == 2 and len(vectors) == len(ids)
    ids = np.asarray(ids, np.int64)[order]
    vectors = np.ascontiguousarray(vectors[order] if same else vectors, np.float32)
    check_vectors(vectors, ids, place, unit=unit)
    return ids, vectors


def check_vectors(vectors: np.ndarray, ids: np.ndarray, place: str, *, unit: bool = False) -> None:
    """Raises InputError, naming `place`, where vectors [C, D] do not fit their ids [C].

    That is: another number of them, bad ids (`ranking.check_ids`), NaN or infinity, or, asked for `unit`, a length
    that is not 1.
    """
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise InputError(place, f"vectors of shape {vectors.shape} for {len(ids)} ids")
    check_ids(ids, place)
    check_finite(vectors, place)
    if unit:
        off = np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-2
        if off.any():
            raise InputError(place, f"{int(off.sum())} vectors are not of unit length, first in row {np.argmax(off)}")


def check_finite(vectors: np.ndarray, place: str) -> None:
    """Raises InputError, naming `place`, where vectors [n, D] hold NaN or infinity."""
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        told = f"{int(bad.sum())} of {len(bad)} vectors hold NaN or infinity, first row {np.argmax(bad)}"
        raise InputError(place, told)
