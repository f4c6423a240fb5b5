"""A bundle, checked and loaded: what a server answers from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from crops_jax.artifacts.manifest import MANIFEST, fingerprint, read_manifest, verify
from crops_jax.engines.table_rows import TableRows
from crops_jax.errors import InputError
from crops_jax.handover.bundle import ITEMS
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.tables import PLATFORM
from crops_jax.retrieval.blocks import load_index
from crops_jax.retrieval.ranking import nearest, positions_of
from crops_jax.serving.config import ServeConfig
from crops_jax.serving.encoder import TowerEncoder, load_towers
from crops_jax.serving.evidence import Evidence


class Index(Protocol):
    """Search by vectors: exact or ScaNN."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, k] ids, float32[n, k] cosines), best first; filled up with `NO_ITEM` and -inf."""
        ...


class HostIndex:
    """Exact search with numpy: for few queries at a time over a corpus that fits this machine."""

    def __init__(self, vectors: np.ndarray, ids: np.ndarray):
        """float32[C, D] unit vectors and their rising int64[C] ids."""
        self._vectors, self._ids = vectors, ids

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Index.search`; of equal cosines the smaller id comes first."""
        return nearest(queries, self._vectors, self._ids, k)


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle."""

    path: Path
    sha256: str
    """Of its manifest: which bundle this is."""
    title: str
    sources: tuple[str, ...]
    """The sources that the method trained on."""
    levels: dict[str, int]
    ids: np.ndarray
    towers: dict[str, TowerEncoder]
    index: Index
    search: Literal["scann", "exact"]
    items: TableRows
    """The texts to show, in the order of the ids."""
    evidence: Evidence | None
    counts: dict[str, Any]

    def shown(self, item_ids: Sequence[int]) -> list[dict[str, Any]]:
        """The id as the platform writes it and the text fields of these items."""
        rows = self.items.at(positions_of(self.ids, np.asarray(item_ids, np.int64))).to_pylist()
        return [{"id": row.get(PLATFORM["item"]) or row["item_id"], **{f: row[f] for f in TEXT_FIELDS}} for row in rows]


def open_bundle(path: str | Path, config: ServeConfig) -> Bundle:
    """Reads a bundle after every byte of it was checked.

    Raises:
      InputError: the folder is no bundle, is damaged or was replaced meanwhile, or a tower does not give its golden
        vectors here.
    """
    path = Path(path).resolve()  # a link may point elsewhere while this is read
    read_manifest(path, "bundle", "python -m crops_jax.bundle --config FILE")
    sha256 = fingerprint(path)
    try:
        bundle = _opened(path, sha256, config)
    except (OSError, InputError):
        _require_still_there(path, sha256)  # else what went wrong is that it went away
        raise
    _require_still_there(path, sha256)
    return bundle


def _require_still_there(path: Path, sha256: str) -> None:
    """Raises InputError unless the bundle that was begun with lies there: what was read would be half of each."""
    if not (path / MANIFEST).is_file() or fingerprint(path) != sha256:
        raise InputError(str(path), "was replaced, or went away, while it was read; have it read again")


def _opened(path: Path, sha256: str, config: ServeConfig) -> Bundle:
    manifest = verify(path)
    said, counts = manifest["config"], manifest["counts"]
    ids = np.load(path / "ids.npy")
    index, search = _index(path, ids, config)
    return Bundle(
        path=path,
        sha256=sha256,
        title=said["title"],
        sources=tuple(said["sources"]),
        levels=said["levels"],
        ids=ids,
        towers=load_towers(path, config.batch),
        index=index,
        search=search,
        # In memory: a map of a file that somebody writes over would give other rows, or end the process.
        items=TableRows(pa.ipc.open_file(pa.OSFile(str(path / ITEMS))).read_all()),
        evidence=Evidence(path / "evidence", counts["evidence"]["graded_by"]) if "evidence" in counts else None,
        counts=counts,
    )


def _index(path: Path, ids: np.ndarray, config: ServeConfig) -> tuple[Index, Literal["scann", "exact"]]:
    if (path / "index").is_dir() and not config.exact:
        try:
            return load_index(path / "index"), "scann"
        except InputError as error:
            if error.place != "scann":
                raise
            print(f"warning: {error}; {path} is searched exactly", file=sys.stderr)
    return HostIndex(np.load(path / "vectors.npy"), ids), "exact"
