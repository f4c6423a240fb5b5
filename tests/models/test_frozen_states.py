"""States of frozen layers: the same vectors and gradients as without, from weights that are not looked at again."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import batch

from crops_jax.batch import Tokens
from crops_jax.cost.flops import Texts, tower_flops, train_step_flops
from crops_jax.errors import InputError
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.models import dual_encoder, frozen_states
from crops_jax.models.config import BertConfig, DualEncoderConfig, FrozenConfig, Qwen2Config
from crops_jax.models.frozen_states import FrozenStates
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import leaf_name, make_mesh
from crops_jax.retrieval.config import EncodeConfig
from crops_jax.retrieval.embedding import encode_rows
from crops_jax.training.config import GradCacheConfig
from crops_jax.training.dual_encoder import DualEncoderObjective

pytestmark = pytest.mark.slow  # many small compilations; `make test-all` runs them

QWEN2 = Qwen2Config(vocab_size=50, width=16, layers=3, heads=4, kv_heads=2, head_size=4, ffn=32, init_std=0.3)
BERT = BertConfig(vocab_size=50, width=16, layers=3, heads=4, ffn=32, max_positions=32, init_std=0.3)
BACKBONES = pytest.mark.parametrize("backbone", [QWEN2, BERT], ids=["qwen2", "bert"])


def config(backbone, **frozen):
    return DualEncoderConfig(backbone, pooling="mean", frozen=FrozenConfig(layers=2, **frozen))


def model_of(backbone, seed=0, **frozen):
    return dual_encoder.init(config(backbone, keep_states=True, **frozen), jax.random.key(seed))


def without_frozen_weights(model):
    """The model with NaN wherever the frozen layers and embeddings have numbers."""

    def spoil(path, leaf):
        if "/layers/" in leaf_name(path):
            return leaf.at[:2].set(jnp.nan)
        return leaf * jnp.nan if "embedding" in leaf_name(path) else leaf

    return jax.tree_util.tree_map_with_path(spoil, model)


def padded_texts(n=90):
    rng = np.random.default_rng(0)
    length = rng.integers(1, 25, n).astype(np.int32)
    length[::17] = 0
    return Tokens(rng.integers(1, 50, (n, 24)).astype(np.int32), length)


@BACKBONES
@pytest.mark.parametrize("packed", ["yes", "no"])
def test_vectors_are_those_of_the_whole_model_and_come_from_the_states_alone(tmp_path, backbone, packed):
    mesh, rows, encode = (
        make_mesh(MeshConfig(), jax.devices()[:2]),
        padded_texts(),
        EncodeConfig(batch=16, packed=packed, row_tokens=128),
    )
    with jax.set_mesh(mesh):
        model = model_of(backbone)
        wanted = encode_rows(model, "document", rows, encode, mesh)
        states = FrozenStates(tmp_path, model)
        found = encode_rows(model, "document", rows, encode, mesh, states=states)
        again = FrozenStates(tmp_path, model)  # another process, or another arm
        spoilt = encode_rows(without_frozen_weights(model), "document", rows, encode, mesh, states=again)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_array_equal(spoilt, found)


@BACKBONES
@pytest.mark.parametrize(("kind", "parts"), [("padded", 1), ("packed", 2)])
def test_gradients_are_those_of_the_whole_model(tmp_path, backbone, kind, parts):
    objective = DualEncoderObjective(HInfoNCEConfig(), GradCacheConfig(1, parts))
    model, rows, mesh = model_of(backbone), batch(kind), make_mesh(MeshConfig(), jax.devices()[:1])
    states = FrozenStates(tmp_path, model)
    plain = batch("padded")
    with jax.set_mesh(mesh):
        states.prepare(model, "query", plain.query, mesh)
        states.prepare(model, "document", plain.docs, mesh)
    filled = replace(rows, query=states.fill("query", rows.query), docs=states.fill("document", rows.docs))

    @jax.jit
    def gradient(model, rows):
        def loss(parameters):
            return objective.loss(dual_encoder.with_trainable(model, parameters), rows, None)[0]

        return jax.value_and_grad(loss)(dual_encoder.trainable(model))

    wanted, found = gradient(model, rows), gradient(without_frozen_weights(model), filled)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, wanted)


def test_a_tower_that_is_frozen_as_a_whole_shares_the_states_of_its_lower_layers(tmp_path):
    mesh, rows = make_mesh(MeshConfig(), jax.devices()[:1]), padded_texts(20)
    encode = EncodeConfig(batch=16)
    with jax.set_mesh(mesh):
        both = model_of(BERT)
        FrozenStates(tmp_path, both).prepare(both, "document", rows, mesh)
        fixed = model_of(BERT, towers=("document",))
        wanted = encode_rows(fixed, "document", rows, encode, mesh)
        spoilt = without_frozen_weights(fixed)
        found = encode_rows(spoilt, "document", rows, encode, mesh, states=FrozenStates(tmp_path, both))
        assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_other_weights_have_a_folder_of_their_own_and_a_lost_one_is_told(tmp_path):
    mesh, rows = make_mesh(MeshConfig(), jax.devices()[:1]), padded_texts(20)
    with jax.set_mesh(mesh):
        for seed in (0, 1):
            model = model_of(BERT, seed)
            states = FrozenStates(tmp_path, model)
            states.prepare(model, "document", rows, mesh)
            assert np.isfinite(states.fill("document", rows).states).all()
    assert len(list(tmp_path.iterdir())) == 2
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    with pytest.raises(InputError, match="begin again"):
        FrozenStates(tmp_path, model).fill("document", rows)


def test_layers_whose_states_are_kept_cost_nothing():
    read, loss = Texts(10, 5, 2), 2 * 2 * 2 * BERT.width
    forward = tower_flops(BERT, read)
    assert train_step_flops(config(BERT, keep_states=True), read, read) == 3 * loss + 2 * (3 * forward // 3)
    with pytest.raises(InputError, match=r"frozen\.layers"):
        DualEncoderConfig(BERT, pooling="mean", frozen=FrozenConfig(keep_states=True))


def test_a_run_says_what_the_states_of_other_weights_take(tmp_path, monkeypatch, capsys):
    first, second = (model_of(QWEN2, seed=seed) for seed in (0, 1))
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        FrozenStates(tmp_path, first).prepare(first, "query", padded_texts(8), mesh)
    monkeypatch.setattr(frozen_states, "_LARGE", 1)
    capsys.readouterr()
    FrozenStates(tmp_path, first)
    assert capsys.readouterr().err == ""
    FrozenStates(tmp_path, second)
    assert "of other frozen weights' states (1) lie there too" in capsys.readouterr().err
