"""Search block by block finds what a search in memory finds, ties and all."""

import numpy as np
import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import verify
from crops_jax.errors import InputError
from crops_jax.retrieval import exact, vectors
from crops_jax.retrieval.blocks import index_ids, load_index, searcher_of, write_index_of
from crops_jax.retrieval.compact import CompactIndex
from crops_jax.retrieval.config import IndexConfig
from crops_jax.retrieval.ranking import NO_ITEM, best_of
from crops_jax.retrieval.scann_index import compare, write_index
from crops_jax.retrieval.vectors import open_embeddings

WIDTH = 16


def unit(count, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def written(folder, ids, rows, sizes):
    """Embeddings in parts of these sizes."""
    start = 0
    with write_folder(folder, kind="embeddings") as out:
        for number, size in enumerate(sizes):
            order = start + np.argsort(ids[start : start + size])
            with write_folder(out.path / f"part-{number:05d}", kind="embeddings_part") as part:
                np.save(part / "item_ids.npy", ids[order])
                np.save(part / "vectors.npy", rows[order])
            start += size
    verify(folder)
    return open_embeddings(folder)


@pytest.fixture
def corpus(tmp_path):
    """600 documents in six parts, whose ids lie across all parts; several are equal."""
    ids, rows = np.random.default_rng(1).permutation(600) * 3, unit(600)
    rows[[7, 230, 231, 590]] = rows[420]
    return ids, rows, written(tmp_path / "embeddings", ids, rows, (100, 90, 110, 100, 190, 10))


def blocks_of(monkeypatch, documents):
    monkeypatch.setattr(vectors, "BLOCK_BYTES", documents * WIDTH * 4)


def encoded(rows):
    return lambda queries: rows[[int(q) for q in queries]]


def test_blocks_are_parts_together_and_a_small_last_one_joins_the_one_before(corpus, monkeypatch):
    _, _, embeddings = corpus
    assert len(embeddings) == 600 and embeddings.width == WIDTH and len(embeddings.blocks()) == 1
    blocks_of(monkeypatch, 200)
    assert [len(block) for block in embeddings.blocks()] == [190, 110, 100, 200]
    blocks_of(monkeypatch, 1)
    assert [len(block) for block in embeddings.blocks()] == [100, 90, 110, 100, 190, 10]
    blocks_of(monkeypatch, 100)
    assert [len(block) for block in embeddings.blocks()] == [100, 90, 110, 100, 200]


def test_exact_search_over_blocks_is_the_search_in_memory(corpus, monkeypatch):
    ids, rows, embeddings = corpus
    monkeypatch.setattr(exact, "_DOC_TILE", 16)  # as in a large corpus: less than a device has of any block
    queries, encode = [str(i) for i in (420, 3, 99, 250)], encoded(rows)
    whole = searcher_of(embeddings, encode)
    found, scores = whole.search(queries, 50)
    equal = np.sort(ids[[7, 230, 231, 420, 590]])
    assert found[0, :5].tolist() == equal.tolist(), "equal scores by smaller id, over all parts"
    blocks_of(monkeypatch, 200)
    parted = searcher_of(embeddings, encode)
    np.testing.assert_array_equal(parted.ids, whole.ids)
    in_blocks = parted.search(queries, 50)
    np.testing.assert_array_equal(in_blocks[0], found)
    np.testing.assert_array_equal(in_blocks[1], scores)
    for k in (600, 605):
        a, b = whole.search(queries, k), parted.search(queries, k)
        np.testing.assert_array_equal(a[0], b[0])
        assert (b[0][:, 600:] == NO_ITEM).all() and np.isneginf(b[1][:, 600:]).all()
    wanted = [ids[[5, 599, 300]], np.array([1, ids[0]])]
    for a, b in zip(whole.score(queries[:2], wanted), parted.score(queries[:2], wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert parted.score(queries[:1], [np.array([1])])[0].tolist() == [-np.inf]


def test_the_best_of_several_searches_by_hand():
    first = np.array([[4, 9, NO_ITEM]]), np.array([[0.9, 0.5, -np.inf]], np.float32)
    second = np.array([[2, 8, 1]]), np.array([[0.9, 0.5, 0.1]], np.float32)
    ids, scores = best_of([first, second], 4)
    assert ids.tolist() == [[2, 4, 8, 9]] and scores.tolist() == np.float32([[0.9, 0.9, 0.5, 0.5]]).tolist()
    assert best_of([first], 2)[0].tolist() == [[4, 9]]


def test_compact_blocks_are_merged(corpus, monkeypatch):
    """Of bits: exactly what one index finds; its scores are shares of equal signs."""
    _, rows, embeddings = corpus
    blocks_of(monkeypatch, 200)
    queries = unit(5, seed=3)
    parts = [
        CompactIndex(b.vectors, b.ids, 8, "binary").search(queries, 20) for b in searcher_of(embeddings, None).blocks()
    ]
    read = embeddings.read()
    whole = CompactIndex(read.vectors, read.ids, 8, "binary").search(queries, 20)
    np.testing.assert_array_equal(best_of(parts, 20)[0], whole[0])
    assert len(parts) == 4 and len(rows) == 600


@pytest.mark.parametrize("resident", [True, False])
def test_a_scann_index_in_parts_finds_what_exact_search_finds(resident, corpus, tmp_path, monkeypatch):
    ids, rows, embeddings = corpus
    blocks_of(monkeypatch, 200)
    config = IndexConfig(brute_force_below=0, leaves=8, leaves_to_search=8, training_sample=50)
    write_index_of(tmp_path / "index", embeddings, config, {"embeddings": tmp_path / "embeddings"})
    counts = verify(tmp_path / "index")["counts"]
    assert counts == {"documents": 600, "width": WIDTH, "parts": 4}
    assert index_ids(tmp_path / "index").tolist() == sorted(ids.tolist())
    moved = (tmp_path / "index").rename(tmp_path / "moved")
    loaded = load_index(moved, resident)
    exact = searcher_of(embeddings, encoded(rows)).exact
    report = compare(loaded, len(embeddings), exact, unit(40, seed=2), 20)
    assert report["recall_against_exact"] > 0.98 and report["documents"] == 600
    found, scores = loaded.search(rows[:3], 605)
    assert found.shape == (3, 605) and (found[:, 600:] == NO_ITEM).all()
    assert found[:, 0].tolist() == ids[:3].tolist() and (np.diff(scores[:, :600]) <= 0).all()


def test_a_flipped_bit_in_a_part_of_an_index_is_found(corpus, tmp_path, monkeypatch):
    _, _, embeddings = corpus
    blocks_of(monkeypatch, 200)
    write_index_of(tmp_path / "index", embeddings, IndexConfig(), {"embeddings": tmp_path / "embeddings"})
    victim = tmp_path / "index/part-00001/ids.npy"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(data)
    with pytest.raises(InputError, match=r"part-00001/ids.npy: its bytes have changed"):
        load_index(tmp_path / "index")


def test_what_was_written_as_one_is_read_as_one_part(tmp_path):
    """Embeddings and an index as versions before wrote them."""
    ids, rows = np.arange(40) * 2, unit(40)
    with write_folder(tmp_path / "embeddings", kind="embeddings") as out:
        np.save(out / "item_ids.npy", ids)
        np.save(out / "vectors.npy", rows)
    embeddings = open_embeddings(tmp_path / "embeddings")
    np.testing.assert_array_equal(embeddings.read().vectors, rows)
    assert embeddings.ids().tolist() == ids.tolist() and embeddings.names() is None
    write_index(tmp_path / "index", ids, rows, IndexConfig())
    assert load_index(tmp_path / "index").search(rows[:2], 1)[0].tolist() == [[0], [2]]
    assert index_ids(tmp_path / "index").tolist() == ids.tolist()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no vectors"):
        open_embeddings(tmp_path / "empty")
