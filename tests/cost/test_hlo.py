"""Reading compiled text: loops multiplied out, products, collectives and traffic with memory counted."""

import jax
import jax.numpy as jnp
import pytest
from jax import P

from crops_jax.cost import collectives, hlo, products, traffic
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
    assert products.product_flops(module) == 5 * 3 * 2 * 8 * 256 * 256


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
        products.product_flops(module)


def test_a_batched_product_in_the_form_that_a_tpu_gives_it():
    # q k^T of 32 rows, 2 x 2 heads, 128 tokens of width 64: rows and heads are axes of a dilated window.
    scores = """  %q = bf16[32,2,2,128,64]{3,4,2,1,0:T(8,128)(2,1)} broadcast(%x)
  %k = bf16[32,2,128,64,1]{2,3,4,1,0:T(8,128)(2,1)} broadcast(%x)
  %s = f32[32,2,2,128,128]{3,4,2,1,0:T(8,128)} convolution(%q, %k), window={size=32x2x1 stride=31x1x1 \
lhs_dilate=32x2x1}, dim_labels=012bf_01oi2->012bf"""
    assert products.product_flops(hlo.parse(_with_body(scores))) == 3 * 2 * 32 * 4 * 128 * 128 * 64


def gather_and_scatter(x, _):
    whole = jax.lax.all_gather(x, "data", tiled=True)
    return jax.lax.psum_scatter(jnp.sin(whole), "data", tiled=True), None


def test_collectives_in_a_loop_count_as_often_as_they_run_and_say_who_asked():
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        loop = jax.shard_map(lambda x: jax.lax.scan(gather_and_scatter, x, None, length=6)[0], out_specs=P("data"))
        x = jax.ShapeDtypeStruct((64, 10), jnp.float32, sharding=jax.NamedSharding(mesh, P("data")))
        module = hlo.parse(jax.jit(loop).lower(x).compile().as_text())
    found = {c.kind: (c.origin, c.dtype, c.count, c.bytes) for c in collectives.collectives(module, "tests")}
    assert found == {
        "all-gather": ("test_hlo.gather_and_scatter", "f32", 6, 6 * 64 * 10 * 4),
        "reduce-scatter": ("test_hlo.gather_and_scatter", "f32", 6, 6 * 64 * 10 * 4),
    }


def test_one_gather_that_runs_beside_several_fusions_counts_once():
    pieces = "\n".join(
        f"""  %g{i} = bf16[64]{{0}} all-gather(%x), dimensions={{0}}, frontend_attributes={{chain_id="{chain}"}}"""
        for i, chain in enumerate((0, 0, 0, 1))
    )
    gathers = collectives.collectives(hlo.parse(_with_body(pieces)), "crops_jax")
    assert [(c.kind, c.count, c.bytes) for c in gathers] == [("all-gather", 3 * 2, 3 * 2 * 128)]


