"""Semantic ids: the worked examples, the algorithms against slow readings, and the index over them."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import Diverged, InputError
from crops_jax.suggestions import rq_k_means, rq_vae, semantic_index
from crops_jax.suggestions.config import RQKMeansConfig, RQVAEConfig
from crops_jax.suggestions.k_means import assign_evenly, balanced_k_means, distances, k_means, nearest
from crops_jax.suggestions.opq import ProductCodes, learn_product_codes
from crops_jax.suggestions.rq_k_means import ResidualKMeans, residual_codes
from crops_jax.suggestions.semantic_index import SemanticIndex, build_index, encoder_hash, enhanced, load_index

VAE = RQVAEConfig(levels=3, codes=8, width=4, hidden=(16,), steps=120, batch=64, reseed_every=20, learning_rate=3e-3)
K_MEANS = RQKMeansConfig(codes=(8, 8, 8), opq_parts=2, opq_codes=8, iterations=5)
FLAT = dataclasses.replace(K_MEANS, opq_parts=0, balanced=False)
BOOKS = tuple(np.array(book, np.float32) for book in
              ([[4, 0], [0, 4]], [[1, 1], [1, -1], [-1, 1]], [[0.2, 0], [-0.2, 0], [0, 0.3]]))  # fmt: skip


def clustered(n=300, width=6, seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(12, width))[rng.integers(12, size=n)] + 0.15 * rng.normal(size=(n, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_enhancement_by_hand():
    prefixes = np.array([[1, 0], [0, 1]], np.float32)
    found = enhanced(prefixes, [np.array([[0.6, 0.8], [0, 1]], np.float32), np.zeros((0, 2), np.float32)])
    np.testing.assert_allclose(found, [[0.65, 0.45], [0, 1]], atol=1e-7)
    np.testing.assert_allclose(enhanced(prefixes[:1], [prefixes[1:]], 0.25), [[0.75, 0.25]], atol=1e-7)


def test_residual_codes_by_hand():
    x = np.array([[4.8, 1.1]], np.float32)
    codes, left = residual_codes(x, BOOKS)
    assert codes.tolist() == [[0, 0, 1]]
    errors = [float((residual_codes(x, BOOKS[:n])[1] ** 2).sum()) for n in (1, 2, 3)]
    assert errors == pytest.approx([1.85, 0.05, 0.01], abs=1e-5)
    np.testing.assert_allclose(ResidualKMeans(BOOKS, None).reconstruct(codes), [[4.8, 1.0]], atol=1e-6)
    np.testing.assert_allclose(left, [[0, 0.1]], atol=1e-6)


def test_product_codes_by_hand():
    shift = np.roll(np.eye(4, dtype=np.float32), 1, axis=1)  # y = (x2, x3, x4, x1)
    books = np.array([[[0, 0.5], [-0.1, 0.3]], [[0.3, 0.3], [0, 0]]], np.float32)
    learned, x = ProductCodes(shift, books), np.array([[0.2, -0.1, 0.4, 0.3]], np.float32)
    np.testing.assert_allclose(x @ shift.T, [[-0.1, 0.4, 0.3, 0.2]], atol=1e-7)
    assert learned.codes(x).tolist() == [[1, 0]] and learned.error(x) == pytest.approx(0.02, abs=1e-6)


def test_k_means_finds_the_clusters_and_uses_every_centroid():
    vectors = clustered()
    one, two = (k_means(vectors, 12, 20, seed) for seed in (0, 1))
    assert nearest(vectors, one).distance.mean() < 0.15**2 * 6 * 1.3
    assert not np.array_equal(one, two) and np.array_equal(one, k_means(vectors, 12, 20, 0))
    assert (nearest(vectors, k_means(vectors, 64, 10, 0)).counts > 0).all()
    same = np.repeat(vectors[:3], 5, axis=0)
    found = nearest(same, k_means(same, 8, 5, 0))
    assert found.distance.max() < 1e-6 and len(np.unique(found.codes)) == 3, "fewer different vectors than centroids"
    means = np.stack([vectors[nearest(vectors, one).codes == k].mean(0) for k in range(12)])
    np.testing.assert_allclose(means, one, atol=1e-5)


@pytest.mark.parametrize(("n", "k"), [(1, 3), (7, 7), (50, 7), (64, 8), (90, 4), (200, 31)])
@pytest.mark.parametrize("values", [1, 3, 10])
def test_even_assignment_is_that_of_all_pairs_in_order(n, k, values):
    far = np.random.default_rng(n).integers(values, size=(n, k)).astype(np.float32)  # ties: the pair's number decides
    room, taken, wanted = -(-n // k), np.zeros(k, int), np.full(n, -1)
    for pair in np.argsort(far.ravel(), kind="stable"):
        row, code = divmod(int(pair), k)
        if wanted[row] < 0 and taken[code] < room:
            wanted[row], taken[code] = code, taken[code] + 1
    assert assign_evenly(far).tolist() == wanted.tolist()


def test_codes_with_room_for_all_who_ask_are_not_sorted(monkeypatch):
    """Of four codes with room for 25 the last gets its 25 at once; of the 75 others all ask for the first."""
    sorted_at_once, lexsort = [], np.lexsort
    monkeypatch.setattr(np, "lexsort", lambda keys: sorted_at_once.append(len(keys[0])) or lexsort(keys))
    far = np.tile(np.array([1, 2, 3, 4], np.float32), (100, 1))
    far[75:, 3] = 0
    assert np.bincount(assign_evenly(far)).tolist() == [25] * 4 and sorted_at_once == [75, 50]


def test_balanced_clusters_have_their_even_share():
    vectors = np.concatenate([clustered(180), np.repeat(clustered(1, seed=3), 60, axis=0)])
    centroids, codes = balanced_k_means(vectors, 9, 10, 0)
    assert np.bincount(codes, minlength=9).max() == 27
    assert np.array_equal(codes, assign_evenly(distances(vectors, centroids)))


def test_rotations_help_and_never_hurt():
    rng = np.random.default_rng(0)
    turned, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    vectors = (rng.normal(size=(400, 6)) * [3, 2, 1, 0.5, 0.2, 0.1] @ turned).astype(np.float32)
    learned, errors = learn_product_codes(vectors, 3, 8, 15, 0)
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
    np.testing.assert_allclose(learned.rotation @ learned.rotation.T, np.eye(6), atol=1e-5)
    with pytest.raises(InputError, match="vectors of 6 numbers cannot be cut into 4 parts"):
        build_index(["a"], vectors[:1], "e", dataclasses.replace(K_MEANS, opq_parts=4))


def test_the_autoencoders_loss_by_hand():
    """The encoder and the decoder are identities; x = (1, 0) gets the code (0.5, 0) and on the next level (0.2, 0)."""
    eye = [(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))]
    books = np.array([[[0.5, 0], [-1, 0]], [[0.2, 0], [0, 0.9]]], np.float32)
    params = {"encoder": eye, "decoder": eye, "codebooks": books}
    x = np.array([[1, 0]], np.float32)
    (value, (codes, _)), slope = jax.value_and_grad(rq_vae.loss, has_aux=True)(params, x, 0.25)
    # |x - 0.7|^2 = 0.09; levels 0.25 and 0.09, each with a quarter of itself.
    assert value == pytest.approx(0.09 + 1.25 * (0.25 + 0.09), abs=1e-6) and codes.tolist() == [[0], [0]]
    np.testing.assert_allclose(slope["codebooks"][:, 0, 0], [2 * (0.5 - 1), 2 * (0.2 - 0.5)], atol=1e-6)
    # Through the decoder's input as if it were z: -2 (x - x'); and the commitment of both levels.
    towards = -2 * 0.3 + 0.25 * 2 * (0.5 + 0.3)
    np.testing.assert_allclose(slope["encoder"][0][0][0, 0], towards, atol=1e-6)


def test_an_autoencoder_that_diverges_is_no_index():
    with pytest.raises(Diverged, match=r"not finite any more; lower suggest\.ids\.learning_rate"):
        rq_vae.learn(clustered(), dataclasses.replace(VAE, learning_rate=1e20, steps=5))


@pytest.mark.slow
def test_the_autoencoder_learns_uses_its_codes_and_repeats_itself():
    vectors = clustered()
    learned, codes = rq_vae.learn(vectors, VAE)
    index = SemanticIndex(VAE, "e", learned, tuple(map(str, range(300))), vectors, codes)
    before = rq_vae.learn(vectors, dataclasses.replace(VAE, steps=1))
    first = dataclasses.replace(index, quantiser=before[0], codes=before[1])
    assert index.report().relative_error < 0.5 < first.report().relative_error
    assert min(index.report().utilisation) >= 7 / 8
    assert np.array_equal(rq_vae.learn(vectors, VAE)[1], codes)


def test_the_first_codes_come_from_vectors_of_all_places(monkeypatch):
    """Vectors stand in the order of their texts."""
    seen, vectors, encode = [], clustered(), rq_vae._by_rows
    monkeypatch.setattr(rq_vae, "_by_rows", lambda layers, x: seen.append(x) or encode(layers, x))
    monkeypatch.setattr(rq_vae, "_FIRST", 64)
    once = dataclasses.replace(VAE, steps=1)
    for config in (once, once, dataclasses.replace(once, seed=1)):
        rq_vae.learn(vectors, config)
    first, again, other = (x for x in seen if len(x) == 64)
    places = [int(np.flatnonzero((vectors == row).all(1))[0]) for row in first]
    assert places == sorted({*places}) and places[0] < 100 and places[-1] >= 200
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    monkeypatch.setattr(rq_vae, "_FIRST", 300)
    rq_vae.learn(vectors, once)
    assert np.array_equal(seen[-2], vectors), "all, in their order, where there are no more"


def test_dead_codes_move_to_where_vectors_are():
    vectors = clustered()
    learned, _ = rq_vae.learn(vectors, VAE)
    params = jax.tree.map(np.asarray, learned.params)
    params["codebooks"] = params["codebooks"].copy()
    params["codebooks"][1, 3:] = 1e3
    state = rq_vae._State(params, rq_vae._optimiser(VAE).init(params), np.zeros((3, 8), np.int32))
    again, _ = rq_vae._step(state, vectors[:64], VAE, jax.random.key(0), np.asarray(True))
    assert np.abs(np.asarray(again.params["codebooks"][1])).max() < 10
    held, _ = rq_vae._step(state, vectors[:64], VAE, jax.random.key(0), np.asarray(False))
    assert np.abs(np.asarray(held.params["codebooks"][1])).max() > 900


@pytest.fixture(scope="module")
def by_hand():
    """Six queries of the worked codebooks: ids (0,0,1), (0,0,1), (0,0,2), (0,1,0), (1,0,0), (1,2,0)."""
    vectors = np.array([[4.8, 1.0], [4.8, 1.1], [5, 1.3], [5.2, -1], [1.2, 5], [-0.8, 5]], np.float32)
    quantiser = ResidualKMeans(BOOKS, None)
    config = RQKMeansConfig(codes=(2, 3, 3), opq_parts=0, balanced=False)
    return SemanticIndex(config, "e", quantiser, tuple("abcdef"), vectors, quantiser.codes(vectors))


def test_lookup_drops_the_last_code_until_there_are_enough(by_hand):
    assert by_hand.codes.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 2], [0, 1, 0], [1, 0, 0], [1, 2, 0]]
    at = np.array([[4.8, 1.1]], np.float32)
    assert by_hand.related(at, 1) == [["b"]], "two have its id: the nearer one"
    assert by_hand.related(at, 2) == [["b", "a"]]
    # Three with (0, 0, .): c, at an angle of 14.57 degrees, is nearer to b's 12.91 than a's 11.77 is: 1.14 and 1.66.
    assert by_hand.related(at, 3) == [["b", "a", "c"]]
    assert by_hand.related(at, 4) == [["b", "a", "c", "d"]], "(0, ., .)"
    assert by_hand.related(at, 9) == [["b", "a", "c", "d", "e", "f"]], "all there are"
    assert by_hand.lookup(at, 9)[0, 6:].tolist() == [-1, -1, -1]
    far = by_hand.related(np.array([[-9, -9], [1.2, 5]], np.float32), 1)
    assert len(far[0]) == 1 and far[1] == ["e"], "a vector like no query finds some"


def test_vectors_are_brought_to_length_one_once_and_only_where_they_are_not(by_hand, monkeypatch):
    brought, unit = [], semantic_index.unit
    monkeypatch.setattr(semantic_index, "unit", lambda vectors: brought.append(len(vectors)) or unit(vectors))
    at = np.array([[4.8, 1.1]], np.float32)
    fresh = dataclasses.replace(by_hand)
    assert [fresh.related(at, 3) for _ in range(2)] == [[["b", "a", "c"]]] * 2 and brought == [6, 1, 1]
    own = dataclasses.replace(by_hand, vectors=unit(by_hand.vectors))
    assert own.related(at, 3) == [["b", "a", "c"]] and own._unit is own.vectors


def test_the_report_by_hand(by_hand):
    told = by_hand.report()
    assert (told.queries, told.distinct_ids, told.collisions, told.largest_group) == (6, 5, 2, 2)
    assert told.unique_share == pytest.approx(4 / 6) and told.utilisation == (1.0, 1.0, 1.0)
    assert told.reconstruction_error == pytest.approx(0.01 / 6, abs=1e-6)


@pytest.mark.parametrize("config", [VAE, pytest.param(K_MEANS, marks=pytest.mark.slow), FLAT])
def test_an_index_is_written_and_read_and_belongs_to_one_encoder(tmp_path, config):
    vectors = clustered(100)
    index = build_index([f"query {i}" for i in range(100)], vectors, "abc", config)
    assert index.codes.shape[1] == len(index.quantiser.sizes)
    index.save(tmp_path / "index")
    read = load_index(tmp_path / "index", "abc")
    assert read.config == config and read.report() == index.report()
    probe = clustered(20, seed=5)
    assert read.related(probe, 5) == index.related(probe, 5)
    with pytest.raises(InputError, match="of another encoder"):
        load_index(tmp_path / "index", "abd")
    with (tmp_path / "index/dictionary.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(InputError, match="its bytes have changed"):
        load_index(tmp_path / "index", "abc")


@pytest.mark.slow
def test_small_dictionaries_and_codebooks_beyond_them():
    vectors = clustered(5)
    for config in (FLAT, VAE):
        index = build_index(list("abcde"), vectors, "e", config)
        assert index.related(vectors, 1) == [[q] for q in "abcde"]
        assert {*index.related(vectors[:1], 9)[0]} == {*"abcde"}
    _, codes = rq_k_means.learn(clustered(60), dataclasses.replace(K_MEANS, codes=(4, 7)))
    assert np.bincount(codes[:, 1]).max() <= 9


@pytest.mark.parametrize(("queries", "change", "told"), [
    ([], lambda v: v[:0], "0 queries"), (["a", "a"], lambda v: v, "1 different"), (["a"], lambda v: v, "2 vectors"),
    (["a", "b"], lambda v: v * np.nan, "2 are not finite, the first is row 0"), (["a", "b"], lambda v: v[0], "shape"),
])  # fmt: skip
def test_what_cannot_be_coded_is_told(queries, change, told):
    with pytest.raises(InputError, match=told):
        build_index(queries, change(np.ones((2, 2), np.float32)), "e", K_MEANS)


def test_vectors_of_another_width_and_impossible_settings(by_hand):
    with pytest.raises(InputError, match="rows of 2 numbers"):
        by_hand.lookup(np.zeros((1, 3), np.float32), 1)
    with pytest.raises(InputError, match="take fewer codes"):
        RQVAEConfig(levels=8)
    with pytest.raises(InputError, match="at least one level"):
        RQKMeansConfig(codes=())


def test_an_encoder_is_told_by_its_files(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/model.safetensors").write_bytes(b"a")
    plain = encoder_hash(tmp_path / "plain")
    (tmp_path / "plain/model.safetensors").write_bytes(b"b")
    assert encoder_hash(tmp_path / "plain") != plain and len(plain) == 64
    with write_folder(tmp_path / "sealed", kind="export") as out:
        (out / "model.safetensors").write_bytes(b"a")
    assert len(encoder_hash(tmp_path / "sealed")) == 64
    with pytest.raises(InputError, match="no such folder"):
        encoder_hash(tmp_path / "none")
