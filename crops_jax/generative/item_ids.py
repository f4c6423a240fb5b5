"""Ids of items that a decoder can write: the semantic codes of an item's vector, and one code more.

Items of equal codes (equal texts have equal vectors) are numbered by rising item id in that last code. So every item
has an id of its own, and as all ids are of one length, none is the beginning of another.

A document that a language model wrote is no item, and no search finds it. It has the codes of its vector without the
last one: what it is positive for is where items like it would lie.

Shapes: C items, W written documents, D numbers of a vector, T codes of an id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.retrieval.ranking import check_ids, positions_of
from crops_jax.retrieval.vectors import Vectors
from crops_jax.suggestions.config import QuantiserConfig
from crops_jax.suggestions.semantic_index import Quantiser, checked_vectors, learn_codes, report_of

KIND = "item_ids"
_IDS, _CODEBOOKS = "item_ids.safetensors", "quantiser.safetensors"


@dataclass(frozen=True)
class ItemIds:
    """The ids of a corpus. `learn_item_ids` makes them, `read_item_ids` reads them."""

    items: np.ndarray  # int64[C], rising
    codes: np.ndarray  # int32[C, T]
    sizes: tuple[int, ...]  # T: how many codes each place of an id has
    written: np.ndarray  # int64[W], rising, below zero
    written_codes: np.ndarray  # int32[W, T - 1]

    def rows_of(self, items: np.ndarray) -> np.ndarray:
        """int64: the row of each item, of a written document C + its row; -1 of what has no codes."""
        items = np.asarray(items, np.int64)
        row, written = positions_of(self.items, items), positions_of(self.written, items)
        return np.where(written >= 0, len(self.items) + written, row)


def learn_item_ids(
    items: np.ndarray, vectors: np.ndarray, config: QuantiserConfig, written: Vectors | None = None
) -> tuple[ItemIds, Quantiser, dict[str, Any]]:
    """(ids, what codes vectors, how well the codes before the last one tell the items apart).

    Args:
      items: int64[C], rising.
      vectors: float32[C, D], one an item; the codes are learned from these alone.
      written: W documents of a language model; None: there are none.

    Raises:
      InputError: there is not one finite vector an item, an item is there twice or was written by a language model, or
        the config does not fit the vectors.
    """
    vectors = checked_vectors(vectors, "vectors of items")
    if not len(items) or len(items) != len(vectors):
        raise InputError("item ids", f"{len(items)} items, {len(vectors)} vectors: every item needs one")
    check_ids(items, "item ids")
    quantiser, codes = learn_codes(vectors, config)
    told = asdict(report_of(quantiser, vectors, codes))
    told["items"] = told.pop("queries")
    last = _numbers_within(codes)
    told["written"] = 0 if written is None else len(written.ids)
    names, areas = np.zeros(0, np.int64), np.zeros((0, codes.shape[1]), np.int32)
    if told["written"]:
        near = checked_vectors(written.vectors, "vectors of written documents", vectors.shape[1])
        names, areas = written.ids, quantiser.codes(near).astype(np.int32)
    sizes = (*quantiser.sizes, int(last.max()) + 1)
    return ItemIds(items, np.concatenate([codes, last[:, None]], axis=1), sizes, names, areas), quantiser, told


def _numbers_within(codes: np.ndarray) -> np.ndarray:
    """int32[C]: the how-manieth row of its kind each row is, from 0."""
    _, kind = np.unique(codes, axis=0, return_inverse=True)
    order = np.argsort(kind.ravel(), kind="stable")
    first = np.searchsorted(kind.ravel()[order], kind.ravel()[order])
    last = np.empty(len(codes), np.int32)
    last[order] = np.arange(len(codes)) - first
    return last


def write_item_ids(
    target: Path, corpus: Vectors, written: Vectors | None, config: QuantiserConfig, settings: Any,
    inputs: Mapping[str, Path],
) -> None:  # fmt: skip
    """Learns ids and writes the artefact "item_ids": ids, codebooks, and in the manifest what the codes tell apart.

    Raises:
      InputError: as `learn_item_ids`.
    """
    with write_folder(target, kind=KIND, config=settings, inputs=inputs) as out:
        ids, quantiser, told = learn_item_ids(corpus.ids, corpus.vectors, config, written)
        save_file({**vars(ids), "sizes": np.array(ids.sizes, np.int64)}, out / _IDS)
        save_file({name: np.ascontiguousarray(a) for name, a in quantiser.tensors().items()}, out / _CODEBOOKS)
        out.counts.update(told, id_tokens=len(ids.sizes), last_codes=ids.sizes[-1])


def read_item_ids(folder: Path) -> ItemIds:
    """The ids of a folder, its bytes checked.

    Raises:
      InputError: it is missing, damaged, or holds something else.
    """
    verify(folder, KIND)
    try:
        arrays = load_file(folder / _IDS)
    except SafetensorError as error:
        raise InputError(str(folder), f"cannot be read ({error}); make it again") from None
    return ItemIds(**{**arrays, "sizes": tuple(arrays["sizes"].tolist())})


def identity(folder: Path) -> str:
    """The hash of the ids in a folder: equal for equal ids, wherever they lie."""
    return next(entry["sha256"] for entry in read_manifest(folder, KIND)["files"] if entry["path"] == _IDS)
