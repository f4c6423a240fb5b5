"""BM25 against worked numbers."""

from __future__ import annotations

import numpy as np
import pytest

from crops_jax.errors import InputError
from crops_jax.retrieval.bm25 import BM25Searcher, tokenize
from crops_jax.retrieval.config import BM25Config
from crops_jax.retrieval.ranking import NO_ITEM

TEXTS = ["a a b c", "a c c", "b b b c d"]


@pytest.fixture
def searcher():
    return BM25Searcher(np.array([10, 20, 30]), TEXTS, BM25Config())


def test_worked_example(searcher):
    np.testing.assert_allclose(searcher.scores("a b"), [0.507390, 0.237977, 0.318647], atol=1e-6)
    np.testing.assert_allclose(searcher.scores("d")[2] * (1 + 1.2 * (0.25 + 0.75 * 5 / 4)), 0.980829, atol=1e-6)
    ids, scores = searcher.search(["a b", "d", "unknown", ""], 3)
    assert ids.tolist() == [[10, 30, 20], [30, NO_ITEM, NO_ITEM], [NO_ITEM] * 3, [NO_ITEM] * 3]
    np.testing.assert_allclose(scores[0], [0.507390, 0.318647, 0.237977], atol=1e-6)


def test_both_settings_by_hand():
    """Term "c" of all three texts, of 4, 3 and 5 words: idf log(1 + 0.5 / 3.5), counts 1, 2 and 1."""
    ids, idf, length, count = np.array([10, 20, 30]), np.log(1 + 0.5 / 3.5), np.array([4, 3, 5]), np.array([1, 2, 1])
    for k1, b in ((0.5, 0.75), (1.2, 0.25)):
        searcher = BM25Searcher(ids, TEXTS, BM25Config(k1=k1, b=b))
        wanted = idf * count / (count + k1 * (1 - b + b * length / 4))
        np.testing.assert_allclose(searcher.scores("c"), wanted, rtol=1e-5)


def test_tokens_count_with_multiplicity(searcher):
    np.testing.assert_allclose(searcher.scores("a a b"), searcher.scores("a") * 2 + searcher.scores("b"), rtol=1e-6)
    assert np.all(searcher.scores("c") > 0), "a term of every document still counts"
    assert np.all(searcher.scores("") == 0)


def test_document_order_does_not_matter(searcher):
    other = BM25Searcher(np.array([10, 20, 30]), TEXTS[::-1], BM25Config())
    np.testing.assert_allclose(other.scores("a b")[::-1], searcher.scores("a b"), rtol=1e-6)


def test_given_items_are_scored(searcher):
    [scores] = searcher.score(["a b"], [np.array([30, 99, 10])])
    np.testing.assert_allclose(scores, [0.318647, -np.inf, 0.507390], atol=1e-6)


def test_tokens():
    assert tokenize("Cordless-Drill, 18V") == ["cordless", "drill", "18v"]
    assert tokenize("深度学习intro 学") == ["深度", "度学", "学习", "intro", "学"]
    assert tokenize("हिन्दी गाना") == ["हिन्दी", "गाना"] and tokenize("مُحَمَّد") == ["مُحَمَّد"], "marks are of the word"
    assert tokenize("cafe\u0301 ＦＵＬＬ pho\u00adne ❤\ufe0f") == ["café", "full", "phone"], "as normal_form has it"


def test_bad_corpora_are_refused():
    with pytest.raises(InputError, match="written documents are never indexed"):
        BM25Searcher(np.array([-3, 1]), ["a", "b"], BM25Config())
    with pytest.raises(InputError, match="none of 2 documents has a word"):
        BM25Searcher(np.array([1, 2]), ["", "!"], BM25Config())
