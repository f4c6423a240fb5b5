"""Which queries one retriever answers better than another, and worse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.errors import InputError


def searches(folder: Path, metric: str) -> pa.Table:
    """The CT and QR events of an eval folder's per_query.parquet, with their values of one metric."""
    table = pq.read_table(folder / "per_query.parquet")
    wanted = pc.and_(pc.is_in(table["set"], pa.array(["CT", "QR"])), pc.equal(table["metric"], metric))
    return table.filter(wanted)


def choose(ours: Path, baseline: Path, metric: str, gains: int = 3, losses: int = 1) -> list[tuple[str, float]]:
    """(query, gain) of the queries whose CT and QR events gain most, then of those that lose most.

    Args:
      ours: eval folder of a method.
      baseline: of the one that it is compared with.
      metric: of per_query.parquet, such as "recall@10".

    Raises:
      InputError: the two were evaluated on different events.
    """
    found = [searches(folder, metric) for folder in (ours, baseline)]
    if not found[0]["query"].equals(found[1]["query"]):
        raise InputError(str(ours), f"was evaluated on other events than {baseline}")
    queries = found[0]["query"].to_numpy(zero_copy_only=False)
    difference = found[0]["value"].to_numpy(zero_copy_only=False) - found[1]["value"].to_numpy(zero_copy_only=False)
    names, of_event = np.unique(queries, return_inverse=True)
    gain = np.bincount(of_event, np.nan_to_num(difference.astype(float)))
    order = np.lexsort((names, -gain))
    best = [i for i in order[:gains] if gain[i] > 0]
    worst = [i for i in order[::-1][:losses] if gain[i] < 0]
    return [(str(names[i]), float(gain[i])) for i in (*best, *worst)]
