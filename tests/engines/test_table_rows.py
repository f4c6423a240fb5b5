"""Rows of tables whose texts together are too long for one Arrow array."""

import struct
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from crops_jax.engines.table_rows import TableRows, sort_rows, take_rows
from crops_jax.logs.declared import Declared
from crops_jax.logs.folder import LogFolder
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.retrieval.corpus import CorpusPart

LARGE = 1 << 24  # bytes between the two offsets of a null
CHUNKS = (1 << 31) // LARGE + 1  # more than offsets of 32 bits reach together
ROWS = 2 * CHUNKS


@pytest.fixture(scope="module")
def table():
    """Ids that fall from row to row; every chunk of a text is the same 16 MiB: those of a null, then "short"."""
    bits, offsets = pa.py_buffer(bytes([0b10])), pa.py_buffer(struct.pack("<3i", 0, LARGE, LARGE + 5))
    text = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(bytes(LARGE) + b"short"), bits)
    ids = pa.chunked_array(np.split(np.arange(ROWS)[::-1], CHUNKS))
    return pa.table({"item_id": ids, **dict.fromkeys(TEXT_FIELDS, pa.chunked_array([text] * CHUNKS))})


def test_rows_are_found_by_their_places_whatever_the_table_holds(table):
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        table.take(pa.array([0]))
    found = TableRows(table).at([5, 1, ROWS - 1, 5]).to_pydict()
    assert found == {"item_id": [ROWS - 6, ROWS - 2, 0, ROWS - 6], **dict.fromkeys(TEXT_FIELDS, ["short"] * 4)}
    assert take_rows(table, []).schema == table.schema and TableRows(table.slice(0, 0)).at([]).num_rows == 0
    for place in (-1, ROWS):
        with pytest.raises(IndexError, match=f"{place} are asked for, of {ROWS}"):
            TableRows(table).at([place])


def test_what_is_taken_or_sorted_is_what_arrow_gives_of_small_tables():
    rng = np.random.default_rng(0)
    small = pa.table({"a": rng.integers(0, 9, 200_000), "b": pa.array(map(str, range(200_000)))})
    chunked = pa.concat_tables([small.slice(start, 30_011) for start in range(0, 200_000, 30_011)])
    places = rng.permutation(150_000)
    assert take_rows(chunked, places).equals(small.take(pa.array(places)))
    by = [("a", "descending"), ("b", "ascending")]
    assert sort_rows(chunked, by).equals(small.sort_by(by))


def test_a_corpus_of_more_text_than_an_array_holds_is_read_in_the_order_of_its_ids(table):
    read = CorpusPart(LogFolder(".", Declared()), SimpleNamespace(read=lambda: table), TEXT_FIELDS).read()
    assert read.item_ids.tolist() == list(range(0, ROWS, 2)) and read.without_text == CHUNKS
    assert set(read.texts) == {"\n".join(["short"] * 4)} and read.keywords == ["short"] * CHUNKS
