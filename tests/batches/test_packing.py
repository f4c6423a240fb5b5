"""Packed batches: placement, equal embeddings, the order of groups, the share of slots that hold text."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from batches import packed

from crops_jax.batch import PackedTokens, Tokens
from crops_jax.batches.config import PackingConfig
from crops_jax.batches.packing import place
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder
from crops_jax.models.config import BertConfig, DualEncoderConfig, Qwen2Config
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh, put_rows

pytestmark = pytest.mark.slow  # many small compilations or files; `make test-all` runs them

QWEN2 = Qwen2Config(vocab_size=50, width=16, layers=2, heads=4, kv_heads=2, head_size=4, ffn=32)
BERT = BertConfig(vocab_size=50, width=16, layers=2, heads=4, ffn=32, max_positions=12)


@pytest.mark.parametrize("slots", [64, 200])
def test_texts_stay_whole_and_apart_and_fill_the_rows(slots):
    rng = np.random.default_rng(0)
    lengths = []
    while sum(lengths) < 0.96 * 8 * slots - 40:
        lengths.append(int(rng.integers(12, 40)))
    taken = np.zeros((8, slots), int)
    for (row, start), length in zip(place(lengths, 8, slots), lengths, strict=True):
        assert start + length <= slots
        taken[row, start : start + length] += 1
    assert taken.max() == 1 and taken.sum() == sum(lengths) > 0.88 * taken.size


def test_what_cannot_be_placed_is_refused():
    assert place([5, 5, 5], rows=2, slots=8) is None and place([9], rows=2, slots=8) is None
    assert place([], rows=2, slots=8) == []
    with pytest.raises(InputError, match="lookahead: -1 is below zero"):
        PackingConfig(lookahead=-1)


BOTH_WAYS = replace(QWEN2, causal=False)
CASES = [(b, p) for b in (QWEN2, BOTH_WAYS, BERT) for p in ("last", "mean", "cls") if (b, p) != (QWEN2, "cls")]


@pytest.mark.parametrize(("backbone", "pooling"), CASES)
def test_packed_embeddings_and_gradients_equal_padded_ones(backbone, pooling):
    rng = np.random.default_rng(1)
    length = np.array([5, 12, 0, 3, 1, 7, 12, 2, 9, 0, 4, 6, 8, 8, 1, 11], np.int32)
    padded = Tokens(rng.integers(1, 50, (16, 12)).astype(np.int32), length)
    texts = packed(padded, 4, rows=4, slots=16)
    model = dual_encoder.init(DualEncoderConfig(backbone=backbone, pooling=pooling), jax.random.key(0))
    target = rng.normal(size=(16, 16)).astype(np.float32)

    def loss(model, texts):
        vectors = dual_encoder.encode(model, "document", texts)
        return (vectors * target).sum(), vectors

    run = jax.jit(jax.grad(loss, has_aux=True))
    wanted_gradient, wanted = run(model, padded)
    gradient, vectors = run(model, texts)
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    assert not np.any(np.asarray(vectors)[length == 0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, wanted_gradient)

    mesh = make_mesh(MeshConfig(replica=2, data=2, tensor=2))
    with jax.set_mesh(mesh):
        model = dual_encoder.init(model.config, jax.random.key(0))
        spread = jax.jit(dual_encoder.encode, static_argnums=1)(model, "document", put_rows(texts, mesh))
    np.testing.assert_allclose(spread, wanted, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooling_never_leaves_a_shard(pooling):
    mesh = make_mesh(MeshConfig())
    texts = PackedTokens(*[np.zeros((8, 2, 16), np.int32)] * 3, *[np.zeros((8, 4), np.int32)] * 2)
    hidden = put_rows(np.zeros((16, 16, 8), np.float32), mesh)
    with jax.set_mesh(mesh):
        pool = jax.jit(jax.grad(lambda h, t: dual_encoder.pool_packed(h, t, pooling).sum()))
        program = pool.lower(hidden, put_rows(texts, mesh)).compile().as_text()
    assert not any(word in program for word in ("all-", "collective-", "reduce-scatter"))
