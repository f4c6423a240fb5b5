"""Smaller vectors: the first numbers of each, as float32, int8 or single bits, and what they still find.

Shape letters: n queries, C documents, D embedding, w kept numbers, k results. A query keeps float32; it is cut and
brought back to length one as the documents are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np

from crops_jax.errors import InputError
from crops_jax.retrieval.metrics import recall_at_k
from crops_jax.retrieval.ranking import NO_ITEM, best_of, cosines, nearest, positions_of, top_k
from crops_jax.retrieval.testset_metrics import TestSet
from crops_jax.retrieval.vectors import Vectors
from crops_jax.stable_hash import sample

Form = Literal["float32", "int8", "binary", "binary, rescored"]
FORMS: tuple[Form, ...] = ("float32", "int8", "binary", "binary, rescored")
RESCORED = 4  # candidates that the bits give, for each result that is asked for
_SCORES = 1 << 24  # scores held at a time
QUERIES = 2048  # distinct queries that searches are compared on
_KEPT = 0.99  # of the whole vector's recall, from which on a width holds


def shortened(vectors: np.ndarray, width: int) -> np.ndarray:
    """float32[n, w]: the first `width` numbers of float32[n, D] as unit vectors; zeros stay zeros."""
    kept = np.ascontiguousarray(vectors[:, :width], np.float32)
    length = np.linalg.norm(kept, axis=1, keepdims=True)
    return kept / np.where(length > 0, length, 1)


class CompactIndex:
    """Search over vectors of w numbers in one of `FORMS`, exact within what the form can tell.

    - int8: each number is a step of its dimension's largest size / 127; the query is not rounded.
    - binary: the sign of each number; nearest are the documents with most signs as the query.
    - binary, rescored: the first `RESCORED` k of these, in the order that int8 gives them.
    """

    def __init__(self, vectors: np.ndarray, ids: np.ndarray, width: int, form: Form):
        """float32[C, D] unit vectors with rising int64[C] ids.

        Raises:
          InputError: `width` is above D or below 1.
        """
        if not 1 <= width <= vectors.shape[1]:
            raise InputError("compact vectors", f"width {width} of vectors of {vectors.shape[1]}")
        self._ids, self._width, self._form = ids, width, form
        kept = shortened(vectors, width)
        if form == "float32":
            self._floats = kept
        if form in ("int8", "binary, rescored"):
            self._scale = np.maximum(np.abs(kept).max(axis=0), 1e-12) / np.float32(127)
            self._codes = np.round(kept / self._scale).astype(np.int8)
        if form.startswith("binary"):
            self._bits = np.packbits(kept > 0, axis=1)

    @property
    def bytes(self) -> int:
        """Bytes of a vector that a search reads; a rescored search reads int8 of its candidates beside them."""
        whole = {"float32": 4 * self._width, "int8": self._width}
        return whole.get(self._form, -(-self._width // 8))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64[n, k] ids, float32[n, k] scores) for float32[n, D], as `exact.ExactIndex.search`.

        A score is the cosine, as far as the form can tell it; of bits alone, the share of equal signs.
        """
        queries = shortened(queries, self._width)
        step = max(1, _SCORES // max(len(self._ids), 1))
        parts = [self._part(queries[start : start + step], k) for start in range(0, len(queries), step)]
        found, scores = zip(*parts, strict=True) if parts else ([np.zeros((0, k), np.int64)], [np.zeros((0, k))])
        return np.concatenate(found), np.concatenate(scores).astype(np.float32)

    def _part(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        match self._form:
            case "float32":
                return nearest(queries, self._floats, self._ids, k)
            case "int8":
                return nearest(queries * self._scale, self._codes.astype(np.float32), self._ids, k)
            case "binary":
                return top_k(self._equal_signs(queries), self._ids, k)
            case _:
                return self._rescored(queries, k)

    def _equal_signs(self, queries: np.ndarray) -> np.ndarray:
        """float32[n, C]: the share of numbers whose sign is the query's."""
        bits = np.packbits(queries > 0, axis=1)
        apart = [np.bitwise_count(self._bits ^ row[None]).sum(axis=1, dtype=np.int32) for row in bits]
        return 1 - np.stack(apart).astype(np.float32) / self._width

    def _rescored(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        candidates, _ = top_k(self._equal_signs(queries), self._ids, RESCORED * k)
        found, scores = np.full((len(queries), k), NO_ITEM), np.full((len(queries), k), -np.inf, np.float32)
        for row, query in enumerate(queries * self._scale):
            of_row = np.sort(candidates[row][candidates[row] != NO_ITEM])
            cosine = cosines(self._codes[positions_of(self._ids, of_row)].astype(np.float32), query)
            found[row], scores[row] = (part[0] for part in top_k(cosine[None], of_row, k))
        return found, scores


def widths_to_try(width: int, trained: Sequence[int]) -> list[int]:
    """The whole width, those that were trained, and its half and quarter; widest first."""
    return sorted({width, *trained, *(w for w in (width // 2, width // 4) if w >= 8)}, reverse=True)


def compare_forms(
    blocks: Iterable[Vectors],
    encode: Callable[[Sequence[str]], np.ndarray],
    sets: Mapping[str, TestSet],
    trained: Sequence[int],
    k: int,
) -> dict[str, Any]:
    """Recall@k of every width and form on these sets; JSON-able.

    At most 2,048 queries are searched, chosen by a hash: how much a form loses against another needs no more.

    Args:
      blocks: the corpus; each block is compacted and searched alone, and the best of all are merged.
      encode: queries -> float32[n, D].
      trained: widths that training made vectors of (`models.config.DualEncoderConfig.widths`).
    """
    chosen = sample(sorted({query for found in sets.values() for query in found.queries}), QUERIES)
    row_of, encoded = {query: row for row, query in enumerate(chosen)}, encode(chosen)
    best: dict[tuple[int, Form], tuple[np.ndarray, np.ndarray]] = {}
    size: dict[tuple[int, Form], int] = {}
    for block in blocks:
        for width, form in product(widths_to_try(block.vectors.shape[1], trained), FORMS):
            index, tried = CompactIndex(block.vectors, block.ids, width, form), (width, form)
            before = [best[tried]] if tried in best else []
            best[tried], size[tried] = best_of([*before, index.search(encoded, k)], k), index.bytes
    rows = []
    for (width, form), (found, _) in best.items():
        recall = {name: _recall(found, events, row_of, k) for name, events in sets.items()}
        whole = width == encoded.shape[1]
        rows.append({"width": width, "form": form, "bytes": size[width, form], "trained": whole or width in trained}
                    | {"recall": recall})  # fmt: skip
    return {"k": k, "queries": len(chosen), "rows": rows}


def holds(compared: Mapping[str, Any]) -> list[int]:
    """The trained widths, as float32, that keep 99 % of the whole vector's recall on every set; widest first."""
    rows = [row for row in compared["rows"] if row["form"] == "float32" and row["trained"]]
    whole = rows[0]["recall"]
    kept = [row for row in rows if all(row["recall"][s] >= _KEPT * v for s, v in whole.items() if v is not None)]
    return [row["width"] for row in kept]


def _recall(found: np.ndarray, events: TestSet, row_of: Mapping[str, int], k: int) -> float | None:
    mine = [(row_of[q], truth) for q, truth in zip(events.queries, events.relevant, strict=True) if q in row_of]
    return recall_at_k([found[row] for row, _ in mine], [truth for _, truth in mine], k).mean
