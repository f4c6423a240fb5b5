"""The whole train step of every config, type-checked on 256 abstract devices: shapes, dtypes, shardings, no arrays."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import P
from jax.sharding import NamedSharding

from crops_jax import optim
from crops_jax.batch import Batch, IdFeatures, Tokens
from crops_jax.config import load_file
from crops_jax.models import dual_encoder
from crops_jax.models.sparse_mlp import SparseMlpConfig
from crops_jax.sharding import RULES, MeshConfig, abstract_mesh, abstract_on
from crops_jax.train_step import build_step, init_state

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.py"))
MESH = abstract_mesh(MeshConfig(replica=8, data=32), 256)


def abstract_batch(experiment, b, k):
    def rows(*shape, dtype=jnp.int32):
        spec = RULES.spec(MESH, ("batch",) + (None,) * (len(shape) - 1))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, spec))

    def texts(n, slots, bags):
        if isinstance(experiment.model.backbone, SparseMlpConfig):
            return IdFeatures(rows(n, 1), rows(n, bags, 16))
        return Tokens(rows(n, slots), rows(n))

    n = b * k
    return Batch(
        query=texts(b, experiment.text.max_query_tokens, 1), docs=texts(n, experiment.text.max_doc_tokens, 2),
        query_key=rows(b), doc_key=rows(n), owner=rows(n), label=rows(n), source=rows(n),
        valid=rows(n, dtype=jnp.bool_),
    )  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_step_keeps_the_layout_of_every_parameter(path):
    experiment = load_file(path)
    model_config = replace(experiment.model, init_from=None)
    optimiser = optim.build(experiment.optim, dual_encoder.groups(model_config), experiment.train.steps)
    with jax.sharding.use_abstract_mesh(MESH):
        model = abstract_on(dual_encoder.abstract(model_config), MESH)
        state = jax.eval_shape(lambda m: init_state(m, optimiser), model)
        batch = abstract_batch(experiment, 512, experiment.input.docs_per_query)
        after, metrics = jax.eval_shape(build_step(experiment.loss, optimiser), state, batch)
    assert metrics["loss"].shape == () and metrics["loss"].sharding.spec == P()
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert old.ndim == 0 or old.sharding.spec == new.sharding.spec
    split = [leaf.sharding.spec for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim >= 2]
    assert any("data" in spec for spec in split)  # FSDP: Adam's moments lie like the parameters they belong to
