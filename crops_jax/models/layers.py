"""What Qwen2 and BERT share beside attention: norms, rotary positions, projections, lookup, the scan over layers.

Shapes: n rows, T tokens, E width, G KV heads, R query heads per KV head, d head size. Statistics of norms and softmax
are float32 whatever the compute dtype. Attention heads are kept as (G, R) from the weights on, so that splitting the
heads over a mesh axis never needs a reshape across it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crops_jax.models.attention import RESIDUALS, on_gpu
from crops_jax.models.config import Remat
from crops_jax.models.lora import Adapted
from crops_jax.parallel.collectives import gather_split, reduce_scatter, spread_rows
from crops_jax.parallel.sharding import Axes, Rules, axes_of, reshard


class Loop(NamedTuple):
    """How the layers are run through."""

    remat: Remat = "none"
    """What the backward pass recomputes: "none" nothing but the gathers of split weights (`project`), "dots" all but
    matrix products and what attention in blocks keeps, "full" whole layers."""
    unroll: bool = False
    """Write the layers out one after the other. A loop copies what it hands on to its backward pass, and compiles in a
    fraction of the time."""


FORWARD = Loop()
"""Where no gradient is taken."""


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis, in x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype) * _last(scale, x)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / std * scale + bias over the last axis, in x's dtype."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype) * _last(scale, x) + _last(bias, x)


def _last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector shaped to meet x's last axis: ranks are never promoted in silence."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x[n, T, ...] + bias[...]."""
    return x + bias.astype(x.dtype)[None, None]


def rope_angles(positions: jax.Array, head: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the rotary angles, float32[n, T, head/2] each."""
    frequency = theta ** (-jnp.arange(0, head, 2, dtype=jnp.float32) / head)
    angle = positions.astype(jnp.float32)[:, :, None] * frequency[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary positions in the half-split form that Qwen2's weights are stored for; x[n, T, ..., d]."""
    shape = cos.shape[:2] + (1,) * (x.ndim - 3) + cos.shape[2:]
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def lookup(table: jax.Array, ids: jax.Array, dtype: jnp.dtype, rules: Rules) -> jax.Array:
    """table[ids] in `dtype`, laid out by rows; an id outside the table gives NaN.

    The table stays split: the ids go to every part, the parts look up their columns, and one all-to-all turns columns
    into rows. Where its rows are split too (`Rules.vocab`), each part finds some of the ids, and an all-reduce before
    that adds up. Neither the table nor its gradient is ever gathered.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return table.at[ids].get(mode="fill").astype(dtype)
    width = jax.typeof(table).sharding.spec[1]
    kept = tuple(name for name in rules.batch if name in mesh.axis_names and name not in axes_of(width))
    spec = jax.sharding.PartitionSpec(kept or None, *[None] * (ids.ndim - 1))
    columns = table.at[spread_rows(ids, spec)].get(mode="fill", out_sharding=jax.sharding.PartitionSpec(*spec, width))
    return reshard(columns.astype(dtype), rules.used(("batch", *[None] * ids.ndim)))


def scan_layers(
    block: Callable[[Any, jax.Array], jax.Array],
    layers: Any,
    x: jax.Array,
    *,
    loop: Loop,
    keep: bool = False,
    frozen: int = 0,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs `block(layer, x)` over the stacked layers; returns the last x, and every layer's x[L, ...] if `keep`.

    Args:
      frozen: no gradient passes below so many layers, which therefore keep nothing for a backward pass.
    """

    def body(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array | None]:
        x = block(layer, x)
        return x, x if keep else None

    if loop.unroll and on_gpu():
        layers = _gradient_as_one(layers)
    if not frozen:
        return jax.lax.scan(_rematerialised(body, loop), x, layers, unroll=loop.unroll)
    lower, upper = (jax.tree.map(lambda w, part=part: w[part], layers) for part in (slice(frozen), slice(frozen, None)))
    x, below = jax.lax.scan(body, jax.lax.stop_gradient(x), jax.lax.stop_gradient(lower))
    x, above = jax.lax.scan(_rematerialised(body, loop), jax.lax.stop_gradient(x), upper, unroll=loop.unroll)
    return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), below, above)


@jax.custom_vjp
def _gradient_as_one(layers: Any) -> Any:
    """`layers`, whose gradient is put together before it is used: on GPUs an update that picks each number from one
    array a layer takes three times as long."""
    return layers


