"""Search over more vectors than fit at a time: block by block, the best of all merged exactly.

A corpus of one block (`vectors.BLOCK_BYTES`) stays in memory and on the devices. Of a larger one a block is read,
searched for all queries, and let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.progress import progress
from crops_jax.retrieval.config import IndexConfig
from crops_jax.retrieval.dense import DenseSearcher
from crops_jax.retrieval.exact import ExactIndex
from crops_jax.retrieval.ranking import best_of
from crops_jax.retrieval.scann_index import ScannIndex, open_scann, write_index
from crops_jax.retrieval.vectors import Embeddings, Vectors

_PART = "part-{:05d}"


def searcher_of(embeddings: Embeddings, encode_queries: Callable[[Sequence[str]], np.ndarray]) -> DenseSearcher:
    """Exact search over all of the embeddings, in memory where they are one block."""
    blocks = embeddings.blocks()
    if len(blocks) == 1:
        read = blocks[0].read()
        return DenseSearcher.in_memory(read.ids, read.vectors, encode_queries)
    rows = MappedRows(embeddings)
    return DenseSearcher(rows.ids, rows, ExactBlocks(blocks), encode_queries, partial(_each, blocks))


def _each(blocks: Sequence[Embeddings]) -> Iterator[Vectors]:
    return (block.read() for block in blocks)


class ExactBlocks:
    """Exact search as `exact.ExactIndex`; a block lies on the devices while it is searched."""

    def __init__(self, blocks: Sequence[Embeddings]):
        self._blocks, self._most = blocks, max(map(len, blocks))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, k] ids, float32[n, k] scores) of float32[n, D]; equal scores by smaller id over all blocks."""
        best: list[tuple[np.ndarray, np.ndarray]] = []
        for block in progress(self._blocks, "exact search", unit="block"):
            # What was read goes when it lies on the devices, and that before the next block is read.
            best = [best_of([*best, self._placed(block).search(queries, k)], k)]
        return best[0]

    def _placed(self, block: Embeddings) -> ExactIndex:
        read = block.read()
        return ExactIndex(read.vectors, read.ids, self._most)


class MappedRows:
    """float32[C, D] in the order of the ids, of which rows are read from disk when they are asked for.

    In memory an item takes 16 bytes.
    """

    def __init__(self, embeddings: Embeddings):
        pieces = list(embeddings.pieces())
        self._parts = [vectors for _, vectors in pieces]
        ids = np.concatenate([part for part, _ in pieces])
        place = np.concatenate([(number << 32) | np.arange(len(part)) for number, (part, _) in enumerate(pieces)])
        order = np.argsort(ids, kind="stable")
        self.ids, self._place = ids[order], place[order]
        self.shape = len(ids), embeddings.width

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """float32[m, D] of int[m] rows."""
        part, row = np.divmod(self._place[rows], 1 << 32)
        out = np.empty((len(part), self.shape[1]), np.float32)
        for number in np.unique(part):
            of_part = part == number
            out[of_part] = self._parts[number][row[of_part]]
        return out


def write_index_of(
    target: str | Path, embeddings: Embeddings, config: IndexConfig, inputs: Mapping[str, str | Path]
) -> None:
    """Writes the artefact "index" of embeddings: as `scann_index.write_index`, or, of several blocks, a part for each.

    A part is an index of its own. Its partitions and its hash are trained on a sample of its documents
    (`index.training_sample`), so that no more than a block is in memory.

    Raises:
      InputError: as `scann_index.write_index`.
    """
    blocks = embeddings.blocks()
    if len(blocks) == 1:
        read = blocks[0].read()
        write_index(target, read.ids, read.vectors, config, inputs, embeddings.names())
        return
    with write_folder(target, kind="index", config=asdict(config), inputs=inputs) as out:
        for number, block in enumerate(blocks):
            read = block.read()
            write_index(out / _PART.format(number), read.ids, read.vectors, config, names=block.names())
        out.counts.update(documents=len(embeddings), width=embeddings.width, parts=len(blocks))


class ScannParts:
    """A ScaNN index of several parts: each is searched, and the best of all are merged by their exact scores."""

    def __init__(self, parts: Sequence[Path], documents: int, resident: bool):
        self._parts, self._documents = parts, documents
        self._held = [open_scann(part, read_manifest(part)) for part in parts] if resident else None

    def __len__(self) -> int:
        return self._documents

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `index.ScannIndex.search`; equal scores by smaller id."""
        parts = self._held or (open_scann(part, read_manifest(part)) for part in self._parts)
        best: list[tuple[np.ndarray, np.ndarray]] = []
        for part in parts:
            best = [best_of([*best, part.search(queries, k)], k)]
            del part  # before the next one is read
        return best[0]


def load_index(path: str | Path, resident: bool = True) -> ScannIndex | ScannParts:
    """Reads the artefact "index" after checking every byte of it: a flipped bit is silent in ScaNN itself.

    Args:
      resident: keep all parts in memory, as a server wants; else each is read anew by every search.

    Raises:
      InputError: the folder is missing, of another kind, or damaged, or ScaNN is not installed.
    """
    path = Path(path)
    manifest = verify(path)
    if manifest["kind"] != "index":
        raise InputError(str(path), f"holds {manifest['kind']!r}, but 'index' is needed")
    parts = index_parts(path)
    if parts == [path]:
        return open_scann(path, manifest)
    return ScannParts(parts, manifest["counts"]["documents"], resident)


def index_parts(path: Path) -> list[Path]:
    """The folders of a ScaNN index that each hold one: itself, or its parts."""
    return [path] if (path / "ids.npy").is_file() else sorted(path.glob("part-*"))


def index_ids(path: Path) -> np.ndarray:
    """int64[C], rising: the documents of an index."""
    return np.sort(np.concatenate([np.load(part / "ids.npy", allow_pickle=False) for part in index_parts(path)]))
