"""Short and quantised vectors: worked numbers, and the whole vector's own order where nothing is lost."""

import numpy as np
import pytest

from crops_jax.errors import InputError
from crops_jax.retrieval.compact import FORMS, CompactIndex, compare_forms, holds, shortened, widths_to_try
from crops_jax.retrieval.ranking import NO_ITEM
from crops_jax.retrieval.testset_metrics import TestSet
from crops_jax.retrieval.vectors import Vectors

IDS = np.array([2, 5, 7, 9])
CORPUS = np.array([[0.6, 0.8, 0, 0], [0.6, -0.8, 0, 0], [-0.6, 0.8, 0, 0], [0, 0, -0.6, -0.8]], np.float32)


def unit(rows, width, seed=0):
    return shortened(np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32), width)


def test_a_shortened_vector_is_a_unit_vector_of_its_first_numbers():
    np.testing.assert_allclose(shortened(np.array([[3, 4, 12], [0, 0, 1]], np.float32), 2), [[0.6, 0.8], [0, 0]])
    ids, scores = CompactIndex(CORPUS, IDS, 1, "float32").search(np.array([[0.1, 9, 9, 9]], np.float32), 4)
    assert ids.tolist() == [[2, 5, 9, 7]], "of equal cosines the smaller id comes first"
    np.testing.assert_allclose(scores, [[1, 1, 0, -1]])


def test_bits_count_equal_signs_and_int8_orders_what_they_leave():
    query = np.array([[0.7, 0.7, 0.1, 0.1]], np.float32)
    ids, scores = CompactIndex(CORPUS, IDS, 4, "binary").search(query, 3)
    # The signs are ++.., +-.., -+.. and .... of four; a zero counts as no plus.
    assert ids.tolist() == [[2, 5, 7]] and scores.tolist() == [[0.5, 0.25, 0.25]]
    ids, scores = CompactIndex(CORPUS, IDS, 4, "binary, rescored").search(query, 2)
    wanted = shortened(query, 4) @ CORPUS.T
    assert ids.tolist() == [[2, 7]] and scores[0] == pytest.approx([wanted[0, 0], wanted[0, 2]], abs=0.01)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_k_rows_and_fills_what_is_missing(form):
    ids, scores = CompactIndex(CORPUS, IDS, 4, form).search(unit(3, 4), 6)
    assert ids.shape == scores.shape == (3, 6)
    assert (ids[:, 4:] == NO_ITEM).all() and np.isneginf(scores[:, 4:]).all()
    assert all(sorted(row) == IDS.tolist() for row in ids[:, :4].tolist())
    assert CompactIndex(CORPUS, IDS, 4, form).search(np.zeros((0, 4), np.float32), 2)[0].shape == (0, 2)


def test_int8_is_the_product_with_rounded_documents():
    corpus, queries, ids = unit(300, 24), unit(9, 24, 1), np.arange(300)
    index = CompactIndex(corpus, ids, 24, "int8")
    scale = np.abs(corpus).max(axis=0) / 127
    wanted = queries @ (np.round(corpus / scale) * scale).T
    ids_found, scores = index.search(queries, 10)
    np.testing.assert_allclose(scores, -np.sort(-wanted, axis=1)[:, :10], atol=1e-5)
    assert np.abs(wanted - queries @ corpus.T).max() < 0.01
    assert [CompactIndex(corpus, ids, 24, form).bytes for form in FORMS] == [96, 24, 3, 3]
    assert ids_found.dtype == np.int64
    with pytest.raises(InputError, match="width 25 of vectors of 24"):
        CompactIndex(corpus, ids, 25, "int8")


def test_the_table_says_what_each_form_still_finds_and_which_widths_hold():
    """Half of the width orders as the whole does; its quarter knows nothing."""
    half = unit(200, 8, 2)
    corpus = shortened(np.concatenate([np.zeros((200, 4), np.float32), half, half[:, :4]], axis=1), 16)
    queries = {f"q{i}": corpus[i] for i in range(40)}
    truth = TestSet([*queries], [*queries], [[i] for i in range(40)])
    encode = lambda asked: np.stack([queries[query] for query in asked])  # noqa: E731
    found = compare_forms([Vectors(np.arange(200), corpus)], encode, {"CT": truth}, trained=(12, 4), k=1)
    assert widths_to_try(16, (12, 4)) == [16, 12, 8, 4] and found["queries"] == 40
    recall = {(row["width"], row["form"]): row["recall"]["CT"] for row in found["rows"]}
    assert recall[16, "float32"] == recall[12, "float32"] == recall[16, "int8"] == 1.0
    assert recall[4, "float32"] < 0.1 and recall[16, "binary"] <= recall[16, "binary, rescored"]
    assert {row["width"]: row["trained"] for row in found["rows"]} == {16: True, 12: True, 8: False, 4: True}
    assert holds(found) == [16, 12]
