"""Mesh and rules; and that where the arrays lie changes no number."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from crops_jax.batch import IdFeatures, Tokens
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder
from crops_jax.models.config import (
    MINILM_L6,
    QWEN2_5_0_5B,
    QWEN2_5_7B,
    BertConfig,
    DualEncoderConfig,
    Qwen2Config,
    SparseMlpConfig,
)
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import RULES, Leaf, Rules, abstract_mesh, abstract_on, make_mesh, mesh_sizes, put_rows
from crops_jax.text.hashed_ids import IdConfig

QWEN2 = Qwen2Config(vocab_size=40, width=16, layers=2, heads=4, kv_heads=2, head_size=8, ffn=24, init_std=0.3)
BERT = BertConfig(vocab_size=40, width=16, layers=2, heads=4, ffn=24, max_positions=16, init_std=0.3)
SPARSE = SparseMlpConfig(IdConfig(4, 5, 4, 4), table_width=8, hidden=(16,), width=8)
CASES = (
    (MeshConfig(data=4, tensor=2), DualEncoderConfig(QWEN2, "last")),
    (MeshConfig(data=4, tensor=2), DualEncoderConfig(QWEN2, "last", attention_scores=2 * 6**2)),
    (MeshConfig(replica=2, data=2, tensor=2), DualEncoderConfig(QWEN2, "mean", tie_towers=True, remat="full")),
    (MeshConfig(data=8), DualEncoderConfig(BERT, "mean")),
    (MeshConfig(data=4, tensor=2), DualEncoderConfig(SPARSE)),
)


def _rows(backbone) -> Tokens | IdFeatures:
    rng = np.random.default_rng(0)
    if isinstance(backbone, SparseMlpConfig):
        return IdFeatures(rng.integers(0, 16, (8, 1)).astype(np.int32), rng.integers(0, 16, (8, 2, 3)).astype(np.int32))
    return Tokens(rng.integers(1, 40, (8, 6)).astype(np.int32), np.array([6, 3, 1, 0, 5, 6, 2, 4], np.int32))


def _loss(model, rows):
    vectors = dual_encoder.encode(model, "document", rows)
    target = jnp.linspace(-1, 1, vectors.shape[1], dtype=jnp.float32)
    return (vectors @ target).sum() / dual_encoder.tau(model), vectors


_init = dual_encoder.init
_value_and_grad = jax.jit(jax.value_and_grad(_loss, has_aux=True))


@pytest.mark.slow
@pytest.mark.parametrize(("mesh_config", "config"), CASES)
def test_eight_devices_equal_one(mesh_config, config):
    rows, key = _rows(config.backbone), jax.random.key(3)
    (value, vectors), gradient = _value_and_grad(_init(config, key), rows)
    mesh = make_mesh(mesh_config)
    with jax.set_mesh(mesh):
        model = _init(config, key)
        wanted = abstract_on(dual_encoder.abstract(config), mesh)
        (value8, vectors8), gradient8 = _value_and_grad(model, put_rows(rows, mesh))
    for tree in (model, gradient8):
        assert all(
            jax.tree.leaves(jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s.sharding, a.ndim), tree, wanted))
        )
    np.testing.assert_allclose(value8, value, rtol=1e-4)
    np.testing.assert_allclose(vectors8, vectors, atol=1e-6)
    for a, b in zip(jax.tree.leaves(gradient8), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(_init(config, key)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-7)  # erf_inv's last bit depends on the vector width


@pytest.mark.slow
@pytest.mark.parametrize("second", ["ring", "depth"])
def test_a_torus_of_several_axes_changes_no_number(second):
    config, key, rows = DualEncoderConfig(QWEN2, tie_towers=True), jax.random.key(3), _rows(QWEN2)
    (value, _), gradient = _value_and_grad(_init(config, key), rows)
    mesh = jax.make_mesh((2, 2, 2, 1), ("replica", "data", second, "tensor"))
    with jax.set_mesh(mesh):
        model = _init(config, key)
        assert model.query_tower.layers.up.sharding.spec == P(None, ("data", second), "tensor")
        (value8, _), gradient8 = _value_and_grad(model, put_rows(rows, mesh))
    np.testing.assert_allclose(value8, value, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(gradient8), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_fsdp_keeps_no_gathered_weight_and_scatters_every_gradient(remat):
    mesh = make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        model = _init(DualEncoderConfig(QWEN2, tie_towers=True, remat=remat), jax.random.key(0))
        text = _value_and_grad.lower(model, put_rows(_rows(QWEN2), mesh)).compile().as_text()
    assert "f32[16,24]" in text  # one layer's `up`, gathered
    assert "f32[2,16,24]" not in text and "f32[2,24,16]" not in text  # both layers': they would wait for the backward
    scattered = re.findall(r"= (f32\S+) reduce-scatter\(", text)
    assert len(scattered) == 7  # q, k, v, o, gate, up, down
    weights = (16 * 24, 16 * 4 * 8, 16 * 2 * 8)
    for shape in re.findall(r"= \(?(f32\[[0-9,]+\])\S* all-reduce\(", text):
        assert np.prod([int(size) for size in re.findall(r"\d+", shape)[1:]]) not in weights


@pytest.mark.slow
def test_fsdp_off_is_a_rule_and_changes_no_number():
    config, key = DualEncoderConfig(backbone=QWEN2), jax.random.key(0)
    whole = Rules(embed=())
    mesh = make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        split, kept = _init(config, key), _init(config, key, whole)
        assert split.query_tower.layers.up.sharding.spec == P(None, "data", "tensor")
        assert kept.query_tower.layers.up.sharding.spec == P(None, None, "tensor")
        rows = put_rows(_rows(QWEN2), mesh)
        encode = jax.jit(dual_encoder.encode, static_argnums=(1, 3))
        np.testing.assert_allclose(encode(split, "query", rows, RULES), encode(kept, "query", rows, whole), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "vocab", "part"),
    [
        (MeshConfig(data=8), 12345, (12345, 2)),
        (MeshConfig(data=4, tensor=2), 12346, (6173, 4)),
        (MeshConfig(data=4, tensor=2), 12345, (12345, 4)),  # rows that do not divide stay whole
    ],
)
def test_the_lookup_gathers_neither_the_table_nor_its_gradient(sizes, vocab, part):
    config = DualEncoderConfig(backbone=Qwen2Config(**{**vars(QWEN2), "vocab_size": vocab}), tie_towers=True)
    rows, mesh = _rows(QWEN2), make_mesh(sizes)
    with jax.set_mesh(mesh):
        model = _init(config, jax.random.key(0))
        assert {shard.data.shape for shard in model.query_tower.embedding.addressable_shards} == {part}
        text = _value_and_grad.lower(model, put_rows(rows, mesh)).compile().as_text()
        beyond = replace(rows, ids=np.where(rows.ids == rows.ids[0, 0], vocab, rows.ids))
        assert np.isnan(np.asarray(dual_encoder.encode(model, "query", put_rows(beyond, mesh)))[0]).all()
    collectives = [line for line in text.splitlines() if re.search(r"(all|reduce|collective)-[a-z-]+\(", line)]
    assert any("all-to-all" in line for line in collectives)
    assert not [line for line in collectives if str(vocab) in line or str(part[0]) in line]


@pytest.mark.parametrize("backbone", [QWEN2_5_0_5B, QWEN2_5_7B, MINILM_L6])
def test_encoding_type_checks_on_256_abstract_devices(backbone):
    sizes = MeshConfig(replica=2, data=32, tensor=4) if backbone == QWEN2_5_7B else MeshConfig(replica=8, data=32)
    mesh = abstract_mesh(sizes, 256)
    config = DualEncoderConfig(backbone=backbone, pooling="mean", dtype="bfloat16", remat="full")
    with jax.sharding.use_abstract_mesh(mesh):
        model = abstract_on(dual_encoder.abstract(config), mesh)
        rows = Tokens(Leaf((256, 128), ("batch", None)), Leaf((256,), ("batch",)))
        rows = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.int32, sharding=x.sharding), abstract_on(rows, mesh)
        )
        (_, vectors), gradient = jax.eval_shape(jax.value_and_grad(_loss, has_aux=True), model, rows)
    assert vectors.shape == (256, backbone.width) and vectors.sharding.spec == P(("replica", "data"), None)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(model), strict=True):
        assert a.sharding.spec == b.sharding.spec


def test_a_mesh_that_lacks_an_axis_counts_it_as_one():
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.sharding.AbstractMesh((32, 8), ("data", "tensor"), axis_types=explicit)
    assert RULES.spec(mesh, ("batch", None, "kv_heads")) == P("data", None, "tensor")


def test_more_tensor_parallelism_than_kv_heads_and_odd_widths_are_refused_together():
    abstract = dual_encoder.abstract(DualEncoderConfig(backbone=QWEN2_5_0_5B))
    with pytest.raises(InputError) as error:
        RULES.check(abstract_mesh(MeshConfig(data=256, tensor=8), 2048), abstract)
    assert "tensor parallelism 8 does not divide 2 KV heads" in str(error.value)
    assert "query_tower/embedding: its 'embed' axis of 896 does not divide over 256 devices" in str(error.value)
    RULES.check(abstract_mesh(MeshConfig(data=128, tensor=2), 256), abstract)


def test_rules_that_collide_or_name_no_axis_are_refused():
    mesh = abstract_mesh(MeshConfig(data=4, tensor=2), 8)
    with pytest.raises(InputError, match="two dimensions on mesh axis data"):
        Rules(ffn=("data",)).spec(mesh, ("layers", "embed", "ffn"))
    with pytest.raises(InputError, match="ffn names mesh axis 'model'"):
        Rules(ffn=("model",))


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [(MeshConfig(), 1, (1, 1, 1)), (MeshConfig(tensor=2), 8, (1, 4, 2)), (MeshConfig(2, 2, -1), 8, (2, 2, 2))],
)
def test_the_open_size_takes_the_rest(config, devices, sizes):
    assert mesh_sizes(config, devices) == sizes


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(-1, -1), MeshConfig(tensor=3), MeshConfig(0)])
def test_impossible_meshes_are_refused(config):
    with pytest.raises(InputError, match="over 8 devices"):
        make_mesh(config)


def test_a_batch_that_does_not_divide_is_refused():
    check = partial(RULES.check_rows, make_mesh(MeshConfig(data=4, tensor=2)))
    check(8, "batch")
    with pytest.raises(InputError, match="batch = 6 does not divide over 4 devices"):
        check(6, "batch")
