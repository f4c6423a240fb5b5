"""The whole train step of every config, type-checked on 256 abstract devices: shapes, dtypes, shardings, no arrays."""

from contextlib import suppress
from dataclasses import replace

import jax
import pytest
from jax import P
from places import CONFIGS, EXPERIMENTS

from crops_jax.batch import IdFeatures, PackedTokens, Tokens
from crops_jax.command_line import load_file
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import RULES, abstract_mesh, axes_of
from crops_jax.runs.tasks import task_of
from crops_jax.training.step import build_step

pytestmark = pytest.mark.slow  # many small compilations or files; `make test-all` runs them

MESH = abstract_mesh(MeshConfig(replica=8, data=32), 256)


def at_scale(experiment):
    """The experiment with a batch for 256 devices."""
    packing = experiment.input.packing
    if packing is not None:
        packing = replace(packing, doc_rows=1024, query_rows=256)
    inputs = replace(experiment.input, batch_queries=512, shards=256, packing=packing)
    return replace(experiment, input=inputs)


def mesh_for(model, tensor):
    """256 devices, 32 of which split the parameters; raises InputError where the model's heads are too few."""
    mesh = abstract_mesh(MeshConfig(replica=8 // tensor, data=32, tensor=tensor), 256)
    RULES.check(mesh, dual_encoder.abstract(model))
    return mesh


def most_tensor(model):
    """The largest tensor parallelism, a power of two up to 8, that the rules accept."""
    for tensor in (8, 4, 2):
        with suppress(InputError):
            mesh_for(model, tensor)
            return tensor
    return 1


def test_tensor_parallelism_goes_as_far_as_the_heads():
    most = {path.stem: most_tensor(load_file(path).model) for path in EXPERIMENTS}
    assert min(most.values()) > 1
    some = {"crops_qwen2_5_0_5b": 2, "crops_qwen2_5_7b": 4, "demo_sparse": 8, "homedepot_minilm": 4}
    assert some.items() <= most.items()


@pytest.mark.parametrize("split", ["data alone", "tensor too"])
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_the_step_keeps_the_layout_of_every_parameter(path, split):
    experiment = at_scale(load_file(path))
    tensor = most_tensor(experiment.model) if split == "tensor too" else 1
    mesh = mesh_for(experiment.model, tensor)
    task = task_of(experiment)
    with jax.sharding.use_abstract_mesh(mesh):
        state, batch = task.abstract_state(mesh), task.abstract_batch(mesh)
        step = build_step(task.objective, task.optimiser)
        after, metrics = jax.eval_shape(step, state, batch)
    assert metrics["loss"].shape == () and metrics["loss"].sharding.spec == P()
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert old.ndim == 0 or old.sharding.spec == new.sharding.spec
    moments = [leaf.sharding.spec for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim >= 2]
    axes = {axis for spec in moments for part in spec for axis in axes_of(part)}
    assert axes == {"data", "tensor"}  # FSDP: Adam's moments lie like the parameters they belong to


def test_batches_of_every_kind_are_split_by_rows():
    packed = at_scale(load_file(CONFIGS / "crops_qwen2_5_0_5b.py"))
    padded = replace(packed, input=replace(packed.input, packing=None))
    sparse = at_scale(load_file(CONFIGS / "demo_sparse.py"))
    kinds = [type(task_of(experiment).abstract_batch(MESH).docs) for experiment in (packed, padded, sparse)]
    assert kinds == [PackedTokens, Tokens, IdFeatures]
    batch = task_of(packed).abstract_batch(MESH)
    assert batch.docs.ids.shape == (256, 4, 512) and batch.docs.first.shape == (256, 512 * 16 // 256)
    assert {leaf.sharding.spec[0] for leaf in jax.tree.leaves(batch)} == {("replica", "data")}


def test_shards_that_the_mesh_does_not_divide_are_refused():
    experiment = at_scale(load_file(CONFIGS / "crops_qwen2_5_0_5b.py"))
    with pytest.raises(InputError, match=r"input\.shards = 16 does not divide over 256 devices"):
        task_of(replace(experiment, input=replace(experiment.input, shards=16))).abstract_batch(MESH)
