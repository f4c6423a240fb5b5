"""Frozen towers and lower layers: they stay bitwise, have no optimiser state, and cost no backward pass."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from batches import SPARSE, batch

from crops_jax.config import Experiment
from crops_jax.cost.flops import Texts, tower_flops, train_step_flops
from crops_jax.errors import InputError
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.models import dual_encoder
from crops_jax.models.config import BertConfig, DualEncoderConfig, FrozenConfig, LoraConfig, Qwen2Config
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import abstract_on, leaf_name, make_mesh, put_rows
from crops_jax.runs.tasks import task_of
from crops_jax.training import optim
from crops_jax.training.config import OptimConfig
from crops_jax.training.dual_encoder import DualEncoderObjective
from crops_jax.training.step import build_step, init_state

pytestmark = pytest.mark.slow  # many small compilations or files; `make test-all` runs them

QWEN2 = Qwen2Config(vocab_size=50, width=16, layers=3, heads=4, kv_heads=2, head_size=4, ffn=32, init_std=0.1)
BERT = BertConfig(vocab_size=50, width=16, layers=3, heads=4, ffn=32, max_positions=12, init_std=0.1)
OBJECTIVE = DualEncoderObjective(HInfoNCEConfig())


def leaves(tree):
    return {leaf_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def after_a_step(config):
    """(leaves before, leaves after, shapes of the first moments) of one update on a mesh of 2 x 2 x 2."""
    mesh = make_mesh(MeshConfig(replica=2, data=2, tensor=2))
    optimiser = optim.build(OptimConfig(learning_rate=0.1), dual_encoder.parameter_groups(config), 3)
    with jax.set_mesh(mesh):
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract_on(dual_encoder.abstract(config), mesh))
        model = jax.device_put(dual_encoder.init(config, jax.random.key(0)), places)
        before = leaves(model)
        state, _ = jax.jit(build_step(OBJECTIVE, optimiser))(
            init_state(model, OBJECTIVE, optimiser), put_rows(batch("padded"), mesh)
        )
    moments = {name: leaf.shape for name, leaf in leaves(state.opt_state).items() if "/mu/" in name}
    return before, leaves(state.model), moments


@pytest.mark.parametrize("backbone", [QWEN2, BERT], ids=["qwen2", "bert"])
def test_lower_layers_and_embeddings_stay_and_have_no_moments(backbone):
    before, after, moments = after_a_step(DualEncoderConfig(backbone, pooling="mean", frozen=FrozenConfig(layers=2)))
    for name, old in before.items():
        changed = after[name] != old
        if "/layers/" in name:
            assert not changed[:2].any() and changed[2].any(), name
        else:
            assert changed.any() == ("embedding" not in name), name
    stacked = [shape for name, shape in moments.items() if "/layers/" in name]
    assert stacked and all(shape[0] == 1 for shape in stacked)
    assert not [name for name in moments if "embedding" in name]


def test_a_frozen_tower_stays_and_the_other_learns():
    before, after, moments = after_a_step(DualEncoderConfig(QWEN2, frozen=FrozenConfig(towers=("document",))))
    for name, old in before.items():
        assert (after[name] != old).any() != name.startswith("document_tower"), name
    assert moments and not [name for name in moments if "document_tower" in name]


def test_what_is_trained_has_the_gradient_that_it_has_in_the_whole_model():
    whole = DualEncoderConfig(BERT, pooling="mean")
    rows = batch("packed")

    def gradient(config):
        model = dual_encoder.init(config, jax.random.key(0))

        def loss(parameters):
            return OBJECTIVE.loss(dual_encoder.with_trainable(model, parameters), rows, None)[0]

        return leaves(jax.jit(jax.grad(loss))(dual_encoder.trainable(model)))

    full, part = gradient(whole), gradient(replace(whole, frozen=FrozenConfig(layers=1)))
    for name, found in part.items():
        wanted = full[name][1:] if "/layers/" in name else full[name]
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=name)


def test_frozen_parts_cost_a_forward_pass_alone():
    read, width = Texts(10, 5, 2), BERT.width
    forward, loss = tower_flops(BERT, read), 2 * 2 * 2 * width
    two_of_three = DualEncoderConfig(BERT, pooling="mean", frozen=FrozenConfig(layers=2))
    assert train_step_flops(two_of_three, read, read) == 3 * loss + 2 * (forward + 2 * forward // 3)
    tower = DualEncoderConfig(BERT, pooling="mean", frozen=FrozenConfig(towers=("query",)))
    assert train_step_flops(tower, read, read) == 3 * loss + forward + 3 * forward


def test_the_compiler_computes_no_backward_pass_of_frozen_layers():
    def scans(layers):
        config = DualEncoderConfig(BERT, pooling="mean", frozen=FrozenConfig(layers=layers))
        model = dual_encoder.abstract(config)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model)

        def loss(parameters, model):
            return OBJECTIVE.loss(dual_encoder.with_trainable(model, parameters), batch("padded"), None)[0]

        def step(model):
            return jax.grad(loss)(dual_encoder.trainable(model), model)

        return str(jax.make_jaxpr(step)(shapes)).count("scan[")

    # Of each tower: one scan forwards and one backwards; a frozen part has one of its own, forwards alone.
    assert scans(0) == 4 and scans(1) == 6 and scans(3) == 4  # of no layer, nothing is left to go back through


def test_what_cannot_be_frozen_is_told():
    for wrong in (
        lambda: DualEncoderConfig(BERT, pooling="mean", frozen=FrozenConfig(towers=("query", "document"))),
        lambda: DualEncoderConfig(BERT, pooling="mean", tie_towers=True, frozen=FrozenConfig(towers=("query",))),
        lambda: DualEncoderConfig(BERT, pooling="mean", frozen=FrozenConfig(layers=4)),
        lambda: DualEncoderConfig(SPARSE, frozen=FrozenConfig(layers=1)),
        lambda: DualEncoderConfig(BERT, pooling="mean", lora=LoraConfig(), frozen=FrozenConfig(layers=1)),
    ):
        with pytest.raises(InputError, match="frozen"):
            wrong()


@pytest.mark.parametrize(
    ("frozen", "left"),
    [
        (FrozenConfig(layers=3, tau=True), False),
        (FrozenConfig(layers=3), False),  # the temperature alone
        (FrozenConfig(towers=("document",), layers=3), False),
        (FrozenConfig(towers=("document",), layers=2, tau=True), True),
    ],
)
def test_a_run_that_would_train_no_weight_is_refused(frozen, left):
    model = DualEncoderConfig(BERT, pooling="mean", frozen=frozen)
    experiment = replace(Experiment(), model=model)
    if left:
        task_of(experiment)
        return
    with pytest.raises(InputError, match=r"model\.frozen: every weight is frozen.*leave layers or a tower to train"):
        task_of(experiment)
