"""In which precision things are computed, read off the traced programs: on a CPU every precision gives the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import batch
from jax.extend import core as jex

from crops_jax.losses.build import build_loss
from crops_jax.losses.config import (
    HInfoNCEConfig,
    InfoNCEBinaryConfig,
    InfoNCEPerPositiveConfig,
    PairwiseConfig,
    SoftmaxCEConfig,
)
from crops_jax.models import dual_encoder, sentence_encoder
from crops_jax.models.attention import attention
from crops_jax.models.config import BertConfig, DualEncoderConfig, Qwen2Config
from crops_jax.models.layers import layer_norm, rms_norm, rope_angles, rotate
from crops_jax.models.sentence_head import Head
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh, put_rows
from crops_jax.retrieval import exact
from crops_jax.training.dual_encoder import DualEncoderObjective

HIGHEST = jax.lax.Precision.HIGHEST
FORMS = ("factored", "streaming", "ring", "nxn")
LOSSES = [*map(HInfoNCEConfig, FORMS), InfoNCEBinaryConfig(), InfoNCEPerPositiveConfig(), SoftmaxCEConfig(),
          PairwiseConfig()]  # fmt: skip


def equations(jaxpr: jex.Jaxpr):
    """All of a program, those of its loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jex.jaxprs_in_params(equation.params):
            yield from equations(inner)


def products(function, *args):
    return [e for e in equations(jax.make_jaxpr(function)(*args).jaxpr) if e.primitive.name == "dot_general"]


def check_products(found, least):
    """Each in the highest precision, from float32 to float32."""
    assert len(found) >= least
    for equation in found:
        precision = equation.params["precision"]
        assert precision is not None and {*np.atleast_1d(precision)} == {HIGHEST}, equation
        assert {v.aval.dtype for v in (*equation.invars, *equation.outvars)} == {jnp.dtype("float32")}, equation


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", LOSSES, ids=lambda c: f"{type(c).__name__} {getattr(c, 'form', '')}")
def test_every_product_of_a_loss_is_exact_in_value_and_gradient(config, dtype):
    """On a mesh, where the ring has steps; logits and their sums are float32 whatever the towers compute in."""
    rows, mesh = batch("ids"), make_mesh(MeshConfig())
    vectors = [jnp.ones((n, 4), dtype) for n in rows.sizes]
    loss = build_loss(config)
    with jax.set_mesh(mesh):
        spread = put_rows((*map(np.asarray, vectors), rows), mesh)
        own = 1 if isinstance(config, PairwiseConfig) else 2  # of a group, and in the batch
        check_products(products(loss, *spread[:2], jnp.float32(0), spread[2]), own)
        gradient = jax.grad(lambda *args: loss(*args)[0], argnums=(0, 1, 2))
        program = jax.make_jaxpr(gradient)(*spread[:2], jnp.float32(0), spread[2]).jaxpr
    check_products([e for e in equations(program) if e.primitive.name == "dot_general"], 2 * own)
    exponentials = [e for e in equations(program) if e.primitive.name in ("exp", "log", "log1p", "logistic")]
    assert exponentials and {e.invars[0].aval.dtype for e in exponentials} == {jnp.dtype("float32")}


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_pooling_is_exact(pooling):
    hidden, length = jnp.ones((4, 3, 8), jnp.bfloat16), jnp.array([1, 2, 3, 0])

    def total(hidden):
        return dual_encoder.pool(hidden, length, pooling).sum()

    check_products(products(partial(dual_encoder.pool, pooling=pooling), hidden, length), 1)
    check_products(products(jax.grad(total), hidden), 1)


def test_exact_search_is_exact():
    found = exact.ExactIndex(np.eye(8, dtype=np.float32), np.arange(8))
    with jax.set_mesh(found._mesh):
        search = partial(exact._sharded_top_k, tile=1, take=1)
        check_products(products(lambda q, c: search(q, c, jnp.int32(8)), jnp.ones((2, 8)), found._corpus), 1)


