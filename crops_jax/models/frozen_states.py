"""What frozen lower layers make of texts, kept on disk: a text goes through them once, whatever is trained above them.

A text's states depend on no other text and on no weight that is trained. In the folder there is one below for each set
of frozen weights, named after them, and in it a `VectorCache` for each number of tokens. Arms that start from the same
weights share it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crops_jax.batch import PackedTokens, Tokens
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder
from crops_jax.models.config import DualEncoderConfig, Tower
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.models.row_batches import TEXT_LENGTHS
from crops_jax.models.vector_cache import VectorCache
from crops_jax.parallel.sharding import RULES, leaf_name, put_rows, reshard
from crops_jax.progress import bar
from crops_jax.stable_hash import mix

_SLOTS = 4096  # token slots of a call of the device, about
# Tokens that are computed before they are written: what a kill costs, and 400 MB of 384 numbers each.
_SEGMENT = 1 << 18
_LARGE = 1 << 30  # bytes of states that this run does not read, from which on they are told


class FrozenStates:
    """The states of a model's frozen layers (`FrozenConfig.layers`), float32."""

    def __init__(self, folder: Path, model: DualEncoder):
        """Opens what is kept below `folder` for the weights of `model`."""
        self._config = model.config
        self._folders = {tower: folder / _fingerprint(model, tower) for tower in ("query", "document")}
        self._caches: dict[Path, VectorCache] = {}
        _tell_of_others(folder, {*self._folders.values()})

    def prepare(self, model: DualEncoder, tower: Tower, rows: Tokens, mesh: Mesh, what: str = "frozen layers") -> None:
        """Computes the states of the texts (numpy leaves) that are not kept yet, and keeps them.

        Args:
          model: one with the frozen weights that this was opened for, on `mesh`, which must be the ambient one.
        """
        length = rows.length
        keys, first = np.unique(_keys(rows.ids, length), return_index=True)
        first, keys = first[length[first] > 0], keys[length[first] > 0]
        for size in np.unique(length[first]).tolist():
            of_size = np.flatnonzero(length[first] == size)
            of_size = of_size[self._cache(tower, size).missing(keys[of_size])]
            count = max(1, _SEGMENT // size)
            with bar(f"{what}: texts of {size} tokens", len(of_size), "text", shown=len(of_size) > 0) as moving:
                for start in range(0, len(of_size), count):
                    some = of_size[start : start + count]
                    states = self._computed(model, tower, rows.ids[first[some], :size], mesh)
                    self._cache(tower, size).add(keys[some], states)
                    moving.update(len(some))

    def fill(self, tower: Tower, texts: Tokens | PackedTokens) -> Tokens | PackedTokens:
        """The texts (numpy leaves) with their states, zeros where there is no text.

        Raises:
          InputError: states that `prepare` made are gone, or damaged.
        """
        start, length = _places(texts)
        ids = texts.ids.reshape(-1)
        states = np.zeros((ids.size, self._config.backbone.width), np.float32)
        for size in np.unique(length).tolist():
            slots = start[length == size, None] + np.arange(size)
            keys = _keys(ids[slots], np.full(len(slots), size))
            cache = self._cache(tower, size)
            if cache.missing(keys).any():
                raise InputError(str(self._folders[tower]), "lacks states of texts that were prepared; begin again")
            states[slots.reshape(-1)] = cache.get(keys).reshape(slots.size, -1)
        return replace(texts, states=states.reshape(*texts.ids.shape, -1))

    def _cache(self, tower: Tower, size: int) -> VectorCache:
        folder = self._folders[tower] / f"{size:05d}"
        if folder not in self._caches:
            self._caches[folder] = VectorCache(folder)
        return self._caches[folder]

    def _computed(self, model: DualEncoder, tower: Tower, ids: np.ndarray, mesh: Mesh) -> np.ndarray:
        """float32[n, T, E] of int32[n, T] texts of one number of tokens, in calls of one shape."""
        size = ids.shape[1]
        slots = next((slots for slots in TEXT_LENGTHS if slots >= size), size)
        ways = RULES.ways(mesh, "batch")
        count = max(1, _SLOTS // slots // ways) * ways
        found = []
        for start in range(0, len(ids), count):
            some = ids[start : start + count]
            rows = Tokens(np.zeros((count, slots), np.int32), np.zeros(count, np.int32))
            rows.ids[: len(some), :size], rows.length[: len(some)] = some, size
            states = _below(model.tower(tower), self._config.frozen.layers, self._config.dtype, put_rows(rows, mesh))
            found.append(np.asarray(states)[: len(some), :size])
        return np.concatenate(found)


@partial(jax.jit, static_argnums=(1, 2))
def _below(encoder: dual_encoder.Encoder, layers: int, dtype: str, rows: Tokens) -> jax.Array:
    """float32[n, T, E]: what the lower layers make of the rows."""
    lower = dual_encoder.with_layers(encoder, slice(layers))
    _, kept = dual_encoder.hidden_states(lower, rows, dtype=jnp.dtype(dtype), keep=True)
    return reshard(kept[-1].astype(jnp.float32), RULES.used((None, None, None)))


def _fingerprint(model: DualEncoder, tower: Tower) -> str:
    """A hash of a tower's frozen layers: of their weights, and of all that says how they compute."""
    config = model.config
    described = dual_encoder.abstract(_with_layers_frozen_alone(config)).tower(tower)
    digest = hashlib.sha256(repr((asdict(config.backbone), config.dtype, config.frozen.layers)).encode())
    for (path, leaf), weights in zip(
        jax.tree_util.tree_leaves_with_path(described), jax.tree.leaves(model.tower(tower)), strict=True
    ):
        if leaf.group == "frozen" or leaf.frozen_layers:
            kept = weights if leaf.group == "frozen" else weights[: leaf.frozen_layers]
            digest.update(f"{leaf_name(path)} {kept.shape}".encode())
            digest.update(np.ascontiguousarray(np.asarray(kept)).tobytes())
    return digest.hexdigest()[:16]


def _tell_of_others(folder: Path, own: Collection[Path]) -> None:
    """Says on stderr what the states of other weights take: nobody else knows whether a run will ask for them again."""
    others = [path for path in folder.glob("*") if path not in own]
    size = sum(file.stat().st_size for path in others for file in path.rglob("[!.]*.npy"))
    if size >= _LARGE:
        said = f"{size / 2**30:.1f} GiB of other frozen weights' states ({len(others)}) lie there too"
        print(f"{folder}: {said}; what is removed is computed again when a run needs it", file=sys.stderr)


def _with_layers_frozen_alone(config: DualEncoderConfig) -> DualEncoderConfig:
    """Towers that are frozen as a whole have trained upper layers from an earlier run."""
    return replace(config, frozen=replace(config.frozen, towers=()))


def _places(texts: Tokens | PackedTokens) -> tuple[np.ndarray, np.ndarray]:
    """(where each text starts among all token slots, its tokens), of the texts that have any."""
    match texts:
        case Tokens(ids=ids, length=length):
            start = np.arange(len(ids)) * ids.shape[1]
        case PackedTokens(ids=ids, first=first, length=length):
            start = first + np.arange(len(ids))[:, None] * (ids.shape[1] * ids.shape[2])
    start, length = start.reshape(-1), length.reshape(-1)
    return start[length > 0], length[length > 0]


def _keys(ids: np.ndarray, length: np.ndarray) -> np.ndarray:
    """uint64[n]: a hash of each text's tokens, whatever stands in the slots behind them."""
    keys = mix(length, np.zeros(1, np.int64))
    for place in range(ids.shape[1]):
        keys = np.where(place < length, mix(keys, ids[:, place]), keys)
    return keys