_gradient_as_one.defvjp(lambda layers: (layers, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


def _rematerialised(body: Callable, loop: Loop) -> Callable:
    policies = jax.checkpoint_policies
    # Within a loop the compiler cannot merge the two passes anyway.
    checkpoint = partial(jax.checkpoint, prevent_cse=loop.unroll)
    match loop.remat:
        case "none":
            return body
        case "dots":
            kept = policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(RESIDUALS)
            )
            return checkpoint(body, policy=kept)
        case "full":
            return checkpoint(body, policy=policies.nothing_saveable)


def project(x: jax.Array, w: jax.Array | Adapted, equation: str, axes: Axes, rules: Rules) -> jax.Array:
    """x[n, T, ...] times `w` as it is stored, in x's dtype: y[n, T, ...] laid out by `axes`.

    An adapted `w` (LoRA) adds its correction, and never becomes a matrix of its own.

    Where both sides are split over the summed axis, this is tensor parallelism's one sum over devices. Where FSDP
    splits `w`, it is gathered for this product alone, cast first so that x's dtype travels; the backward pass gathers
    it again rather than keep it, and its gradient is reduce-scattered in the same dtype.

    Args:
      equation: the einsum of one axis t of all tokens, "te,ef->tf".
      axes: logical axes of y.
    """

    if isinstance(w, Adapted):
        by_a, by_b = w.equations(equation)
        low = project(x, w.a, by_a, ("batch", None, None), rules)
        return project(x, w.base, equation, axes, rules) + w.scale * project(low, w.b, by_b, axes, rules)

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        # One axis of tokens, not two: the gradient of `w` sums over them, and over two XLA on CPU would first transpose
        # both sides, which doubles the time of a feed-forward layer.
        factors = equation, _one_token_axis(x), w
        y = jnp.einsum(
            *(_one_summed_axis(*factors) if on_gpu() else factors), out_sharding=rules.used((axes[0], *axes[2:]))
        )
        return jnp.reshape(y, (*x.shape[:2], *y.shape[1:]), out_sharding=rules.used(axes))

    @jax.custom_vjp
    def gathered_product(x: jax.Array, w: jax.Array) -> jax.Array:
        return product(x, gather_split(w.astype(x.dtype), split))

    def forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return gathered_product(x, w), (x, w)

    def backward(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, w = saved
        _, transpose = jax.vjp(product, x, gather_split(w.astype(x.dtype), split))
        dx, dw = transpose(cotangent)
        return dx, reduce_scatter(dw, split).astype(w.dtype)

    split = rules.split(w, x)
    if split is None or not split.sums:
        return product(x, reshard(w.astype(x.dtype), None if split is None else split.whole))
    gathered_product.defvjp(forward, backward)
    return gathered_product(x, w)


def _one_summed_axis(equation: str, x: jax.Array, w: jax.Array) -> tuple[str, jax.Array, jax.Array]:
    """The einsum "tgrd,grde->te" as "ti,ie->te": over several axes it sums in an order of its own, for which XLA on
    GPUs first transposes both sides."""
    of_x, of_w = equation.split("->")[0].split(",")
    count = len(of_x) - 1
    if count < 2:
        return equation, x, w
    rest = of_w[count:]
    return f"ti,i{rest}->t{rest}", _merged(x, 1, count), _merged(w, 0, count)


def _merged(x: jax.Array, start: int, count: int) -> jax.Array:
    """`count` axes of `x` as one, split over devices as the first of them is."""
    shape = (*x.shape[:start], math.prod(x.shape[start : start + count]), *x.shape[start + count :])
    if jax.sharding.get_abstract_mesh().empty:
        return x.reshape(shape)
    spec = jax.typeof(x).sharding.spec
    axes = (*spec.partitions[: start + 1], *spec.partitions[start + count :])
    return jnp.reshape(x, shape, out_sharding=jax.P(*axes, unreduced=spec.unreduced, reduced=spec.reduced))


def swiglu(gate: jax.Array, up: jax.Array, unrolled: bool) -> jax.Array:
    """silu(gate) * up.

    Args:
      unrolled: nothing but `gate` and `up` is kept for the backward pass, which is then one pass over memory.
    """
    return _swiglu(gate, up) if unrolled else jax.nn.silu(gate) * up


@jax.custom_vjp
def _swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


def _swiglu_backward(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = saved
    sigmoid = jax.nn.sigmoid(gate)
    slope = sigmoid * (1 + gate * (1 - sigmoid))  # of silu
    return cotangent * up * slope, cotangent * gate * sigmoid


_swiglu.defvjp(lambda gate, up: (_swiglu(gate, up), (gate, up)), _swiglu_backward)


def _one_token_axis(x: jax.Array) -> jax.Array:
    """x[n, T, ...] as [n*T, ...], its rows on the devices where they were."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = jax.typeof(x).sharding.spec
    flat = None if mesh.empty else jax.sharding.PartitionSpec(spec[0], *spec[2:])
    return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=flat)
