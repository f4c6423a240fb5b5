"""Scores pairs with theta, part by part, and keeps those that pass. A part that was scored is not scored again.

A part of pairs has the documents that it names beside it, joined by the engine: nobody holds the texts of all items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.engines import files
from crops_jax.engines.engine import PART
from crops_jax.errors import InputError
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.sorted_rows import begins
from crops_jax.mining.relevance import Relevance
from crops_jax.mining.work import Work
from crops_jax.progress import progress
from crops_jax.text.tokenizer import document_texts

if TYPE_CHECKING:
    from ibis.expr.types import Table

_QUERIES = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("query", "next_query")])
_DOCUMENTS = pa.schema(
    [pa.field("item_id", pa.int64(), nullable=False), *(pa.field(name, pa.string()) for name in TEXT_FIELDS)]
)


@dataclass(frozen=True)
class Scored:
    """Pairs above a threshold, as a table, and how many unique ones were scored and refused."""

    passed: Table
    scored: int
    refused: int


@dataclass(frozen=True)
class _Judged:
    """Values of the pairs of a part, which of them pass, and counts of unique pairs."""

    values: np.ndarray  # float32[n]
    passes: np.ndarray  # bool[n]
    scored: int
    refused: int


def relevant_documents(work: Work, name: str, pairs: str, items: Table, relevance: Relevance, alpha: float) -> Scored:
    """The rows of the stage `pairs` with theta > alpha, strictly, and their theta: as stage `name`.

    The stage has columns query and item_id, and is sorted by them; a pair may be in several rows.

    Raises:
      InputError: the relevance model gives a NaN, a value outside [0, 1] or a wrong number of scores.
    """
    documents = f"{name}_documents"
    work.write(documents, _DOCUMENTS, ("item_id",), _documents(work, pairs, items))

    def judge(path: Path, table: pa.Table) -> _Judged:
        query, item = table["query"].combine_chunks().dictionary_encode(), table["item_id"].to_numpy()
        code = query.indices.to_numpy(zero_copy_only=False)
        new = begins(code, item)
        queries, texts = query.dictionary.to_pylist(), _texts(work.folder(documents) / path.name, item[new])
        # Equal strings are one object: millions of pairs name thousands of queries.
        theta = relevance.scores([queries[i] for i in code[new]], texts) if len(item) else np.zeros(0, np.float32)
        theta = _checked(theta, int(new.sum()), "relevance.scores")
        passes = theta > np.float32(alpha)
        rows = np.cumsum(new) - 1
        return _Judged(theta[rows], passes[rows], len(theta), int((~passes).sum()))

    return _score(work, name, pairs, "theta", judge)


def similar_queries(work: Work, name: str, pairs: Table, relevance: Relevance, least: float) -> Scored:
    """(query, next_query, similarity) of the unique pairs with similarity >= least, as stage `name`."""
    asked = pairs.select("query", "next_query").distinct()
    asked = asked.mutate(**{PART: work.part_of(asked.query)})
    work.write(f"{name}_pairs", _QUERIES, tuple(_QUERIES.names), asked)

    def judge(_: Path, table: pa.Table) -> _Judged:
        a, b = _shared_strings(table["query"]), _shared_strings(table["next_query"])
        similarity = relevance.query_similarity(a, b) if a else np.zeros(0, np.float32)
        similarity = _checked(similarity, len(a), "relevance.query_similarity", low=-1.0)
        passes = similarity >= np.float32(least)
        return _Judged(similarity, passes, len(a), int((~passes).sum()))

    return _score(work, name, f"{name}_pairs", "similarity", judge)


def _score(work: Work, name: str, pairs: str, column: str, judge: Callable[[Path, pa.Table], _Judged]) -> Scored:
    folder = work.folder(name)
    for path in progress(work.parts(pairs), f"{name}: parts", unit="part"):
        if (folder / path.name).exists():
            continue
        table = files.read(path)
        judged = judge(path, table)
        table = table.append_column(pa.field(column, pa.float32()), pa.array(judged.values, pa.float32()))
        counts = {"scored": str(judged.scored), "refused": str(judged.refused)}
        kept = table.filter(pa.array(judged.passes)).to_batches()
        files.write(kept, folder / path.name, table.schema.with_metadata(counts))
    told = [pq.read_schema(path).metadata for path in work.parts(name)]
    scored, refused = (sum(int(counts[key]) for counts in told) for key in (b"scored", b"refused"))
    return Scored(work.read(name), scored, refused)


def _documents(work: Work, pairs: str, items: Table) -> Table:
    """The items of each part of a stage, with their texts."""
    named = work.read(pairs)
    named = named.select("item_id", **{PART: work.part_of(named.query)}).distinct()
    return named.join(items.select("item_id", *TEXT_FIELDS), "item_id")


def _texts(documents: Path, items: np.ndarray) -> list[str]:
    """The document text of each item, of those in a part of documents."""
    table = files.read(documents)
    texts = document_texts({name: table[name] for name in TEXT_FIELDS}).to_pylist()
    return [texts[i] for i in np.searchsorted(table["item_id"].to_numpy(), items)]


def _checked(values: np.ndarray, count: int, place: str, low: float = 0.0) -> np.ndarray:
    # float32 throughout: against a float64 threshold, a score of exactly 0.6 would count as above 0.6.
    values = np.asarray(values, np.float32)
    if values.shape != (count,):
        raise InputError(place, f"gave an array of shape {values.shape} for {count} pairs")
    if np.isnan(values).any():
        raise InputError(place, f"gave NaN for {int(np.isnan(values).sum())} of {count} pairs")
    if count and (values.min() < low - 1e-3 or values.max() > 1 + 1e-3):
        raise InputError(place, f"gave values in [{values.min()}, {values.max()}], outside [{low:g}, 1]")
    return values


def _shared_strings(column: pa.ChunkedArray) -> list[str]:
    coded = column.combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    return [values[i] for i in coded.indices.to_numpy(zero_copy_only=False)]
