"""Gathers and sums over the devices that split a batch, written so that TPU's compiler keeps them as they are.

The compiler's plans (`crops_jax.compile_check`) show what it does otherwise. A reduce-scatter over two mesh axes at
once, or not of whole leading rows, becomes an all-reduce of everything and a slice; so it is done axis by axis. An
all-gather over a torus of three axes at once becomes an all-reduce of padded parts; so `depth` is gathered first.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, P

from crops_jax.parallel.sharding import Split, axes_of

MeshAxes = tuple[str, ...]  # names of mesh axes, major first; () where one device has everything


def gather_split(w: Array, split: Split) -> Array:
    """The whole of a parameter that FSDP splits. Its cotangent is each device's own part of a sum (`unreduced`)."""
    w = _gathered_over_depth(w, split.dimension)
    return jax.sharding.reshard(w, P(*split.whole, reduced=set(split.rows)))


def reduce_scatter(gradient: Array, split: Split) -> Array:
    """The sum over the batch's devices of such cotangents, each device keeping its part: laid out like the parameter.

    Left to the compiler, this becomes an all-reduce of the whole gradient and a slice wherever something stands between
    the two. Within a slice (`axes`) it comes first, so that between slices only the parts travel.
    """
    rest = tuple(axis for axis in split.rows if axis not in split.axes)

    def local(whole: Array) -> Array:
        part = _sum_of_rows(jnp.moveaxis(whole, split.dimension, 0), split.axes)
        return jnp.moveaxis(jax.lax.psum(part, rest) if rest else part, 0, split.dimension)

    return jax.shard_map(local, out_specs=split.stored)(gradient)


def spread_rows(x: Array, spec: P) -> Array:
    """`x` laid out as `spec`, whose rows lie whole on devices that now have parts of them."""
    return jax.sharding.reshard(_gathered_over_depth(x, 0), spec)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_rows(x: Array, axes: MeshAxes) -> Array:
    """x[n, ...] of every device along `axes`, in their order: [devices * n, ...]. For use in `jax.shard_map`.

    Its cotangent is reduce-scattered: each device gets the sum for its own rows.
    """
    # The minor axis first, so that the rows keep their order.
    for stage in (("depth",), _without_depth(axes)) if "depth" in axes else (axes,):
        x = jax.lax.all_gather(x, stage, tiled=True)
    return x


def _gather_rows_backward(axes: MeshAxes, _: None, cotangent: Array) -> tuple[Array | None]:
    return (None if cotangent.dtype == jax.dtypes.float0 else _sum_of_rows(cotangent, axes),)


gather_rows.defvjp(lambda x, axes: (gather_rows(x, axes), None), _gather_rows_backward)


def _gathered_over_depth(x: Array, dimension: int) -> Array:
    """`x` with this dimension split over the other axes alone."""
    parts = list(jax.typeof(x).sharding.spec)
    axes = axes_of(parts[dimension])
    if "depth" not in axes:
        return x
    parts[dimension] = _without_depth(axes)
    return jax.sharding.reshard(x, P(*parts))


def _without_depth(axes: MeshAxes) -> MeshAxes:
    return tuple(axis for axis in axes if axis != "depth")


def _sum_of_rows(whole: Array, axes: MeshAxes) -> Array:
    """The sum over the devices along `axes` of whole[devices * n, ...], of which each keeps its n rows."""
    sizes = [jax.lax.axis_size(axis) for axis in axes]
    part = whole.reshape(*sizes, whole.shape[0] // jax.lax.axis_size(axes), -1)
    # Slices last: only what is left then travels between them.
    order = sorted(range(len(axes)), key=lambda i: axes[i] == "replica")
    part = part.transpose(*order, -2, -1)
    for i in order:
        # Of three dimensions: what goes to each device is whole leading rows, of two dimensions at least.
        part = part.reshape(sizes[i], -1, part.shape[-1])
        part = jax.lax.psum_scatter(part, axes[i]) if sizes[i] > 1 else part[0]
    return part.reshape(-1, *whole.shape[1:])
