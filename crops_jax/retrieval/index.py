"""Search over document vectors: exact top-k, the reference, and ScaNN, which one would use for serving.

Shape letters: n queries, C corpus documents, D embedding, k results. Vectors are L2-normalised, so the dot product is
the cosine. Equal scores are ordered by smaller id throughout the exact path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax import P

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import InputError
from crops_jax.logs.tables import write_table
from crops_jax.progress import progress, stage
from crops_jax.retrieval.config import IndexConfig
from crops_jax.retrieval.corpus import ID_TABLE
from crops_jax.retrieval.ranking import NO_ITEM, check_ids, positions_of
from crops_jax.retrieval.vectors import Vectors

SCANN_MINIMUM = 16  # ScaNN raises on fewer points
_QUERY_TILE = 256
_DOC_TILE = 16_384


class ExactIndex:
    """Exact search over C documents that lie on the devices, split over all of them."""

    def __init__(self, vectors: np.ndarray, ids: np.ndarray, most: int = 0):
        """Places float32[C, D] vectors with ascending int64[C] ids.

        Args:
          most: documents of the largest of several corpora whose results are merged: equal vectors then have equal
            scores in all of them, because products of one shape are computed.

        Raises:
          InputError: NaN or infinity in the vectors, or bad ids (`ranking.check_ids`).
        """
        _check_vectors(vectors, ids, "exact search")
        devices = jax.device_count()
        rows = -(-max(len(ids), 1) // devices)
        self._ids, self._tile = ids, min(_DOC_TILE, -(-max(len(ids), most, 1) // devices))
        padded = np.zeros((-(-rows // self._tile) * self._tile * devices, vectors.shape[1]), np.float32)
        padded[: len(ids)] = vectors
        self._mesh = jax.make_mesh((devices,), ("corpus",))
        self._most = len(padded) // devices
        with jax.set_mesh(self._mesh):
            self._corpus = jax.device_put(padded, P("corpus", None))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k largest dot products of float32[n, D] queries, exactly: (int64[n, k] ids, float32[n, k] scores).

        Each device keeps a running top-k over tiles of its part, so that no n x C array is made, and the parts'
        winners are merged in corpus order: equal scores stay ordered by id. Rows are filled up with `NO_ITEM` and
        -inf when C < k.

        Raises:
          InputError: NaN or infinity in the queries.
        """
        _check_finite(queries, "query vectors")
        found = np.full((len(queries), k), NO_ITEM)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        size, take = jnp.int32(len(self._ids)), min(k, self._most)
        with jax.set_mesh(self._mesh):
            for start in progress(range(0, len(queries), _QUERY_TILE), "exact search", unit="tile"):
                part = np.zeros((_QUERY_TILE, queries.shape[1]), np.float32)  # one shape, one compilation
                count = min(_QUERY_TILE, len(queries) - start)
                part[:count] = queries[start : start + count]
                value, place = _sharded_top_k(part, self._corpus, size, self._tile, take)
                value, place = np.asarray(value)[:count, :k], np.asarray(place)[:count, :k]
                real, width = value > -np.inf, value.shape[1]
                found[start : start + count, :width] = np.where(real, self._ids[np.where(real, place, 0)], NO_ITEM)
                scores[start : start + count, :width] = value
        return found, scores


@partial(jax.jit, static_argnums=(3, 4))
def _sharded_top_k(queries: jax.Array, corpus: jax.Array, size: jax.Array, tile: int, take: int):
    """(float32[n, take * devices or less], int32[...] corpus rows), best first, over the whole corpus."""
    split = jax.shard_map(
        partial(_local_top_k, tile=tile, take=take),
        in_specs=(P(None, None), P("corpus", None), P()),
        out_specs=(P(None, "corpus"), P(None, "corpus")),
    )
    value, place = (jax.reshard(x, P(None, None)) for x in split(jax.reshard(queries, P(None, None)), corpus, size))
    value, order = jax.lax.top_k(value, value.shape[1])  # of equal values the first stays first: the smaller id
    return value, jnp.take_along_axis(place, order, axis=1)


