"""Negatives that are near their query: the nearest documents of a model, without the query's known positives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.errors import InputError
from crops_jax.mining.candidates import CANDIDATES_ORDER, CANDIDATES_SCHEMA
from crops_jax.progress import progress
from crops_jax.retrieval.ranking import NO_ITEM, top_k

MINED = "N1"
_QUERIES = 256  # ranked at a time: float32[256, C] scores


def clicks(candidates: Path) -> pa.Table:
    """The rows of P0 in candidates.parquet: what the recipes before CroPS know as positives."""
    table = pq.read_table(candidates, page_checksum_verification=True)
    table = table.filter(pc.equal(table["source"], "P0"))
    if not table.num_rows:
        raise InputError(str(candidates), "nobody clicked anything: there are no positives to train on")
    return table


def nearest_negatives(
    query: np.ndarray, docs: np.ndarray, ids: np.ndarray, known: list[np.ndarray], top: int
) -> list[np.ndarray]:
    """For each query the ids of its `top` nearest documents that are no known positives, nearest first.

    The search is exact; equal scores are ordered by smaller id. Costs n * C * D multiply-adds.

    Args:
      query: float32[n, D].
      docs: float32[C, D].
      ids: int64[C], ascending.
      known: n arrays of item ids.
    """
    most = max((len(items) for items in known), default=0)
    found: list[np.ndarray] = []
    for start in progress(range(0, len(query), _QUERIES), "nearest documents", unit="tile"):
        rows, _ = top_k(query[start : start + _QUERIES] @ docs.T, ids, min(top + most, len(ids)))
        for row, items in zip(rows, known[start : start + _QUERIES], strict=True):
            found.append(row[(row != NO_ITEM) & ~np.isin(row, items)][:top])
    return found


def write_candidates(positives: pa.Table, queries: list[str], negatives: list[np.ndarray], path: Path) -> None:
    """Clicks and mined negatives as one candidates table, sorted as the miners sort theirs."""
    counts = [len(items) for items in negatives]
    mined = pa.table({"query": np.repeat(np.array(queries, object), counts), "item_id": np.concatenate(negatives)})
    nulls = {name: pa.nulls(len(mined), CANDIDATES_SCHEMA.field(name).type)
             for name in ("request_id", "user_id", "theta", "evidence")}  # fmt: skip
    nulls["source"] = pa.array([MINED] * len(mined), pa.string())
    columns = {name: nulls[name] if name in nulls else mined[name] for name in CANDIDATES_SCHEMA.names}
    both = pa.concat_tables([positives.select(CANDIDATES_SCHEMA.names), pa.table(columns).cast(CANDIDATES_SCHEMA)])
    keys = both.select(CANDIDATES_ORDER)
    keys = keys.set_column(1, "request_id", pc.fill_null(keys["request_id"], ""))  # nulls first
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in CANDIDATES_ORDER])
    pq.write_table(both.take(order), path, compression="zstd", write_page_checksum=True)
