"""Of sorted rows the first of each run of equal ones, however the rows are cut into batches."""

import pyarrow as pa
import pytest

from crops_jax.engines.files import columns, first_of_each

ROWS = pa.table({
    "query": ["a", "a", "a", "b", "b", "c"],
    "item": [1, 1, 2, 2, 2, 2],
    "gap": [3, 5, 9, 1, 2, 4],
})  # fmt: skip
WRITTEN = pa.schema([("query", pa.string()), ("item", pa.int64())])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        (("query", "item"), [("a", 1), ("a", 2), ("b", 2), ("c", 2)]),
        (("query",), [("a", 1), ("b", 2), ("c", 2)]),
        ((), [("a", 1), ("a", 1), ("a", 2), ("b", 2), ("b", 2), ("c", 2)]),
    ],
)
def test_the_first_row_of_each_key_is_kept_once(size, keys, kept):
    batches = ROWS.to_batches(max_chunksize=size)
    batches.insert(1, batches[0].slice(0, 0))
    found = pa.Table.from_batches(first_of_each(batches, keys, WRITTEN), WRITTEN)
    assert list(zip(found["query"].to_pylist(), found["item"].to_pylist(), strict=True)) == kept


def test_what_rows_are_sorted_by_is_read_beside_what_is_written():
    assert columns(WRITTEN, ("query", "item", "gap")) == ["query", "item", "gap"]
