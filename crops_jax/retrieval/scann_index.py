"""ScaNN: approximate search over document vectors, which one would use for serving.

Shape letters as in `retrieval.exact`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import InputError, brought_by
from crops_jax.logs.tables import write_table
from crops_jax.progress import stage
from crops_jax.retrieval.config import IndexConfig
from crops_jax.retrieval.corpus import ID_TABLE
from crops_jax.retrieval.exact import Exact
from crops_jax.retrieval.ranking import NO_ITEM
from crops_jax.retrieval.vectors import by_id, check_finite

_MINIMUM = 16  # ScaNN raises on fewer points


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
        check_finite(queries, "query vectors")
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
    ids, vectors = by_id(ids, vectors, "ScaNN index", unit=True)
    if len(ids) < _MINIMUM:
        told = f"{len(ids)} documents; ScaNN needs at least {_MINIMUM}: --evaluate.scann=False searches exactly"
        raise InputError("ScaNN index", told)
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
        raise InputError("scann", f"is not installed; {brought_by('serve')}") from None
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
