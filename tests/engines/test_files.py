"""Parts: of sorted rows the first of each run of equal ones, and columns that rows get when they are written."""

import pyarrow as pa
import pytest

from crops_jax.engines.files import Beside, Sorted, first_of_each, part_path, read, write
from crops_jax.errors import InputError

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
    assert Sorted(WRITTEN, ("query", "item", "gap")).columns == ["query", "item", "gap"]


NAMED = pa.schema([("number", pa.int64()), ("query", pa.string()), ("user", pa.int64())])


@pytest.fixture
def beside(tmp_path):
    rows = pa.table({"number": [3, 19, 35], "query": ["a", "b", "b"], "user": [7, None, 9]}, schema=NAMED)
    write(rows.to_batches(), part_path(tmp_path, "3"), NAMED)
    return Beside(tmp_path, "number", ("query", "user"))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_rows_get_what_their_numbers_stand_for(beside, size, tmp_path):
    rows = pa.table({"number": [3, 3, 19, 35, 35], "item": [5, 6, 5, 5, 7]}).to_batches(max_chunksize=size)
    schema = pa.schema([*rows[0].schema, *list(NAMED)[1:]])
    path = part_path(tmp_path / "out", "3")
    path.parent.mkdir()
    assert Sorted(schema, ("number", "item"), beside=beside).write(rows, path) == 5
    assert read(path).to_pydict() == {
        "number": [3, 3, 19, 35, 35],
        "item": [5, 6, 5, 5, 7],
        "query": ["a", "a", "b", "b", "b"],
        "user": [7, 7, None, 9, 9],
    }
    schema = pa.schema([("query", pa.string()), ("item", pa.int64())])
    how = Sorted(schema, ("number", "item"), beside=beside)
    assert how.columns == ["item", "number"]
    assert Sorted(rows[0].schema, ("number", "item")).write(rows, path) == 5
    assert read(path) == pa.Table.from_batches(rows)


@pytest.mark.parametrize("number", [2, 20, 36])
def test_a_number_that_stands_for_nothing_is_no_row_of_another(beside, number, tmp_path):
    rows = pa.table({"number": [3, number]}).to_batches()
    with pytest.raises(InputError, match=r"part-3\.parquet.*lacks rows that others name; remove its folder"):
        list(beside.add(rows, "3"))
