"""Exact search against numpy, on one device and eight; ScaNN against exact search; damaged and bad input."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from crops_jax.errors import InputError
from crops_jax.retrieval import exact, scann_index
from crops_jax.retrieval.blocks import load_index
from crops_jax.retrieval.compact import CompactIndex
from crops_jax.retrieval.config import IndexConfig
from crops_jax.retrieval.dense import DenseSearcher
from crops_jax.retrieval.exact import ExactIndex
from crops_jax.retrieval.ranking import NO_ITEM, top_k
from crops_jax.retrieval.scann_index import compare, write_index
from crops_jax.serving.bundle import HostIndex


def unit(count, width=16, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(params=[1, 8])
def devices(request, monkeypatch):
    if request.param == 1:
        make = jax.make_mesh
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        monkeypatch.setattr(jax, "make_mesh", lambda shape, names: make(shape, names, devices=jax.devices()[:1]))
    assert len(jax.devices()) == 8
    return request.param


def test_exact_equals_numpy(devices, monkeypatch):
    """Over several tiles a device, several query tiles, padding, and exact ties."""
    monkeypatch.setattr(exact, "_DOC_TILE", 32)
    monkeypatch.setattr(exact, "_QUERY_TILE", 8)
    vectors, queries = unit(1003), unit(21, seed=1)
    vectors[[700, 41, 980]] = vectors[5]
    queries[0] = vectors[5]
    ids = np.sort(np.random.default_rng(2).choice(10**12, 1003, replace=False))
    with jax.set_mesh(jax.make_mesh((devices, 1), ("data", "fsdp"))):  # a caller's own mesh
        found, scores = ExactIndex(vectors, ids).search(queries, 50)
    want, want_scores = top_k(queries.astype(np.float64) @ vectors.T.astype(np.float64), ids, 50)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_allclose(scores, want_scores, atol=1e-6)
    assert found[0, :4].tolist() == ids[[5, 41, 700, 980]].tolist(), "equal scores by smaller id"


def test_a_corpus_smaller_than_k(devices):
    found, scores = ExactIndex(unit(5, seed=1), np.arange(5)).search(unit(3), 7)
    assert np.all(np.sort(found[:, :5], axis=1) == np.arange(5)) and np.all(found[:, 5:] == NO_ITEM)
    assert np.all(np.isneginf(scores[:, 5:])) and np.isfinite(scores[:, :5]).all()


def test_dense_searcher_sorts_and_scores():
    vectors = unit(40)
    ids = np.random.default_rng(0).permutation(40)
    encoded = []

    def encode(queries):
        encoded.extend(queries)
        return vectors[[int(q) for q in queries]]

    searcher = DenseSearcher.in_memory(ids, vectors, encode)
    found, _ = searcher.search(["3", "17"], 2)
    assert found[:, 0].tolist() == [ids[3], ids[17]]
    [scores] = searcher.score(["3"], [np.array([ids[17], 99, ids[3]])])
    np.testing.assert_allclose(scores, [vectors[3] @ vectors[17], -np.inf, 1], atol=1e-6)
    assert encoded == ["3", "17"], "each query string is encoded once"


@pytest.mark.parametrize("copies", [2, 3, 17, 40])
def test_equal_vectors_have_equal_cosines_wherever_they_stand(copies):
    """The product of a matrix and a vector sums its last rows in another order than the first."""
    rng = np.random.default_rng(copies)
    vectors = rng.normal(size=(60, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[:1] + rng.normal(size=(1, 384)).astype(np.float32) * 0.01
    of_one = rng.permutation(60)[:copies]
    vectors[of_one], ids = vectors[0], np.arange(60)
    of_one = np.flatnonzero((vectors == vectors[0]).all(axis=1))
    searcher = DenseSearcher.in_memory(ids, vectors, lambda queries: query)
    for taken in (ids, ids[1:], ids[5:], of_one):
        (scores,) = searcher.score(["q"], [taken])
        assert len(np.unique(scores[np.isin(taken, of_one)])) == 1


@pytest.mark.parametrize("copies", [3, 4, 5])
def test_a_search_has_equal_vectors_by_smaller_id(copies):
    rng = np.random.default_rng(copies)
    vectors = rng.normal(size=(7, 383)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[-copies:], ids = vectors[0], np.arange(7)
    query = vectors[:1] + rng.normal(size=(1, 383)).astype(np.float32) * 0.01
    for index in (HostIndex(vectors, ids), *(CompactIndex(vectors, ids, 383, form) for form in ("float32", "int8"))):
        found, scores = index.search(query, 7)
        assert found[0, : copies + 1].tolist() == [0, *range(7 - copies, 7)]
        assert len(set(scores[0, : copies + 1].tolist())) == 1


@pytest.mark.parametrize(("config", "kind", "floor"), [
    (IndexConfig(), "brute force", 1.0),
    (IndexConfig(brute_force_below=0, leaves_to_search=30), "tree", 0.95),
])  # fmt: skip
def test_scann_round_trip(tmp_path, config, kind, floor):
    vectors, ids = unit(3000), np.random.default_rng(0).permutation(3000) * 7
    write_index(tmp_path / "made", ids, vectors, config)
    moved = (tmp_path / "made").rename(tmp_path / "moved")  # a served index is copied somewhere else
    loaded = load_index(moved)
    order = np.argsort(ids)
    # Queries enough that the mean does not depend on how ScaNN's threads shared out its k-means.
    report = compare(loaded, 3000, ExactIndex(vectors[order], ids[order]), unit(1024, seed=1), 20)
    assert report["recall_against_exact"] >= floor and report["scann_queries_per_s"] > 0
    found, scores = loaded.search(vectors[:5], 1)
    assert found[:, 0].tolist() == ids[:5].tolist()
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-3)
    assert not list(moved.rglob("*.pkl"))
    assert load_index(moved).search(vectors[:1], 3005)[0].shape == (1, 3005)


@pytest.mark.parametrize("k", [600, 2999, 3000, 3100])
def test_more_results_than_are_reordered_fill_every_row(tmp_path, capsys, k):
    vectors = unit(3000)
    write_index(tmp_path / "index", np.arange(3000), vectors, IndexConfig(brute_force_below=0, leaves_to_search=55))
    loaded = load_index(tmp_path / "index")
    found, scores = loaded.search(unit(8, seed=1), k)
    there = min(k, 3000)
    assert (found[:, :there] != NO_ITEM).all() and np.isfinite(scores[:, :there]).all()
    assert (found[:, there:] == NO_ITEM).all() and np.isneginf(scores[:, there:]).all()
    assert all(len(set(row[:there])) == there for row in found) and (np.diff(scores[:, :there]) <= 0).all()
    exact = ExactIndex(vectors, np.arange(3000))
    assert compare(loaded, 3000, exact, unit(8, seed=1), k)["recall_against_exact"] > 0.9
    assert "warning" not in capsys.readouterr().err


def test_leaves_too_few_for_k_are_told_once_and_more_are_searched(tmp_path, capsys):
    config = IndexConfig(brute_force_below=0, leaves=50, leaves_to_search=1)
    write_index(tmp_path / "index", np.arange(3000), unit(3000), config)
    loaded, queries = load_index(tmp_path / "index"), unit(8, seed=1)
    few, _ = loaded.search(queries, 5)
    capsys.readouterr()
    for k in (400, 3000):
        found, scores = loaded.search(queries, k)
        assert all(len(set(row)) == k for row in found) and (found != NO_ITEM).all() and np.isfinite(scores).all()
    said = capsys.readouterr().err
    assert "8 of 8 queries found fewer than 400 documents in 1 leaves" in said and "index.leaves_to_search" in said
    assert said.count("warning") == 1
    np.testing.assert_array_equal(loaded.search(queries, 5)[0], few)


def test_an_index_config_that_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"reorder: 0 is not above zero"):
        IndexConfig(reorder=0)
    with pytest.raises(InputError, match=r"leaves_to_search = 30 of leaves = 20"):
        IndexConfig(leaves=20, leaves_to_search=30)


@pytest.mark.parametrize(("config", "tree", "hashed", "reordered"), [
    (IndexConfig(brute_force_below=0, leaves=5, leaves_to_search=2, dimensions_per_block=4, anisotropic_threshold=0.3,
                 reorder=7, training_sample=11), (5, 2, 11), (4, 0.3, 11), 7),
    (IndexConfig(brute_force_below=20), (4, 1, 20), (2, 0.2, 20), 20),  # a root of the documents, three tenths of it
])  # fmt: skip
def test_every_setting_of_the_tree_reaches_scann(config, tree, hashed, reordered, monkeypatch):
    told = {}

    class Builder:
        def tree(self, leaves, searched, training_sample_size):
            told["tree"] = leaves, searched, training_sample_size
            return self

        def score_ah(self, dimensions, anisotropic_quantization_threshold, training_sample_size):
            told["hashed"] = dimensions, anisotropic_quantization_threshold, training_sample_size
            return self

        def reorder(self, candidates):
            told["reordered"] = candidates
            return self

        def build(self):
            return told

    pybind = SimpleNamespace(builder=lambda vectors, k, distance: told.update(distance=distance) or Builder())
    monkeypatch.setattr(scann_index, "_scann", lambda: SimpleNamespace(scann_ops_pybind=pybind))
    scann_index._build_scann(unit(20), config)
    assert told == {"distance": "dot_product", "tree": tree, "hashed": hashed, "reordered": reordered}


def test_a_flipped_bit_is_found(tmp_path):
    write_index(tmp_path / "index", np.arange(100), unit(100), IndexConfig())
    victim = max((tmp_path / "index/scann").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(InputError, match=f"{victim.name}: its bytes have changed"):
        load_index(tmp_path / "index")


def test_a_scann_built_for_another_tensorflow_is_told_with_a_mend(tmp_path, monkeypatch):
    class Broken:
        def find_spec(self, name, *_):
            if name == "scann":
                raise RuntimeError("undefined symbol: _ZN4absl\nand more")

    monkeypatch.delitem(sys.modules, "scann", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    vectors = np.eye(16, dtype=np.float32)
    with pytest.raises(InputError, match=r"does not load beside .* \(undefined symbol: _ZN4absl\); .*scann\[tf\]"):
        write_index(tmp_path / "index", np.arange(16), vectors, IndexConfig(), inputs={})


def test_bad_vectors_never_reach_scann(tmp_path):
    target, broken = tmp_path / "index", unit(20)
    broken[7, 3] = np.nan
    for ids, vectors, words in [
        (np.arange(20), broken, "1 of 20 vectors hold NaN or infinity, first row 7"),
        (np.arange(15), unit(15), "15 documents; ScaNN needs at least 16"),
        (np.arange(20), unit(20) * 2, "20 vectors are not of unit length"),
        (np.arange(20) - 1, unit(20), "written documents are never indexed"),
        (np.arange(19), unit(20), "for 19 ids"),
    ]:
        with pytest.raises(InputError, match=words):
            write_index(target, ids, vectors, IndexConfig())
    assert not target.exists()
    write_index(target, np.arange(20), unit(20), IndexConfig())
    with pytest.raises(InputError, match="NaN"):
        load_index(target).search(broken, 3)
    with pytest.raises(InputError, match="the index holds vectors of 16"):
        load_index(target).search(unit(2, width=8), 3)