def _local_top_k(queries: jax.Array, part: jax.Array, size: jax.Array, *, tile: int, take: int):
    """The running top-k of one device's part of the corpus; rows at or beyond `size` are padding."""
    first = jax.lax.axis_index("corpus").astype(jnp.int32) * part.shape[0]

    def step(best: tuple[jax.Array, jax.Array], numbered: tuple[jax.Array, jax.Array]):
        index, rows = numbered
        place = first + index * tile + jnp.arange(tile, dtype=jnp.int32)
        score = jnp.einsum("nd,cd->nc", queries, rows, precision=jax.lax.Precision.HIGHEST)
        score = jnp.where((place < size)[None, :], score, -jnp.inf)
        scores = jnp.concatenate([best[0], score], axis=1)  # earlier tiles first, so ties keep corpus order
        places = jnp.concatenate([best[1], jnp.broadcast_to(place[None, :], score.shape)], axis=1)
        value, order = jax.lax.top_k(scores, take)
        return (value, jnp.take_along_axis(places, order, axis=1)), None

    tiles = part.reshape(-1, tile, part.shape[1])
    empty = (jnp.full((queries.shape[0], take), -jnp.inf), jnp.zeros((queries.shape[0], take), jnp.int32))
    empty = jax.tree.map(lambda x: jax.lax.pcast(x, "corpus", to="varying"), empty)
    best, _ = jax.lax.scan(step, empty, (jnp.arange(tiles.shape[0], dtype=jnp.int32), tiles))
    return best


class Exact(Protocol):
    """Exact search by vectors."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `ExactIndex.search`."""
        ...


class Rows(Protocol):
    """float32[C, D] that is read by rows: an array, or `blocks.MappedRows`."""

    shape: tuple[int, ...]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """float32[m, D] of int[m] rows."""
        ...


class DenseSearcher:
    """A `ranking.Searcher` by exact search over document vectors."""

    def __init__(
        self,
        ids: np.ndarray,
        vectors: Rows,
        exact: Exact,
        encode_queries: Callable[[Sequence[str]], np.ndarray],
        blocks: Callable[[], Iterable[Vectors]],
    ):
        """Rising `ids` int64[C] with the vectors of each, searched by `exact`; `blocks` gives them all, part by part.

        `encode_queries` gives float32[n, D].
        """
        self.ids, self.exact, self.blocks = ids, exact, blocks
        self._vectors, self._encode_queries, self._known = vectors, encode_queries, {}

    @classmethod
    def in_memory(
        cls, ids: np.ndarray, vectors: np.ndarray, encode_queries: Callable[[Sequence[str]], np.ndarray]
    ) -> DenseSearcher:
        """Over `ids` int64[C] in any order with their `vectors` float32[C, D]."""
        ids, vectors = _by_id(ids, vectors, "document vectors")
        return cls(ids, vectors, ExactIndex(vectors, ids), encode_queries, lambda: [Vectors(ids, vectors)])

    def encode(self, queries: Sequence[str]) -> np.ndarray:
        """float32[n, D]; each distinct query string is encoded once in this searcher's life."""
        new = [q for q in dict.fromkeys(queries) if q not in self._known]
        if new:
            self._known.update(zip(new, np.asarray(self._encode_queries(new), np.float32), strict=True))
        return (
            np.stack([self._known[q] for q in queries])
            if queries
            else np.zeros((0, self._vectors.shape[1]), np.float32)
        )

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, k], float32[n, k]) as `ranking.Searcher.search`."""
        return self.exact.search(self.encode(queries), k)

    def score(self, queries: Sequence[str], item_ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Cosines with given items, as `ranking.Searcher.score`."""
        found = []
        for query, wanted in zip(self.encode(queries), item_ids, strict=True):
            place = positions_of(self.ids, np.asarray(wanted, np.int64))
            found.append(np.where(place >= 0, self._vectors[place] @ query, -np.inf).astype(np.float32))
        return found