def dtypes(program, names):
    return {e.invars[0].aval.dtype.name for e in equations(program) if e.primitive.name in names}


@pytest.mark.parametrize("scores", [None, 1])
def test_statistics_are_float32_where_the_towers_compute_in_bfloat16(scores):
    """Mean squares and their roots, rotary angles, scores and softmax; products of bfloat16 where they are the work."""
    x, one = jnp.ones((2, 3, 8), jnp.bfloat16), jnp.ones(8)
    statistics = ("reduce_sum", "rsqrt", "sqrt", "exp", "integer_pow", "square", "reduce_max", "div", "sin", "cos")
    norms = (lambda x: rms_norm(x, one, 1e-6), lambda x: layer_norm(x, one, one, 1e-6))
    for norm in norms:
        assert dtypes(jax.make_jaxpr(norm)(x).jaxpr, statistics) == {"float32"} and norm(x).dtype == jnp.bfloat16
    angles = rope_angles(jnp.arange(3, dtype=jnp.int32)[None], 8, 1e6)
    assert {a.dtype.name for a in angles} == {"float32"}
    turned = jax.make_jaxpr(lambda x: rotate(x, *angles))(x).jaxpr
    assert dtypes(turned, ("mul", "sub", "add")) == {"float32"} and turned.outvars[0].aval.dtype == jnp.bfloat16
    q, k = jnp.ones((2, 3, 1, 2, 4), jnp.bfloat16), jnp.ones((2, 3, 1, 4), jnp.bfloat16)
    mask = jnp.ones((2, 3, 3), bool)

    def attend(q, k, v):
        return attention(q, k, v, mask, scores).astype(jnp.float32).sum()

    program = jax.make_jaxpr(jax.value_and_grad(attend, argnums=(0, 1, 2)))(q, k, k).jaxpr
    softmax = ("exp", "log", "div", "reduce_max")
    assert dtypes(program, softmax) == {"float32"}
    first = next(e for e in equations(program) if e.primitive.name == "dot_general")
    assert first.outvars[0].aval.dtype == jnp.float32 and first.invars[0].aval.dtype == jnp.bfloat16


@pytest.mark.parametrize("backbone", [Qwen2Config(50, 8, 1, 2, 1, 4, 16), BertConfig(50, 8, 1, 2, 16, 12)])
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_a_step_hands_float32_vectors_to_a_float32_loss(backbone, kind):
    """Of a whole update in bfloat16: the towers' products are bfloat16, all that follows them is not."""
    config = DualEncoderConfig(backbone, "mean", dtype="bfloat16")
    model, rows = dual_encoder.abstract(config), batch(kind)
    vectors = jax.eval_shape(lambda m, t: dual_encoder.encode(m, "query", t), model, rows.query)
    assert vectors.dtype == jnp.float32
    loss = DualEncoderObjective(HInfoNCEConfig()).loss
    gradient = jax.grad(lambda model, rows: loss(model, rows, None)[0])
    shapes = jax.tree.leaves(jax.eval_shape(gradient, model, rows))
    assert {leaf.dtype.name for leaf in shapes} == {"float32"}
    program = jax.make_jaxpr(loss, static_argnums=2)(model, rows, None).jaxpr
    kinds = {e.invars[0].aval.dtype.name for e in equations(program) if e.primitive.name == "dot_general"}
    assert kinds == {"float32", "bfloat16"}


def test_theta_encodes_in_float32_whatever_the_platforms_default_is():
    tower = dual_encoder.abstract(DualEncoderConfig(BertConfig(50, 8, 1, 2, 16, 12), "mean")).query_tower
    tokens = batch("padded").query
    program = jax.make_jaxpr(sentence_encoder.vectors)(tower, tokens, Head(("mean",))).jaxpr
    check_products([e for e in equations(program) if e.primitive.name == "dot_general"], 8)
