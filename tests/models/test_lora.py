"""LoRA: starts as the base model, trains adapters alone, and merges into a tower that needs to know nothing of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import batch, moved
from places import GOLDEN
from safetensors.numpy import save_file

from crops_jax.config import Experiment, from_json, to_json
from crops_jax.cost import collectives, hlo
from crops_jax.errors import InputError
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.models import dual_encoder, hf_config, hf_import, lora
from crops_jax.models.config import BertConfig, DualEncoderConfig, LoraConfig, Qwen2Config, SparseMlpConfig
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import abstract_on, make_mesh, put_rows
from crops_jax.training import optim
from crops_jax.training.checkpoint import Checkpoints
from crops_jax.training.config import OptimConfig
from crops_jax.training.dual_encoder import DualEncoderObjective
from crops_jax.training.step import build_step, init_state

pytestmark = pytest.mark.slow  # many small compilations or files; `make test-all` runs them

QWEN2 = Qwen2Config(vocab_size=50, width=16, layers=2, heads=4, kv_heads=2, head_size=4, ffn=32, init_std=0.1)
BERT = BertConfig(vocab_size=50, width=16, layers=2, heads=4, ffn=32, max_positions=12, init_std=0.1)
LORA = LoraConfig(rank=3, alpha=6.0, projections=("q", "o", "down"))
ON_QWEN2 = DualEncoderConfig(QWEN2, "last", tie_towers=True, lora=LORA)
ON_BERT = DualEncoderConfig(BERT, "mean", lora=replace(LORA, projections=("k", "o", "up")))
_encode = jax.jit(dual_encoder.encode, static_argnums=1)


@pytest.mark.parametrize("config", [ON_QWEN2, ON_BERT], ids=["qwen2", "bert"])
def test_it_starts_as_the_base_model_and_merges_into_one(config):
    texts = batch("padded").docs
    model = dual_encoder.init(config, jax.random.key(0))
    plain = dual_encoder.init(replace(config, lora=None), jax.random.key(0))
    np.testing.assert_array_equal(_encode(model, "document", texts), _encode(plain, "document", texts))

    model = moved(model)
    wanted = np.asarray(_encode(model, "document", texts))
    assert np.abs(wanted - _encode(plain, "document", texts)).max() > 0.01
    plain.query_tower = lora.merged(model.query_tower)
    plain.document_tower = None if config.tie_towers else lora.merged(model.document_tower)
    np.testing.assert_allclose(_encode(plain, "document", texts), wanted, atol=1e-5)


def test_the_gradient_is_the_dense_one_seen_through_the_adapter():
    """dA = s G B^T and dB = s A^T G, G being the gradient of the merged weight, s = alpha / r; on eight devices."""
    config, texts = replace(ON_BERT, tie_towers=True), batch("padded").docs
    target = np.random.default_rng(0).normal(size=(len(texts.length), 16)).astype(np.float32)

    @jax.jit
    def gradient(parameters, model, texts):
        def total(parameters):
            model_ = dual_encoder.with_trainable(model, parameters)
            return (dual_encoder.encode(model_, "document", texts) * target).sum()

        return jax.grad(total)(parameters)

    model = moved(dual_encoder.init(config, jax.random.key(0)))
    dense = dual_encoder.init(replace(config, lora=None), jax.random.key(0))
    dense.query_tower = jax.tree.map(jnp.asarray, lora.merged(model.query_tower))
    wanted = gradient(dense, dense, texts).query_tower.layers
    mesh = make_mesh(MeshConfig(replica=2, data=2, tensor=2))
    with jax.set_mesh(mesh):
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract_on(dual_encoder.abstract(config), mesh))
        spread = jax.device_put(model, places)
        found = gradient(dual_encoder.trainable(spread), spread, put_rows(texts, mesh)).query_tower
    assert found.embedding is None and found.layers.up_bias is None
    for name in config.lora.projections:
        own, g, adapted = getattr(found.layers, name), getattr(wanted, name), getattr(model.query_tower.layers, name)
        a, b = adapted.a.reshape(2, -1, 3), adapted.b.reshape(2, 3, -1)
        g = g.reshape(2, a.shape[1], b.shape[2])
        assert own.base is None
        np.testing.assert_allclose(own.a.reshape(a.shape), 2 * np.einsum("lio,lro->lir", g, b), atol=1e-4)
        np.testing.assert_allclose(own.b.reshape(b.shape), 2 * np.einsum("lir,lio->lro", a, g), atol=1e-4)


def test_a_step_moves_adapters_and_tau_alone_and_its_state_is_restored(tmp_path):
    config, objective = ON_QWEN2, DualEncoderObjective(HInfoNCEConfig())
    optimiser = optim.build(OptimConfig(learning_rate=0.01), dual_encoder.parameter_groups(config), 3)
    mesh = make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        state = init_state(dual_encoder.init(config, jax.random.key(0)), objective, optimiser)
        rows = put_rows(batch("padded"), mesh)
        step = jax.jit(build_step(objective, optimiser)).lower(state, rows).compile()
        after, _ = step(step(state, rows)[0], rows)  # in the first step B is zero, and A's gradient with it
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(2, vars(after))
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), vars(after))
            checkpoints.wait()
            _, restored = checkpoints.restore(shapes)
    jax.tree.map(np.testing.assert_array_equal, restored, vars(after))

    changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), state.model, after.model)
    assert jax.tree.leaves(changed) == [
        group != "frozen" for group in jax.tree.leaves(dual_encoder.parameter_groups(config))
    ]
    adapters = sum(leaf.size for leaf in jax.tree.leaves(dual_encoder.trainable(state.model)))
    assert adapters == 2 * 3 * (16 + 16 + 16 + 16 + 32 + 16) + 1  # layers, rank, ends of q, o and down; tau
    assert sum(leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim) == 2 * (adapters - 1)
    sent = [c for c in collectives.collectives(hlo.parse(step.as_text()), "crops_jax") if c.origin == "layers.project"]
    gradients = sum(c.bytes for c in sent if c.kind != "all-gather")
    assert gradients < 3 * 4 * adapters  # the adapters', by queries and by documents; those of all weights are more


def test_a_checkpoint_goes_under_the_adapters_and_comes_out_with_them_merged(tmp_path):
    backbone = hf_config.from_hf_json(GOLDEN / "qwen2_tiny" / "config.json")
    config = DualEncoderConfig(backbone, "last", init_from=str(GOLDEN / "qwen2_tiny"), lora=LORA)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    with jax.set_mesh(mesh):
        model = hf_import.create(config, jax.random.key(0), mesh)
    plain = hf_import.load_tower(GOLDEN / "qwen2_tiny", backbone)
    np.testing.assert_array_equal(model.document_tower.layers.o.base, plain.layers.o)
    assert model.document_tower.layers.o.b.sharding.spec == jax.P(None, None, "data")

    model = moved(jax.tree.map(np.asarray, model))
    save_file(hf_import.to_hf(model.query_tower), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((GOLDEN / "qwen2_tiny" / "config.json").read_text())
    texts = batch("padded").docs
    served = replace(config, lora=None, init_from=str(tmp_path))
    vectors = _encode(hf_import.create(served, jax.random.key(0)), "query", texts)
    np.testing.assert_allclose(vectors, _encode(model, "query", texts), atol=1e-5)


def test_configs_are_read_back_and_impossible_ones_refused():
    experiment = Experiment(model=DualEncoderConfig(lora=LoraConfig(projections=("q", "v"))))
    assert from_json(to_json(experiment)) == experiment
    with pytest.raises(InputError, match="sparse model has no projections"):
        DualEncoderConfig(backbone=SparseMlpConfig(), lora=LoraConfig())
    with pytest.raises(InputError, match=r"\('q', 'gate'\): some of q, k, v, o, up, down"):
        DualEncoderConfig(backbone=BERT, lora=LoraConfig(projections=("q", "gate")))
    with pytest.raises(InputError, match=r"\('q', 'q'\): some of .*, each once"):
        DualEncoderConfig(lora=LoraConfig(projections=("q", "q")))
    with pytest.raises(InputError, match="rank: 0 is not above zero"):
        LoraConfig(rank=0)
