"""The World: what exists outside any platform, of which the session simulator shows users a part.

A world holds items, hidden items (relevant to somebody, but not on the platform), query strings, intents (what a
user wants), how intents are expressed as queries, and graded relevance. `simulate` runs over any World; it does not
know whether the texts were written here (synthetic) or by people (a judged collection).

Shape letters: C corpus items, Q query strings, I intents.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from crops_jax.logs.schema import arrow_schema
from crops_jax.logs.sorted_rows import begins


@dataclass(frozen=True)
class World:
    """Rows of the sparse matrices are sorted by column; grades are larger for more relevant items."""

    name: str
    complete: bool  # True: an absent grade means irrelevant; False: an absent grade means nobody judged it
    items: pa.Table  # C rows, schema ITEMS
    hidden: pa.Table  # schema HIDDEN: items of the outside world, not in the corpus
    queries: tuple[str, ...]  # Q
    intents: tuple[str, ...]  # I names
    popularity: np.ndarray  # float64[I], sums to 1: share of needs
    wanted: sp.csr_matrix  # [I, C] grade of an item for a user with that intent
    first: sp.csr_matrix  # [I, Q] rows sum to 1: what such a user types first
    refined: sp.csr_matrix  # [I, Q] weights of what such a user types next
    relevance: sp.csr_matrix  # [Q, C] grade of an item for a query
    judgments: pa.Table | None  # schema JUDGMENTS; None: simulate an annotation from the complete truth
    relevant_grade: float  # a grade at or above it counts as relevant
    counts: dict = field(default_factory=dict)  # what was kept and what was rejected while building

    @property
    def top_grade(self) -> float:
        """The largest grade in the world."""
        return float(max(self.wanted.data.max(initial=0.0), self.relevance.data.max(initial=0.0)))


HIDDEN = pa.schema(
    [
        *arrow_schema("items"),
        pa.field("intent", pa.string(), nullable=False),
        pa.field("queries", pa.list_(pa.string()), nullable=False),
    ]
)


def rows_to_one(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The matrix with each row divided by its sum; rows of zeros stay."""
    total = np.asarray(matrix.sum(1)).ravel()
    return sp.diags(np.divide(1.0, total, out=np.zeros(len(total)), where=total > 0)) @ matrix


def sorted_csr(rows: np.ndarray, cols: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """A CSR matrix with sorted columns in which a repeated (row, column) keeps its largest value."""
    order = np.lexsort((-np.asarray(values, np.float64), cols, rows))
    rows, cols, values = np.asarray(rows)[order], np.asarray(cols)[order], np.asarray(values)[order]
    keep = begins(rows, cols)
    matrix = sp.csr_matrix((values[keep].astype(np.float64), (rows[keep], cols[keep])), shape=shape)
    matrix.sort_indices()
    return matrix


def at_least(matrix: sp.csr_matrix, grade: float) -> sp.csr_matrix:
    """The entries of `matrix` that reach `grade`, as a 0/1 matrix: which pairs are relevant."""
    kept = matrix.tocoo()
    mask = kept.data >= grade
    return sp.csr_matrix((np.ones(mask.sum()), (kept.row[mask], kept.col[mask])), shape=matrix.shape)


class Lookup:
    """Values of a sparse matrix at many (row, column) pairs at once."""

    def __init__(self, matrix: sp.csr_matrix):
        coo = matrix.tocoo()
        key = coo.row.astype(np.int64) * matrix.shape[1] + coo.col
        order = np.argsort(key, kind="stable")
        self._key, self._value, self._width = key[order], coo.data[order].astype(np.float32), matrix.shape[1]

    def __call__(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """float32 of the broadcast shape; 0 where the matrix has no entry."""
        key = np.asarray(rows, np.int64) * self._width + cols
        if len(self._key) == 0:
            return np.zeros(key.shape, np.float32)
        place = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
        return np.where(self._key[place] == key, self._value[place], np.float32(0))


def draw_per_row(matrix: sp.csr_matrix, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One column for each entry of `rows`, drawn in proportion to that row's weights; -1 for an empty row."""
    start, stop = matrix.indptr[rows], matrix.indptr[np.asarray(rows) + 1]
    total = np.concatenate([[0.0], np.cumsum(matrix.data)])
    aim = total[start] + rng.random(len(rows)) * (total[stop] - total[start])
    place = np.clip(np.searchsorted(total, aim, side="right") - 1, start, np.maximum(stop - 1, start))
    found = matrix.indices[np.minimum(place, max(len(matrix.indices) - 1, 0))] if matrix.nnz else np.zeros_like(place)
    return np.where(stop > start, found, -1).astype(np.int64)


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """An independent random stream for each name, so that one stage's draws do not move another's."""
    words = [seed, *(int.from_bytes(str(n).encode(), "little") % (1 << 63) for n in names)]
    return np.random.default_rng(words)
