"""A tower for single requests: few compiled shapes, so that nobody waits for a compiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from crops_jax.artifacts.manifest import read_manifest
from crops_jax.batch import Tokens
from crops_jax.handover import towers
from crops_jax.models import sentence_encoder
from crops_jax.models.sentence_encoder import SentenceEncoder

_ROWS = (1, 4, 16, 64)
_LENGTHS = (16, 32, 64, 128, 256)


class TowerEncoder:
    """An exported tower; texts -> unit vectors."""

    def __init__(self, encoder: SentenceEncoder, most: int):
        """A loaded folder; `most` rows are computed at a time."""
        self._encoder = encoder
        self._rows = [n for n in _ROWS if n < most] + [most]
        self._lengths = [n for n in _LENGTHS if n < encoder.max_tokens] + [encoder.max_tokens]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32[n, D] of any number of texts; each is cut where training cut it."""
        width = self._encoder.head.width(self._encoder.tower.config.width)
        out = np.empty((len(texts), width), np.float32)
        rows = [e.ids for e in self._encoder.tokenizer.encode_batch_fast(list(texts))]
        most = self._rows[-1]
        for start in range(0, len(rows), most):
            out[start : start + most] = self._batch(rows[start : start + most])
        return out

    def warm_up(self) -> None:
        """Compiles every shape."""
        for rows in self._rows:
            for length in self._lengths:
                self._batch([[0] * length] * rows)

    def _batch(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        count = next(n for n in self._rows if n >= len(rows))
        longest = max(len(row) for row in rows)
        ids = np.zeros((count, next(n for n in self._lengths if n >= longest)), np.int32)
        length = np.zeros(count, np.int32)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            length[place] = len(row)
        found = sentence_encoder.vectors(self._encoder.tower, Tokens(ids, length), self._encoder.head)
        return np.asarray(found)[: len(rows)]


def load_towers(bundle: Path, most: int) -> dict[str, TowerEncoder]:
    """Both towers of a bundle, those that serve queries compiled and checked against their golden vectors.

    Raises:
      InputError: a tower is incomplete, or this machine computes other vectors than training did.
    """
    folders = {tower: bundle / f"{tower}_tower" for tower in towers.TOWERS}
    loaded = {tower: sentence_encoder.load(folder) for tower, folder in folders.items()}
    if _tied(bundle):  # written twice, so that each folder can be served alone; here one copy is enough
        loaded["document"] = replace(loaded["document"], tower=loaded["query"].tower)
    found = {tower: TowerEncoder(encoder, most) for tower, encoder in loaded.items()}
    found["query"].warm_up()
    for tower, encoder in found.items():
        towers.compare_with_golden(folders[tower], encoder.encode)
    return found


def _tied(bundle: Path) -> bool:
    """Whether both towers are one."""
    files = {entry["path"]: entry["sha256"] for entry in read_manifest(bundle)["files"]}
    return all(
        files[f"query_tower/{name}"] == files[f"document_tower/{name}"] for name in ("model.safetensors", "config.json")
    )
