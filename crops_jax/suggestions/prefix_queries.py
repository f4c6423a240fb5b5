"""The queries that co-occur with a prefix, looked up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.artifacts.manifest import verify
from crops_jax.engines import files
from crops_jax.engines.table_rows import sort_rows
from crops_jax.logs.sorted_rows import begins
from crops_jax.suggestions.taken import queries_by

_ROWS = pa.schema({"prefix": pa.large_string(), "query": pa.large_string(), "score": pa.float64()})


class PrefixQueries:
    """Rows of `co_occurrence.PREFIX_QUERY` by their prefix.

    Building sorts the rows. A prefix is looked up in O(1), and costs its own rows.
    """

    def __init__(self, rows: pa.Table):
        """Takes rows in any order."""
        # In one piece each, a day's texts need offsets of 64 bits.
        rows = rows.select(tuple(_ROWS.names)).cast(_ROWS)
        rows = sort_rows(rows, [("prefix", "ascending"), ("query", "ascending")]).combine_chunks()
        prefixes = rows["prefix"].combine_chunks()
        starts = np.flatnonzero(begins(pc.rank(prefixes, tiebreaker="dense").to_numpy())) if len(rows) else []
        self._place = {prefix: n for n, prefix in enumerate(prefixes.take(pa.array(starts, pa.int64())).to_pylist())}
        self._bounds = [*starts, len(rows)]
        self._queries, self._scores = rows["query"].combine_chunks(), rows["score"].to_numpy()

    def of(self, prefix: str) -> tuple[list[str], np.ndarray]:
        """(n queries, float64[n] scores) of a prefix in its normal form, by their text; n is 0 for an unseen one."""
        if (place := self._place.get(prefix)) is None:
            return [], self._scores[:0]
        start, end = self._bounds[place], self._bounds[place + 1]
        return self._queries.slice(start, end - start).to_pylist(), self._scores[start:end]


def read_prefix_queries(mined: str | Path) -> pa.Table:
    """The rows of `co_occurrence.PREFIX_QUERY` in a folder of `mined_day.mine_suggestions`.

    Raises:
      InputError: the folder is another kind, not complete, or damaged.
    """
    verify(mined, "mined_suggestions", only=("prefix_query",))
    return pa.concat_tables([files.read(path) for path in files.part_files(Path(mined) / "prefix_query")])


def shown_by_one(prefix_query: pa.Table) -> dict[str, set[str]]:
    """request_id -> the queries that belong to the request's prefix because of this request alone.

    Args:
      prefix_query: rows of `co_occurrence.PREFIX_QUERY`.
    """
    rows = prefix_query.filter(pc.is_valid(prefix_query["only_request"]))
    return {request: set(queries) for request, queries in queries_by(rows, "only_request").items()}
