"""Semantic ids of a dictionary of queries, and the queries related to a vector, found by them.

Shapes: N queries, D numbers of a vector, L codes of an id, n vectors that are looked up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import MANIFEST, file_facts, fingerprint, own_files, read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.logs.tables import read_table, write_table
from crops_jax.suggestions import rq_k_means, rq_vae
from crops_jax.suggestions.config import QuantiserConfig, RQKMeansConfig, RQVAEConfig
from crops_jax.suggestions.nearest import unit

KIND = "semantic_index"
_QUERIES = pa.schema([pa.field("query", pa.string(), False)])


class Quantiser(Protocol):
    """What codes vectors."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level of an id."""
        ...

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """int32[N, L] of float32[N, D]."""
        ...

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """float32[N, D] of int32[N, L]."""
        ...

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name."""
        ...


@dataclass(frozen=True)
class SemanticReport:
    """How well the ids tell the queries apart."""

    queries: int
    utilisation: tuple[float, ...]  # share of each level's codes that some query has
    distinct_ids: int
    unique_share: float  # queries whose id no other query has
    collisions: int  # queries that share their id with another one
    largest_group: int  # most queries of one id
    reconstruction_error: float  # mean squared distance of a vector to what its id says
    relative_error: float  # that, beside the mean squared distance to the mean vector


@dataclass(frozen=True)
class SemanticIndex:
    """A coded dictionary. `build_index` makes it, `load_index` reads it."""

    config: QuantiserConfig
    encoder: str  # hash of the encoder that made the vectors (`encoder_hash`)
    quantiser: Quantiser
    queries: tuple[str, ...]  # N
    vectors: np.ndarray  # float32[N, D]
    codes: np.ndarray  # int32[N, L]

    def related(self, vectors: np.ndarray, k: int) -> list[list[str]]:
        """The k queries related to each vector, the nearest first (`lookup`)."""
        return [[self.queries[row] for row in found if row >= 0] for found in self.lookup(vectors, k).tolist()]

    def lookup(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """int64[n, k] rows of the queries related to float32[n, D] vectors; -1 where the dictionary has no more.

        Queries with the vector's id come first into question; where they are fewer than k, the last code of the id is
        dropped, and again, until there are k or no code is left. Of these the k with the highest cosine, in its order
        (ties: the lower row).

        Raises:
          InputError: the vectors have another width, or are not finite.
        """
        vectors = checked_vectors(vectors, "vectors to look up", self.vectors.shape[1])
        keys, order = self._inverted
        wanted = _keys(self.quantiser.codes(vectors), self.quantiser.sizes)
        start, stop = np.zeros(len(vectors), np.int64), np.full(len(vectors), len(keys))
        below = 1  # ids that begin with the same codes
        open_rows = np.ones(len(vectors), bool)
        for size in (1, *self.quantiser.sizes[::-1]):
            below *= size
            first = wanted // below * below
            low, high = np.searchsorted(keys, first), np.searchsorted(keys, first + below)
            enough = open_rows & (high - low >= k)
            start[enough], stop[enough] = low[enough], high[enough]
            open_rows &= ~enough
        found = np.full((len(vectors), k), -1, np.int64)
        for i, (low, high) in enumerate(zip(start, stop, strict=True)):
            rows = np.sort(order[low:high])
            cosine = self._unit[rows] @ unit(vectors[i : i + 1])[0]
            best = rows[np.argsort(-cosine, kind="stable")[:k]]
            found[i, : len(best)] = best
        return found

    @cached_property
    def _unit(self) -> np.ndarray:
        """float32[N, D] of length one: where the encoder gives such vectors, these, and no copy."""
        length = np.linalg.norm(self.vectors, axis=1)
        return self.vectors if np.allclose(length, 1, rtol=0, atol=1e-5) else unit(self.vectors)

    @cached_property
    def _inverted(self) -> tuple[np.ndarray, np.ndarray]:
        """The inverted index: ids as numbers in rising order, and the row of each."""
        keys = _keys(self.codes, self.quantiser.sizes)
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def report(self) -> SemanticReport:
        """Utilisation, collisions and errors of the dictionary."""
        return report_of(self.quantiser, self.vectors, self.codes)

    def save(self, target: str | Path, inputs: Mapping[str, str | Path] | None = None) -> None:
        """Writes the index as an artefact: codebooks, vectors, codes, queries, the encoder's hash and the report."""
        config = index_config(self.config, self.encoder)
        with write_folder(target, kind=KIND, config=config, inputs=inputs) as out:
            named = {name: np.ascontiguousarray(a) for name, a in self.quantiser.tensors().items()}
            save_file(named, out / "quantiser.safetensors")
            save_file({"vectors": self.vectors, "codes": self.codes}, out / "dictionary.safetensors")
            write_table(_QUERIES, {"query": list(self.queries)}, out / "queries.parquet")
            out.counts.update(asdict(self.report()))


def index_config(config: QuantiserConfig, encoder: str) -> dict[str, Any]:
    """What the manifest of an index says that it was made with; `encoder` is the hash of the encoder."""
    return {"type": type(config).__name__, **asdict(config), "encoder": encoder}


