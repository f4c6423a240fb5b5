"""Texts -> unit vectors with a trained tower, spread over the mesh: in packed rows, or in length-sorted batches of a
few fixed shapes.

Shapes: n texts, T token slots, D embedding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from crops_jax.batch import IdFeatures, PackedTokens, Tokens
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder
from crops_jax.models.config import Tower
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.models.frozen_states import FrozenStates
from crops_jax.models.layers import FORWARD
from crops_jax.parallel import processes
from crops_jax.parallel.sharding import RULES, put_rows, reshard, rows_here
from crops_jax.progress import bar
from crops_jax.retrieval import packed
from crops_jax.retrieval.config import EncodeConfig

Rows = Tokens | IdFeatures
CallOfRows = tuple[Rows | PackedTokens, np.ndarray, np.ndarray]
"""What this process brings to a call, which texts are in it, which rows of the result are theirs."""

_AT_WORK = 2  # calls that the device has while the result of an earlier one is read


@partial(jax.jit, static_argnums=1)
def _encode(model: DualEncoder, tower: Tower, rows: Rows | PackedTokens) -> jax.Array:
    """The embeddings on every device, so that every process can read all of them."""
    return reshard(dual_encoder.encode(model, tower, rows, loop=FORWARD), RULES.used((None, None)))


def encode_rows(
    model: DualEncoder,
    tower: Tower,
    rows: Rows,
    config: EncodeConfig,
    mesh: Mesh,
    what: str = "encode",
    states: FrozenStates | None = None,
) -> np.ndarray:
    """float32[n, D]: the embeddings of `rows` (numpy leaves), in their order; zeros for a text without tokens.

    Every process of a run calls this with all rows and gets all embeddings.

    Args:
      states: what the model's frozen layers made of texts; it is taken from there, and what is missing is added.

    Raises:
      InputError: the batch does not divide over the mesh, or an embedding is not finite (row named).
    """
    RULES.check_rows(mesh, config.batch, "encode.batch")
    n = len(_length(rows))
    if not n:
        raise InputError(what, "there is nothing to encode")
    calls = _packed_calls if isinstance(rows, Tokens) and _packs(config, mesh) and rows.length.any() else _padded_calls
    given = calls(rows, config, mesh)
    if states is not None:
        states.prepare(model, tower, rows, mesh, what)
        given = ((states.fill(tower, batch), *theirs) for batch, *theirs in given)
    out: np.ndarray | None = None
    with bar(what, n, "row", processes.is_first()) as shown:
        for vectors, texts, places in _vectors(model, tower, given, mesh):
            out = np.zeros((n, vectors.shape[1]), np.float32) if out is None else out
            out[texts] = vectors[places]
            shown.update(len(texts))
    bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
    if len(bad):
        raise InputError(what, f"{len(bad)} embeddings are not finite, the first is row {bad[0]}; the model is damaged")
    return out


def _vectors(
    model: DualEncoder, tower: Tower, calls: Iterable[CallOfRows], mesh: Mesh
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The calls' results, with their texts and places; the device works while the host lays out the next call."""
    waiting: deque[tuple[jax.Array, np.ndarray, np.ndarray]] = deque()
    for batch, texts, places in calls:
        waiting.append((_encode(model, tower, put_rows(batch, mesh)), texts, places))
        if len(waiting) > _AT_WORK:
            vectors, *theirs = waiting.popleft()
            yield np.asarray(vectors), *theirs
    for vectors, *theirs in waiting:
        yield np.asarray(vectors), *theirs


def _packs(config: EncodeConfig, mesh: Mesh) -> bool:
    return config.packed == "yes" or (config.packed == "auto" and mesh.devices.flat[0].platform != "cpu")


def _padded_calls(rows: Rows, config: EncodeConfig, mesh: Mesh) -> Iterator[CallOfRows]:
    """Texts sorted by length, `encode.batch` of them a call, padded to a bucket."""
    order = np.argsort(_length(rows), kind="stable")
    here = rows_here(mesh, config.batch)
    for start in range(0, len(order), config.batch):
        chosen = order[start : start + config.batch]
        batch = _cut(_pad(jax.tree.map(lambda leaf, c=chosen: leaf[c], rows), config.batch), config.buckets)
        yield jax.tree.map(lambda leaf: leaf[here], batch), chosen, np.arange(len(chosen))


def _packed_calls(rows: Tokens, config: EncodeConfig, mesh: Mesh) -> Iterator[CallOfRows]:
    """Texts that share rows."""
    shards = RULES.ways(mesh, "batch")
    budget = config.batch * rows.ids.shape[1]
    for call in packed.calls(rows, config.row_tokens, budget, shards, rows_here(mesh, shards)):
        yield call.batch, call.texts, call.places


def query_encoder(
    model: DualEncoder,
    encode_queries: Callable[[Sequence[str]], tuple],
    config: EncodeConfig,
    mesh: Mesh,
    states: FrozenStates | None = None,
) -> Callable[[Sequence[str]], np.ndarray]:
    """queries -> float32[n, D] with the query tower; `states` as in `encode_rows`."""

    def run(queries: Sequence[str]) -> np.ndarray:
        return encode_rows(model, "query", as_rows(encode_queries(queries)), config, mesh, "encode queries", states)

    return run


def as_rows(encoded: tuple) -> Rows:
    """The batch leaf of what a tokeniser (ids, length) or an id hasher (ids, bags) returns."""
    return Tokens(*encoded) if hasattr(encoded, "length") else IdFeatures(*encoded)


def _length(rows: Rows) -> np.ndarray:
    return rows.length if isinstance(rows, Tokens) else np.zeros(len(rows.ids), np.int32)


def _pad(rows: Rows, batch: int) -> Rows:
    missing = batch - len(_length(rows))
    return jax.tree.map(lambda leaf: np.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1)), rows)


def _cut(rows: Rows, buckets: tuple[int, ...]) -> Rows:
    if not isinstance(rows, Tokens):
        return rows
    longest = int(rows.length.max())
    slots = min([b for b in buckets if b >= longest] + [rows.ids.shape[1]])
    return Tokens(rows.ids[:, :slots], rows.length)
