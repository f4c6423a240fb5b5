"""GradCache: the direct gradient from micro-batches, two forward passes, less memory."""

from functools import partial
from math import prod

import jax
import numpy as np
import optax
import pytest
from batches import SPARSE, batch
from jax.extend import core as jex

from crops_jax.batch import Batch
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.models import dual_encoder
from crops_jax.models.config import BertConfig, DualEncoderConfig, Qwen2Config
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh, put_rows
from crops_jax.runs.tasks import task_of
from crops_jax.training.config import ALL_AT_ONCE, GradCacheConfig
from crops_jax.training.dual_encoder import DualEncoderObjective
from crops_jax.training.step import build_step, init_state

pytestmark = pytest.mark.slow  # many small compilations or files; `make test-all` runs them

QWEN2 = Qwen2Config(vocab_size=50, width=16, layers=2, heads=4, kv_heads=2, head_size=4, ffn=32, init_std=0.1)
BERT = BertConfig(vocab_size=50, width=16, layers=2, heads=4, ffn=32, max_positions=12, init_std=0.1)
PARTS = GradCacheConfig(query_micro_batches=2, doc_micro_batches=4)
KEEP_GRADIENT = optax.chain(optax.trace(0.0), optax.set_to_zero())  # its state is the gradient, its update nothing


@partial(jax.jit, static_argnums=0)
def gradient(gradcache: GradCacheConfig, model: DualEncoder, batch: Batch):
    """(loss, gradient) of the real step."""
    objective = DualEncoderObjective(HInfoNCEConfig(), gradcache)
    state, metrics = build_step(objective, KEEP_GRADIENT)(init_state(model, objective, KEEP_GRADIENT), batch)
    return metrics["loss"], state.opt_state[0].trace


EIGHT, ONE = MeshConfig(replica=2, data=2, tensor=2), MeshConfig(data=1)
CASES = {
    "padded, tied, one device": ("padded", DualEncoderConfig(QWEN2, "last", tie_towers=True, remat="full"), ONE),
    "packed, untied, eight devices": ("packed", DualEncoderConfig(BERT, "mean"), EIGHT),
    "hashed ids, eight devices": ("ids", DualEncoderConfig(SPARSE), EIGHT),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_direct_one(case):
    kind, config, mesh_config = CASES[case]
    mesh = make_mesh(mesh_config, jax.devices()[: 8 if mesh_config is EIGHT else 1])
    with jax.set_mesh(mesh):
        model, rows = dual_encoder.init(config, jax.random.key(0)), put_rows(batch(kind), mesh)
        at_once, in_parts = (gradient.lower(how, model, rows).compile() for how in (ALL_AT_ONCE, PARTS))
        (value, wanted), (found, parts) = at_once(model, rows), in_parts(model, rows)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    assert abs(wanted.log_tau) > 1
    assert [x.sharding for x in jax.tree.leaves(parts)] == [x.sharding for x in jax.tree.leaves(wanted)]
    parts, wanted = jax.tree.leaves(jax.device_get(parts)), jax.tree.leaves(jax.device_get(wanted))
    norms = [np.sqrt(sum(np.square(x).sum() for x in tree)) for tree in (map(np.subtract, parts, wanted), wanted)]
    assert norms[0] <= 1e-6 * norms[1]
    for a, b in zip(parts, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=max(5e-6 * np.abs(b).max(), 1e-8 * norms[1]))
    if kind == "packed":  # a quarter of the documents' activations, and a half of the queries', are there at a time
        assert in_parts.memory_analysis().temp_size_in_bytes < at_once.memory_analysis().temp_size_in_bytes / 3


def products(jaxpr: jex.Jaxpr) -> int:
    """FLOPs of all matrix products, those of a scan's body as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * prod(equation.outvars[0].aval.shape) * prod(left[i] for i in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(products(inner) for inner in jex.jaxprs_in_params(equation.params))
    return total


def test_no_text_is_encoded_a_third_time():
    """The backward pass takes two forward passes: 3 in all at once, 4 with a second forward pass, 5 with a third."""

    def flops(remat: str, gradcache: GradCacheConfig) -> int:
        model = dual_encoder.abstract(DualEncoderConfig(QWEN2, "last", remat=remat))
        return products(gradient.trace(gradcache, model, batch("packed")).jaxpr.jaxpr)

    once = flops("none", ALL_AT_ONCE)
    for remat in ("none", "dots", "full"):
        assert 3.9 < 3 * flops(remat, PARTS) / once <= 4
    assert 3.7 < 3 * flops("full", ALL_AT_ONCE) / once <= 4  # a test of the count


def test_a_run_takes_the_loss_and_the_micro_batches_of_its_experiment():
    loss = HInfoNCEConfig(form="streaming", tile=3, reduction="sum")
    task = task_of(Experiment(model=DualEncoderConfig(SPARSE), loss=loss, gradcache=PARTS))
    assert task.objective == DualEncoderObjective(loss, PARTS)


@pytest.mark.parametrize(("kind", "knob"), [("padded", "input.batch_queries"), ("packed", "input.packing.doc_rows")])
def test_micro_batches_that_do_not_divide_the_rows_are_refused(kind, knob):
    model = dual_encoder.abstract(DualEncoderConfig(QWEN2, "last"))
    with pytest.raises(InputError, match=f"gradcache.doc_micro_batches = 3: .* or {knob}"):
        jax.eval_shape(partial(gradient, GradCacheConfig(doc_micro_batches=3)), model, batch(kind))