STEP = """HloModule step

%read (p0: f32[6,1024], p1: s32[], p2: f32[1,1024]) -> f32[1,1024] {
  %p0 = f32[6,1024]{1,0:T(1,128)} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[1,1024]{1,0:T(1,128)S(1)} parameter(2)
  %zero = s32[] constant(0)
  %same = f32[6,1024]{1,0:T(1,128)} bitcast(%p0)
  %cut = f32[1,1024]{1,0:T(1,128)} dynamic-slice(%same, %p1, %zero), dynamic_slice_sizes={1,1024}
  ROOT %sum = f32[1,1024]{1,0:T(1,128)S(1)} add(%cut, %p2)
}

%put (q0: f32[6,1024], q1: s32[], q2: f32[1,1024]) -> f32[6,1024] {
  %q0 = f32[6,1024]{1,0:T(1,128)} parameter(0)
  %q1 = s32[] parameter(1)
  %q2 = f32[1,1024]{1,0:T(1,128)S(1)} parameter(2)
  %none = s32[] constant(0)
  ROOT %updated = f32[6,1024]{1,0:T(1,128)} dynamic-update-slice(%q0, %q2, %q1, %none)
}

%body (p: (s32[], f32[6,1024], f32[1,1024], f32[12,12])) -> (s32[], f32[6,1024], f32[1,1024], f32[12,12]) {
  %p = (s32[], f32[6,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}, f32[12,12]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  %rows = f32[6,1024]{1,0:T(1,128)} get-tuple-element(%p), index=1
  %x = f32[1,1024]{1,0:T(1,128)S(1)} get-tuple-element(%p), index=2
  %y = f32[1,1024]{1,0:T(1,128)S(1)} fusion(%rows, %next, %x), kind=kLoop, calls=%read
  %kept = f32[6,1024]{1,0:T(1,128)} fusion(%rows, %next, %y), kind=kLoop, calls=%put
  %small = f32[12,12]{1,0:T(8,128)} get-tuple-element(%p), index=3
  %turned = f32[12,12]{0,1:T(8,128)} transpose(%small), dimensions={1,0}
  ROOT %t = (s32[], f32[6,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}, f32[12,12]{1,0:T(8,128)}) \
tuple(%next, %kept, %y, %turned)
}

%condition (q: (s32[], f32[6,1024], f32[1,1024], f32[12,12])) -> pred[] {
  %q = (s32[], f32[6,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}, f32[12,12]{1,0:T(8,128)}) parameter(0)
  %limit = s32[] constant(6)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[]{:S(6)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[6,1024], b: f32[1,1024], c: f32[12,12]) -> f32[6,1024] {
  %a = f32[6,1024]{1,0:T(1,128)} parameter(0)
  %b = f32[1,1024]{1,0:T(1,128)} parameter(1)
  %c = f32[12,12]{1,0:T(8,128)} parameter(2)
  %start = s32[] constant(0)
  %moving = (f32[1,1024]{1,0:T(1,128)S(1)}, f32[1,1024]{1,0:T(1,128)}, u32[]{:S(2)}) copy-start(%b)
  %moved = f32[1,1024]{1,0:T(1,128)S(1)} copy-done(%moving)
  %init = (s32[], f32[6,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}, f32[12,12]{1,0:T(8,128)}) \
tuple(%start, %a, %moved, %c)
  %loop = (s32[], f32[6,1024]{1,0:T(1,128)}, f32[1,1024]{1,0:T(1,128)S(1)}, f32[12,12]{1,0:T(8,128)}) while(%init), \
condition=%condition, body=%body
  ROOT %out = f32[6,1024]{1,0:T(1,128)} get-tuple-element(%loop), index=1
}
"""


def test_traffic_counts_slices_updates_and_tiles_as_often_as_the_loop_runs_and_the_chips_own_memory_not_at_all():
    moved = {(t.dtype, t.shape): t.bytes for t in traffic.traffic(hlo.parse(STEP), "crops_jax")}
    scalars = moved.pop(("s32", ()))  # the counter: 4 bytes a time
    assert moved == {
        ("f32", (6, 1024)): 6 * (4096 + 4096),  # a slice is read, a slice is written
        ("f32", (1, 1024)): 4096,  # copied into the chip before the loop
        ("f32", (12, 12)): 6 * 2 * 4 * 16 * 128,  # tiles of 8 x 128: read and written whole
    }
    assert scalars < 1000


KERNEL = """  %q = bf16[32,14,512,64]{3,2,1,0:T(8,128)(2,1)} broadcast(%x)
  %k = bf16[32,2,512,64]{3,2,1,0:T(8,128)(2,1)} broadcast(%x)
  %splash_mha_fwd_segmented_residuals.1 = (bf16[32,14,512,64]{3,2,1,0}, f32[32,14,512,128]{3,2,1,0}) custom-call(%q, \
/*index=1*/%k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="a"}
  %after = f32[4]{0} add(%x, %x)"""


def test_an_attention_kernel_whose_text_is_broken_over_lines_is_two_products():
    module = hlo.parse(_with_body(KERNEL))
    assert [i.name for i in module.computations["body"]][-2:] == ["after", "t"]
    assert products.product_flops(module) == 3 * 2 * 2 * 32 * 14 * 512 * 512 * 64


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,4},{1,5}}", (0, 4)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_1','axis_2'}", (0, 1, 2, 3)),
        ("channel_id=1", None),
    ],
)
def test_which_devices_take_part_in_every_form_in_which_it_is_written(written, group):
    module = hlo.parse(_with_body(f"  %g = f32[64]{{0}} all-gather(%x), {written}, dimensions={{0}}"))
    (sent,) = collectives.each(module, "crops_jax")
    assert (sent.group, sent.bytes, sent.times) == (group, 256, 3)
