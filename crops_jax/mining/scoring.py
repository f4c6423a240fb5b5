"""Scores unique (query, item) pairs with theta and hands those that passed back to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from crops_jax.engines.duckdb import materialise
from crops_jax.errors import InputError
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.mining.relevance import Relevance
from crops_jax.text.tokenizer import document_text

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import Table


@dataclass(frozen=True)
class Scored:
    """Pairs above a threshold, as a table, and how many were scored and refused."""

    passed: Table
    scored: int
    refused: int


def relevant_documents(
    connection: Backend, name: str, pairs: Table, items: Table, relevance: Relevance, alpha: float
) -> Scored:
    """(query, item_id, theta) of the unique pairs with theta > alpha, strictly, as temporary table `name`.

    Raises:
      InputError: the relevance model gives a NaN, a value outside [0, 1] or a wrong number of scores.
    """
    asked = pairs.select("query", "item_id").distinct().order_by("query", "item_id").to_pyarrow()
    used = items.semi_join(pairs, "item_id").select("item_id", *TEXT_FIELDS).order_by("item_id").to_pyarrow()
    texts = [document_text(*fields) for fields in zip(*(used[f].to_pylist() for f in TEXT_FIELDS), strict=True)]
    places = np.searchsorted(used["item_id"].to_numpy(), asked["item_id"].to_numpy())
    queries = _shared_strings(asked["query"])
    theta = relevance.scores(queries, [texts[i] for i in places]) if queries else np.zeros(0, np.float32)
    theta = _checked(theta, len(queries), "relevance.scores")
    return _keep(connection, name, asked.append_column("theta", pa.array(theta)), theta > np.float32(alpha))


def similar_queries(connection: Backend, name: str, pairs: Table, relevance: Relevance, least: float) -> Scored:
    """(query, next_query, similarity) of the unique pairs with similarity >= least, as temporary table `name`."""
    asked = pairs.select("query", "next_query").distinct().order_by("query", "next_query").to_pyarrow()
    a, b = _shared_strings(asked["query"]), _shared_strings(asked["next_query"])
    similarity = relevance.query_similarity(a, b) if a else np.zeros(0, np.float32)
    similarity = _checked(similarity, len(a), "relevance.query_similarity", low=-1.0)
    table = asked.append_column("similarity", pa.array(similarity))
    return _keep(connection, name, table, similarity >= np.float32(least))


def _keep(connection: Backend, name: str, table: pa.Table, good: np.ndarray) -> Scored:
    import ibis

    passed = materialise(connection, name, ibis.memtable(table.filter(pa.array(good))))
    return Scored(passed, len(good), int((~good).sum()))


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
    """The column as a list in which equal strings are one object: millions of pairs name thousands of queries."""
    coded = column.combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    return [values[i] for i in coded.indices.to_numpy(zero_copy_only=False)]