class ScannIndex:
    """A loaded ScaNN index and the ids of its rows."""

    def __init__(self, searcher: Any, ids: np.ndarray, width: int, config: IndexConfig):
        self._searcher, self.ids, self._width, self._config = searcher, ids, width, config
        self._told = False

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, k] ids, float32[n, k] scores) for float32[n, D]; approximate, but k documents wherever there are k.

        At least 2k candidates are reordered, whatever `reorder` says: the hash orders the last of k badly. A query
        whose leaves hold fewer than k documents is searched again in twice as many; the first time that is told on
        stderr. Rows are filled up with `NO_ITEM` and -inf when C < k.

        Raises:
          InputError: NaN in the queries, which would abort the process, vectors of another width, or documents that no
            leaf holds.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self._width:
            raise InputError("query vectors", f"shape {queries.shape}, the index holds vectors of {self._width}")
        _check_finite(queries, "query vectors")
        count = min(k, len(self.ids))
        leaves, most = _leaves(len(self.ids), self._config)
        place, score = self._searched(queries, count, leaves)
        while len(short := np.flatnonzero(np.isneginf(score).any(axis=1))) and leaves < most:
            self._tell(len(short), len(queries), k, leaves)
            leaves = min(2 * leaves, most)
            place[short], score[short] = self._searched(queries[short], count, leaves)
        if len(short):
            raise InputError("ScaNN index", f"fewer than {count} documents in all {most} leaves; build it again")
        found = np.where(np.isneginf(score), NO_ITEM, self.ids[place])
        missing = ((0, 0), (0, k - count))
        return (np.pad(found, missing, constant_values=NO_ITEM), np.pad(score, missing, constant_values=-np.inf))

    def _searched(self, queries: np.ndarray, count: int, leaves: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, count] rows of the corpus, float32[n, count] scores, -inf where nothing was found)."""
        tree = _kind(len(self.ids), self._config) == "tree"
        place, score = self._searcher.search_batched_parallel(
            queries,
            final_num_neighbors=count,
            pre_reorder_num_neighbors=min(max(2 * count, self._config.reorder), len(self.ids)) if tree else None,
            leaves_to_search=leaves if tree else None,
        )
        score = np.asarray(score, np.float32)
        return np.clip(np.asarray(place, np.int64), 0, len(self.ids) - 1), np.where(np.isfinite(score), score, -np.inf)

    def _tell(self, short: int, queries: int, k: int, leaves: int) -> None:
        if not self._told:
            said = f"{short} of {queries} queries found fewer than {k} documents in {leaves} leaves of the ScaNN index"
            mend = "they are searched again in more; a larger index.leaves_to_search, or fewer index.leaves, is quicker"
            print(f"warning: {said}; {mend}", file=sys.stderr)
        self._told = True


def write_index(
    target: str | Path,
    ids: np.ndarray,
    vectors: np.ndarray,
    config: IndexConfig,
    inputs: Mapping[str, str | Path] | None = None,
    names: pa.Table | None = None,
) -> None:
    """Builds a ScaNN index of int64[C] ids and float32[C, D] unit vectors and writes the artefact "index".

    The ids lie in a file of their own: ScaNN would pickle them. `names` is the corpus' id table, where the platform has
    other ids than these (`corpus.Corpus.id_table`).

    Raises:
      InputError: NaN, fewer than 16 documents, vectors that are not of unit length, bad ids, or no ScaNN installed.
    """
    ids, vectors = _by_id(ids, vectors, "ScaNN index", minimum=SCANN_MINIMUM, unit=True)
    with write_folder(target, kind="index", config=asdict(config), inputs=inputs) as folder:
        with stage(f"ScaNN: indexing {len(ids)} documents"):
            searcher = _build_scann(vectors, config)
        searcher.serialize(str(folder.folder("scann")), relative_path=True)
        np.save(folder / "ids.npy", ids, allow_pickle=False)
        if names is not None:
            write_table(names.schema, names, folder / ID_TABLE)
        folder.counts.update(documents=len(ids), width=vectors.shape[1], kind=_kind(len(ids), config))


def open_scann(path: Path, manifest: Mapping[str, Any]) -> ScannIndex:
    """The index in a folder, all of whose bytes were checked.

    Raises:
      InputError: ScaNN is not installed.
    """
    ids = np.load(path / "ids.npy", allow_pickle=False)
    searcher = _scann().scann_ops_pybind.load_searcher(str((path / "scann").resolve()))
    return ScannIndex(searcher, ids, manifest["counts"]["width"], IndexConfig(**manifest["config"]))


def compare(index: Exact, documents: int, exact: Exact, queries: np.ndarray, k: int) -> dict[str, float | int]:
    """ScaNN beside the exact search: recall of its top-k against the exact one, and queries a second of both.

    Both run once before they are timed; queries come in one batch.

    Args:
      documents: C.
    """
    exact_rate, (truth, _) = _timed(lambda: exact.search(queries, k), len(queries))
    scann_rate, (found, _) = _timed(lambda: index.search(queries, k), len(queries))
    hits = [
        len(set(t[t != NO_ITEM]) & set(f)) / max((t != NO_ITEM).sum(), 1) for t, f in zip(truth, found, strict=True)
    ]
    return {
        "recall_against_exact": float(np.mean(hits)),
        "k": k,
        "queries": len(queries),
        "documents": documents,
        "exact_queries_per_s": exact_rate,
        "scann_queries_per_s": scann_rate,
    }


def _timed(run: Callable[[], Any], count: int) -> tuple[float, Any]:
    run()
    start = perf_counter()
    result = run()
    return count / (perf_counter() - start), result


def _scann() -> Any:
    try:
        import scann
    except ImportError:
        raise InputError("scann", "is not installed; `pip install 'crops-jax[serve]'` brings it") from None
    except Exception as error:  # where there is a TensorFlow, ScaNN loads operators into it: any error of it may come
        said = str(error).splitlines()[0]
        mend = "`pip install 'scann[tf]'` brings the TensorFlow that it was built for; without any it loads too"
        raise InputError("scann", f"does not load beside the installed TensorFlow ({said}); {mend}") from None
    return scann


def _kind(documents: int, config: IndexConfig) -> str:
    return "brute force" if documents < config.brute_force_below else "tree"


def _leaves(documents: int, config: IndexConfig) -> tuple[int, int]:
    """(partitions that a query looks into, partitions of the tree)."""
    leaves = config.leaves or round(documents**0.5)
    return min(config.leaves_to_search or max(3 * leaves // 10, 1), leaves), leaves


def _build_scann(vectors: np.ndarray, config: IndexConfig) -> Any:
    count = len(vectors)
    builder = _scann().scann_ops_pybind.builder(vectors, min(100, count), "dot_product")
    if _kind(count, config) == "brute force":
        return builder.score_brute_force().build()
    searched, leaves = _leaves(count, config)
    sample = min(count, config.training_sample)
    if leaves > sample:
        raise InputError("index.leaves", f"{leaves} partitions, and {sample} documents that they are learned from; "
                         "give fewer, or 0 for the square root of the documents")  # fmt: skip
    builder = builder.tree(leaves, searched, training_sample_size=sample)
    builder = builder.score_ah(
        config.dimensions_per_block,
        anisotropic_quantization_threshold=config.anisotropic_threshold,
        training_sample_size=sample,
    )
    return builder.reorder(min(config.reorder, count)).build()


def _by_id(
    ids: np.ndarray, vectors: np.ndarray, place: str, *, minimum: int = 0, unit: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Both in ascending order of id, checked."""
    order = np.argsort(ids, kind="stable")
    same = vectors.ndim == 2 and len(vectors) == len(ids)
    ids = np.asarray(ids, np.int64)[order]
    vectors = np.ascontiguousarray(vectors[order] if same else vectors, np.float32)
    _check_vectors(vectors, ids, place, minimum=minimum, unit=unit)
    return ids, vectors


def _check_vectors(vectors: np.ndarray, ids: np.ndarray, place: str, *, minimum: int = 0, unit: bool = False) -> None:
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise InputError(place, f"vectors of shape {vectors.shape} for {len(ids)} ids")
    check_ids(ids, place)
    if len(ids) < minimum:
        raise InputError(
            place, f"{len(ids)} documents; ScaNN needs at least {minimum}: --evaluate.scann=False searches exactly"
        )
    _check_finite(vectors, place)
    if unit:
        off = np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-2
        if off.any():
            raise InputError(place, f"{int(off.sum())} vectors are not of unit length, first in row {np.argmax(off)}")


def _check_finite(vectors: np.ndarray, place: str) -> None:
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InputError(
            place, f"{int(bad.sum())} of {len(bad)} vectors hold NaN or infinity, first row {np.argmax(bad)}"
        )
