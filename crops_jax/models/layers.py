"""What Qwen2 and BERT share beside attention: norms, rotary positions, projections, lookup, the scan over layers.

Shapes: n rows, T tokens, E width, G KV heads, R query heads per KV head, d head size. Statistics of norms and softmax
are float32 whatever the compute dtype. Attention heads are kept as (G, R) from the weights on, so that splitting the
heads over a mesh axis never needs a reshape across it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from crops_jax.models.attention import RESIDUALS
from crops_jax.models.config import Remat
from crops_jax.models.lora import Adapted
from crops_jax.parallel.collectives import gather_split, reduce_scatter, spread_rows
from crops_jax.parallel.sharding import Axes, Rules, axes_of, reshard


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
    remat: Remat,
    keep: bool = False,
    frozen: int = 0,
    unroll: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs `block(layer, x)` over the stacked layers; returns the last x, and every layer's x[L, ...] if `keep`.

    Args:
      remat: what the backward pass recomputes: "none" nothing but the gathers of split weights (`project`), "dots"
        all but matrix products and what attention in blocks keeps, "full" whole layers.
      frozen: no gradient passes below so many layers, which therefore keep nothing for a backward pass.
      unroll: write the layers out one after the other, where there are few: a loop copies what it hands on.
    """

    def body(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array | None]:
        x = block(layer, x)
        return x, x if keep else None

    if not frozen:
        return jax.lax.scan(_rematerialised(body, remat), x, layers, unroll=unroll)
    lower, upper = (jax.tree.map(lambda w, part=part: w[part], layers) for part in (slice(frozen), slice(frozen, None)))
    x, below = jax.lax.scan(body, jax.lax.stop_gradient(x), jax.lax.stop_gradient(lower))
    x, above = jax.lax.scan(_rematerialised(body, remat), jax.lax.stop_gradient(x), upper)
    return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), below, above)


def _rematerialised(body: Callable, remat: Remat) -> Callable:
    policies = jax.checkpoint_policies
    match remat:
        case "none":
            return body
        case "dots":
            kept = policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(RESIDUALS)
            )
            return jax.checkpoint(body, policy=kept, prevent_cse=False)
        case "full":
            return jax.checkpoint(body, policy=policies.nothing_saveable, prevent_cse=False)


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
        y = jnp.einsum(equation, _one_token_axis(x), w, out_sharding=rules.used((axes[0], *axes[2:])))
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


def _one_token_axis(x: jax.Array) -> jax.Array:
    """x[n, T, ...] as [n*T, ...], its rows on the devices where they were."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = jax.typeof(x).sharding.spec
    flat = None if mesh.empty else jax.sharding.PartitionSpec(spec[0], *spec[2:])
    return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=flat)
