"""Texts of any length in packed rows: none lost, none cut, few slots empty, the same on any number of processes."""

import jax
import numpy as np
import pytest

from crops_jax.batch import Tokens
from crops_jax.models import dual_encoder
from crops_jax.models.config import BertConfig, DualEncoderConfig, Qwen2Config
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh
from crops_jax.retrieval import packed
from crops_jax.retrieval.config import EncodeConfig
from crops_jax.retrieval.embedding import encode_rows


def texts(n, longest=60, seed=0):
    rng = np.random.default_rng(seed)
    length = np.minimum(1 + rng.geometric(0.06, n), longest).astype(np.int32)
    length[::17] = 0
    return Tokens(rng.integers(1, 50, (n, longest)).astype(np.int32), length)


def test_every_text_lies_whole_in_one_row_with_places_of_its_own():
    rows = texts(500)
    seen = np.zeros(500, int)
    for call in packed.calls(rows, 128, budget=4 * 2 * 128, shards=4, here=range(4)):
        batch = call.batch
        assert batch.ids.shape[0] == 4 and batch.ids.shape[2] == 128 and batch.ids.shape[1] <= 2
        for text, place in zip(call.texts, call.places, strict=True):
            shard, number = divmod(int(place), batch.first.shape[1])
            length = rows.length[text]
            assert batch.length[shard, number] == length
            at = slice(batch.first[shard, number], batch.first[shard, number] + length)
            assert at.start // 128 == (at.stop - 1) // 128
            np.testing.assert_array_equal(batch.ids[shard].ravel()[at], rows.ids[text, :length])
            np.testing.assert_array_equal(batch.position[shard].ravel()[at], np.arange(length))
            assert (batch.segment[shard] == number + 1).sum() == length
        assert (batch.segment > 0).sum() == rows.length[call.texts].sum()
        seen[call.texts] += 1
    np.testing.assert_array_equal(seen, rows.length > 0)


def test_at_least_95_of_100_slots_are_real():
    rows = texts(20_000)
    calls = list(packed.calls(rows, 512, budget=256 * 60, shards=8, here=range(8)))
    assert rows.length.sum() / sum(call.batch.ids.size for call in calls) > 0.95
    assert len({(call.batch.ids.shape, call.batch.first.shape) for call in calls}) <= 2  # two shapes are compiled


def test_each_process_makes_its_own_shards_of_the_same_calls():
    rows = texts(300)
    whole, *parts = (list(packed.calls(rows, 128, 8 * 128, 4, here)) for here in (range(4), [0, 2], [1, 3]))
    for all_shards, *of_processes in zip(whole, *parts, strict=True):
        for here, part in zip(([0, 2], [1, 3]), of_processes, strict=True):
            np.testing.assert_array_equal(part.places, all_shards.places)
            jax.tree.map(lambda a, b, h=here: np.testing.assert_array_equal(a, b[h]), part.batch, all_shards.batch)


def test_a_row_is_as_long_as_the_longest_text_wants():
    rows = Tokens(np.ones((3, 200), np.int32), np.array([200, 5, 100], np.int32))
    first, second = packed.calls(rows, 128, budget=200, shards=1, here=[0])
    assert first.batch.ids.shape == second.batch.ids.shape == (1, 1, 256)
    assert sorted([*first.texts, *second.texts]) == [0, 1, 2]


BACKBONES = {
    "last": Qwen2Config(vocab_size=50, width=16, layers=2, heads=4, kv_heads=2, head_size=8, ffn=24, init_std=0.3),
    "mean": BertConfig(vocab_size=50, width=16, layers=2, heads=4, ffn=24, max_positions=64, init_std=0.3),
}


@pytest.mark.slow
@pytest.mark.parametrize("pooling", BACKBONES)
def test_packed_vectors_are_those_of_padded_texts(pooling):
    rows, mesh = texts(120), make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        model = dual_encoder.init(DualEncoderConfig(BACKBONES[pooling], pooling), jax.random.key(0))
        found, wanted = (
            encode_rows(model, "document", rows, EncodeConfig(batch=16, packed=how, row_tokens=128), mesh)
            for how in ("yes", "auto")
        )
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert not found[::17].any() and np.allclose(np.linalg.norm(found[1:17], axis=1), 1, atol=1e-5)


def test_texts_without_tokens_alone_are_zeros():
    rows, mesh = Tokens(np.zeros((4, 8), np.int32), np.zeros(4, np.int32)), make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        model = dual_encoder.init(DualEncoderConfig(BACKBONES["last"], "last"), jax.random.key(0))
        assert not encode_rows(model, "query", rows, EncodeConfig(batch=8, packed="yes"), mesh).any()