def build_index(queries: Sequence[str], vectors: np.ndarray, encoder: str, config: QuantiserConfig) -> SemanticIndex:
    """Learns codes from the vectors of a dictionary, and codes it.

    Args:
      queries: N different texts.
      vectors: float32[N, D], as the encoder gives them.
      encoder: its hash (`encoder_hash`), which says later whether a vector belongs to these codes.

    Raises:
      InputError: there are no queries, one is there twice, the vectors are not theirs or not finite, or the config does
        not fit their width.
    """
    if len(queries) == 0 or len(queries) != len(vectors) or len({*queries}) != len(queries):
        problem = f"{len(queries)} queries, {len({*queries})} different ones, {len(vectors)} vectors"
        raise InputError("semantic index", f"{problem}: every query is needed once, with its vector")
    vectors = checked_vectors(vectors, "vectors of the dictionary")
    quantiser, codes = learn_codes(vectors, config)
    return SemanticIndex(config, encoder, quantiser, tuple(queries), vectors, codes)


def learn_codes(vectors: np.ndarray, config: QuantiserConfig) -> tuple[Quantiser, np.ndarray]:
    """(what codes vectors, int32[N, L] codes of float32[N, D], from which it is learned).

    Raises:
      InputError: the config does not fit the vectors' width.
    """
    match config:
        case RQVAEConfig():
            quantiser, codes = rq_vae.learn(vectors, config)
        case RQKMeansConfig():
            quantiser, codes = rq_k_means.learn(vectors, config)
    return quantiser, codes.astype(np.int32)


def report_of(quantiser: Quantiser, vectors: np.ndarray, codes: np.ndarray) -> SemanticReport:
    """How well int32[N, L] codes tell float32[N, D] vectors apart."""
    keys = _keys(codes, quantiser.sizes)
    _, many = np.unique(keys, return_counts=True)
    error = ((vectors - quantiser.reconstruct(codes)) ** 2).sum(1).mean()
    spread = ((vectors - vectors.mean(0)) ** 2).sum(1).mean()
    used = [len(np.unique(c)) / size for c, size in zip(codes.T, quantiser.sizes, strict=True)]
    alone = int((many == 1).sum())
    return SemanticReport(
        len(keys), tuple(used), len(many), alone / len(keys), len(keys) - alone, int(many.max()), float(error),
        float(error / spread) if spread > 0 else 0.0,
    )  # fmt: skip


def load_index(folder: str | Path, encoder: str) -> SemanticIndex:
    """An index that `SemanticIndex.save` wrote, for vectors of the encoder with that hash.

    Raises:
      InputError: the folder is damaged or holds something else, or its codes are those of another encoder.
    """
    folder = Path(folder)
    config = dict(read_manifest(folder, KIND)["config"])
    if config.pop("encoder") != encoder:
        raise InputError(
            str(folder),
            "its codes are of another encoder, whose vectors lie elsewhere; build the index again with this one",
        )
    verify(folder)
    kinds: dict[str, Any] = {"RQVAEConfig": (RQVAEConfig, rq_vae), "RQKMeansConfig": (RQKMeansConfig, rq_k_means)}
    kind, room = kinds[config.pop("type")]
    made_by = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in config.items()})
    try:
        tensors, dictionary = (load_file(folder / f"{name}.safetensors") for name in ("quantiser", "dictionary"))
    except SafetensorError as error:
        raise InputError(str(folder), f"cannot be read ({error}); build the index again") from None
    queries = read_table(folder / "queries.parquet")["query"].to_pylist()
    quantiser = room.from_tensors(tensors, made_by)
    return SemanticIndex(made_by, encoder, quantiser, tuple(queries), dictionary["vectors"], dictionary["codes"])


def encoder_hash(folder: str | Path) -> str:
    """The identity of an encoder: of an artefact its manifest, of any other folder the bytes of all its files.

    Raises:
      InputError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(str(folder), "no such folder of an encoder")
    if (folder / MANIFEST).exists():
        return fingerprint(folder)
    facts = [file_facts(path, folder) for path in own_files(folder)]
    return hashlib.sha256("\n".join(f"{f.path} {f.sha256}" for f in facts).encode()).hexdigest()


def enhanced(prefixes: np.ndarray, co_occurring: Sequence[np.ndarray], weight: float = 0.5) -> np.ndarray:
    """float32[n, D]: e* = (1 - w) e + w mean of the vectors of the queries that co-occur with a prefix.

    Args:
      prefixes: float32[n, D].
      co_occurring: for each prefix float32[m, D]; where m is 0, e* = e.
    """
    means = [own.mean(0) if len(own) else prefix for prefix, own in zip(prefixes, co_occurring, strict=True)]
    return ((1 - weight) * prefixes + weight * np.stack(means)).astype(np.float32)


def checked_vectors(vectors: np.ndarray, place: str, width: int | None = None) -> np.ndarray:
    """The vectors as float32. Raises InputError where they are no finite float[N, D]."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or (width is not None and vectors.shape[1] != width):
        wanted = "one row for each text" if width is None else f"rows of {width} numbers"
        raise InputError(place, f"have the shape {vectors.shape}, not {wanted}")
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(1))):
        raise InputError(place, f"{len(bad)} are not finite, the first is row {bad[0]}; the encoder is damaged")
    return vectors


def _keys(codes: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """int64[N]: ids as numbers, the first code the most significant."""
    key = np.zeros(len(codes), np.int64)
    for column, size in zip(codes.T, sizes, strict=True):
        key = key * size + column
    return key
