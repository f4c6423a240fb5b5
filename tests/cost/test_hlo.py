"""Reading compiled text: loops multiplied out, products and collectives counted."""

import jax
import jax.numpy as jnp
import pytest
from jax import P

from crops_jax.cost import hlo
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh


def _compiled(f, *shapes):
    return hlo.parse(jax.jit(f).lower(*shapes).compile().as_text())


def test_a_product_in_nested_loops_counts_as_often_as_it_runs():
    def inner(x, w):
        return jnp.tanh(x @ w), None

    def outer(x, ws):
        return jax.lax.scan(inner, x, ws)

    x, ws = jax.ShapeDtypeStruct((8, 256), jnp.float32), jax.ShapeDtypeStruct((5, 3, 256, 256), jnp.float32)
    module = _compiled(lambda x, ws: jax.lax.scan(outer, x, ws)[0], x, ws)
    assert hlo.product_flops(module) == 5 * 3 * 2 * 8 * 256 * 256


def _with_body(products: str, trip: str = "constant(7)") -> str:
    return f"""HloModule m

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p = (s32[], f32[4]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(2)
  %next = s32[] add(%i, %one)
  %x = f32[4]{{0}} get-tuple-element(%p), index=1
{products}
  ROOT %t = (s32[], f32[4]{{0}}) tuple(%next, %x)
}}

%condition (q: (s32[], f32[4])) -> pred[] {{
  %q = (s32[], f32[4]{{0}}) parameter(0)
  %limit = s32[] {trip}
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}}

ENTRY %main (a: f32[4]) -> f32[4] {{
  %a = f32[4]{{0}} parameter(0)
  %start = s32[]{{:T(128)}} constant(1)
  %copied = s32[] copy(%start)
  %init = (s32[], f32[4]{{0}}) tuple(%copied, %a)
  %loop = (s32[], f32[4]{{0}}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[4]{{0}} get-tuple-element(%loop), index=1
}}
"""


def test_a_loop_runs_from_its_start_by_its_step_to_its_limit():
    module = hlo.parse(_with_body(""))
    loop = next(i for i in module.computations["main"] if i.opcode == "while")
    assert hlo.trip_count(module, "main", loop) == 3  # 1, 3, 5


def test_a_loop_without_a_constant_limit_is_refused_not_guessed():
    module = hlo.parse(_with_body("", trip="rng-bit-generator()"))
    with pytest.raises(ValueError, match="loop: cannot tell how often it runs"):
        hlo.product_flops(module)


def test_a_batched_product_in_the_form_that_a_tpu_gives_it():
    # q k^T of 32 rows, 2 x 2 heads, 128 tokens of width 64: rows and heads are axes of a dilated window.
    scores = """  %q = bf16[32,2,2,128,64]{3,4,2,1,0:T(8,128)(2,1)} broadcast(%x)
  %k = bf16[32,2,128,64,1]{2,3,4,1,0:T(8,128)(2,1)} broadcast(%x)
  %s = f32[32,2,2,128,128]{3,4,2,1,0:T(8,128)} convolution(%q, %k), window={size=32x2x1 stride=31x1x1 \
lhs_dilate=32x2x1}, dim_labels=012bf_01oi2->012bf"""
    assert hlo.product_flops(hlo.parse(_with_body(scores))) == 3 * 2 * 32 * 4 * 128 * 128 * 64


def gather_and_scatter(x, _):
    whole = jax.lax.all_gather(x, "data", tiled=True)
    return jax.lax.psum_scatter(jnp.sin(whole), "data", tiled=True), None


def test_collectives_in_a_loop_count_as_often_as_they_run_and_say_who_asked():
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        loop = jax.shard_map(lambda x: jax.lax.scan(gather_and_scatter, x, None, length=6)[0], out_specs=P("data"))
        x = jax.ShapeDtypeStruct((64, 10), jnp.float32, sharding=jax.NamedSharding(mesh, P("data")))
        module = hlo.parse(jax.jit(loop).lower(x).compile().as_text())
    found = {c.kind: (c.origin, c.dtype, c.count, c.bytes) for c in hlo.collectives(module, "tests")}
    assert found == {
        "all-gather": ("test_hlo.gather_and_scatter", "f32", 6, 6 * 64 * 10 * 4),
        "reduce-scatter": ("test_hlo.gather_and_scatter", "f32", 6, 6 * 64 * 10 * 4),
    }


def test_one_gather_that_runs_beside_several_fusions_counts_once():
    pieces = "\n".join(
        f"""  %g{i} = bf16[64]{{0}} all-gather(%x), dimensions={{0}}, frontend_attributes={{chain_id="{chain}"}}"""
        for i, chain in enumerate((0, 0, 0, 1))
    )
    gathers = hlo.collectives(hlo.parse(_with_body(pieces)), "crops_jax")
    assert [(c.kind, c.count, c.bytes) for c in gathers] == [("all-gather", 3 * 2, 3 * 2 * 128)]
