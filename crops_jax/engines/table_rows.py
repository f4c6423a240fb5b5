"""Rows of Arrow tables by their places, batch by batch.

`Table.take` and `Table.sort_by` join the chunks of every column first: they copy all texts for a few rows, and fail
above 2 GiB of text in a column, whose offsets have 32 bits. Here a table may be as large as a corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_AT_ONCE = 1 << 16  # rows of a chunk of what is taken


class TableRows:
    """A table whose rows are looked up many times; nothing is copied."""

    def __init__(self, table: pa.Table):
        """Takes a table of any chunks."""
        self._schema, self._batches = table.schema, table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def at(self, places: Sequence[int] | np.ndarray) -> pa.RecordBatch:
        """The rows of these places, in this order. They are copied, and no others.

        Raises:
          IndexError: a place is not within the table.
        """
        wanted = np.asarray(places, np.int64)
        if not len(wanted):
            return pa.RecordBatch.from_pylist([], self._schema)
        order = np.argsort(wanted, kind="stable")
        rising = wanted[order]
        if rising[0] < 0 or rising[-1] >= self._starts[-1]:
            raise IndexError(f"rows {rising[0]} to {rising[-1]} are asked for, of {self._starts[-1]}")
        cuts = np.searchsorted(rising, self._starts)
        taken = [
            self._batches[n].take(pa.array(rising[cuts[n] : cuts[n + 1]] - self._starts[n]))
            for n in np.flatnonzero(np.diff(cuts))
        ]
        return pa.concat_batches(taken).take(pa.array(np.argsort(order)))


def take_rows(table: pa.Table, places: Sequence[int] | np.ndarray) -> pa.Table:
    """As `Table.take`; the result has chunks of at most 65,536 rows.

    Raises:
      IndexError: a place is not within the table.
    """
    rows, places = TableRows(table), np.asarray(places, np.int64)
    starts = range(0, len(places), _AT_ONCE)
    return pa.Table.from_batches([rows.at(places[start : start + _AT_ONCE]) for start in starts], table.schema)


def sort_rows(table: pa.Table, by: str | Sequence[tuple[str, str]]) -> pa.Table:
    """As `Table.sort_by`, stable; the result has chunks of at most 65,536 rows."""
    keys = [(by, "ascending")] if isinstance(by, str) else list(by)
    return take_rows(table, pc.sort_indices(table, keys).to_numpy())
