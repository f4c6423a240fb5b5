"""The metrics of one update against numbers worked out by hand, and against gradients taken apart from it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from batches import SPARSE, batch, words

from crops_jax.batch import Batch
from crops_jax.labels import LETTERS, source_bits
from crops_jax.losses.build import build_loss
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.models import dual_encoder
from crops_jax.models.config import DualEncoderConfig
from crops_jax.training import optim
from crops_jax.training.config import OptimConfig
from crops_jax.training.dual_encoder import DualEncoderObjective, _cosine_by_source
from crops_jax.training.step import build_step, init_state


def test_cosine_by_source_by_hand():
    """Three documents, of which the last has two sources, and a padding row that must count for none."""
    sources = [source_bits(*of) for of in (["P0"], ["X3"], ["P0", "P1"], ["P1"])]
    labels = Batch(
        query=None,
        docs=None,
        query_key=words(np.arange(2)),
        doc_key=words([0, 1, 2, -1]),
        label=jnp.array([4, 3, 5, 0]),
        valid=jnp.array([True, True, True, False]),
        source=jnp.array(sources, jnp.int32),
    )
    told = _cosine_by_source(jnp.array([0.5, -0.25, 0.75, 0.9], jnp.float32), labels)
    wanted = {f"cosine_{name}": 0.0 for name in LETTERS}  # without a document
    assert told == wanted | {"cosine_P0": (0.5 + 0.75) / 2, "cosine_P1": 0.75, "cosine_X3": -0.25}


def test_the_gradient_norm_is_that_of_the_whole_gradient_before_it_is_clipped():
    config, rows = DualEncoderConfig(SPARSE), batch("ids")
    model = dual_encoder.init(config, jax.random.key(0))
    nxn = build_loss(HInfoNCEConfig("nxn"))

    def loss(model):
        vectors = [dual_encoder.encode(model, *side) for side in (("query", rows.query), ("document", rows.docs))]
        return nxn(*vectors, model.log_tau, rows)[0]

    gradient = jax.device_get(jax.tree.leaves(jax.jit(jax.grad(loss))(model)))
    wanted = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in gradient))
    clipped, objective = OptimConfig(clip_norm=0.1), DualEncoderObjective(HInfoNCEConfig())
    optimiser = optim.build(clipped, dual_encoder.parameter_groups(config), 3)
    _, metrics = jax.jit(build_step(objective, optimiser))(init_state(model, objective, optimiser), rows)
    assert wanted > 1 > clipped.clip_norm
    np.testing.assert_allclose(metrics["gradient_norm"], wanted, rtol=1e-5)


def test_the_loss_of_several_widths_is_the_mean_of_separate_losses():
    """In value and gradient; the vectors of a width are the whole ones' first numbers, brought back to length one."""
    config, rows = DualEncoderConfig(SPARSE, widths=(2, 5)), batch("ids")
    model, loss = dual_encoder.init(config, jax.random.key(0)), build_loss(HInfoNCEConfig("nxn"))

    def of_width(model, width):
        towers = (("query", rows.query), ("document", rows.docs))
        pooled = [dual_encoder.pooled(model, *side)[:, :width] for side in towers]
        vectors = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in pooled]
        return loss(*vectors, model.log_tau, rows)[0]

    def of_all(model):
        return DualEncoderObjective(HInfoNCEConfig("nxn")).loss(model, rows, None)

    def apart(model):
        parts = [of_width(model, width) for width in (8, 2, 5)]
        return sum(parts) / 3, parts

    (mean, parts), wanted = jax.jit(jax.value_and_grad(apart, has_aux=True))(model)
    (value, told), gradient = jax.jit(jax.value_and_grad(of_all, has_aux=True))(model)
    np.testing.assert_allclose(value, mean, rtol=1e-5)
    np.testing.assert_allclose([told["loss_2"], told["loss_5"]], parts[1:], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, wanted)


def test_an_objective_gets_the_constants_of_its_round():
    class Slope:
        """Minimises constants * x."""

        def loss(self, model, batch, constants):
            return model * constants, {"told": constants}

        def trainable(self, model):
            return model

        def with_trainable(self, model, parameters):
            return parameters

        def settled(self, model):
            return jnp.maximum(model, 0.5), {"after": model}

    objective, optimiser = Slope(), optax.sgd(0.25)
    step = jax.jit(build_step(objective, optimiser))
    state = init_state(jnp.float32(1), objective, optimiser)
    state, metrics = step(state, None, jnp.float32(1))
    assert float(state.model) == 0.75 and float(metrics["told"]) == 1 and float(metrics["after"]) == 0.75
    state, metrics = step(state, None, jnp.float32(2))
    assert float(state.model) == 0.5 and float(metrics["after"]) == 0.25 and int(state.step) == 2
    assert float(metrics["gradient_norm"]) == 2 and float(metrics["update_norm"]) == 0.5
