"""The mesh, and one `Rules` object that says on which mesh axes each logical axis of an array lies.

A leaf of a model is described once (`Leaf`: shape, logical axes, how it starts). Everything else follows from that:
how it is stored (`Rules.stored`, where FSDP splits the 'embed' axis over the data axis), how a layer uses it
(`Rules.used`, where that split is gathered away), and whether the mesh fits the model (`Rules.check`).

The mesh is the ambient one: `with jax.set_mesh(make_mesh(config)):` once, around everything. Its axes are Explicit, so
shardings are part of the types and a mistake is an error at trace time. Without a mesh every word here does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from crops_jax.errors import InputError

MESH_AXES = ("replica", "data", "tensor")
Axes = tuple[str | None, ...]
Group = Literal["weights", "no_decay", "tables", "tau"]


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product must be the number of devices. One size may be -1: whatever is left."""

    replica: int = 1
    """Copies of the parameters, for instance one per TPU slice; the batch is split over them."""
    data: int = -1
    """Devices the batch is split over; with FSDP the parameters are split over them too."""
    tensor: int = 1
    """Devices that share one layer's heads and ffn columns; at most the number of KV heads."""


@dataclass(frozen=True)
class Leaf:
    """One parameter before it has a value: also a shape-and-dtype stand-in for `jax.eval_shape`."""

    shape: tuple[int, ...]
    axes: Axes  # logical axis of every dimension; None is never split
    init: Literal["normal", "constant"] = "normal"
    scale: float = 0.02  # standard deviation, or the constant
    group: Group = "weights"  # parameter group for the optimiser
    zero_row: bool = False  # row 0 is out-of-vocabulary: starts as zero

    @property
    def dtype(self) -> jnp.dtype:
        """Master weights are float32."""
        return jnp.dtype("float32")

    def draw(self, key: jax.Array, spec: PartitionSpec | None) -> jax.Array:
        """The leaf's starting value, born laid out as `spec` (None without a mesh); the same numbers for any layout."""
        return _draw(self, key, spec)


# Compiled once for each kind of leaf, not once for each leaf: random numbers are slow to compile on CPU.
@partial(jax.jit, static_argnums=(0, 2))
def _draw(leaf: Leaf, key: jax.Array, spec: PartitionSpec | None) -> jax.Array:
    if leaf.init == "constant":
        return reshard(jnp.full(leaf.shape, leaf.scale, leaf.dtype), spec)
    stacked = leaf.axes[:1] == ("layers",)
    shape, layout = leaf.shape[stacked:], None if spec is None else tuple(spec)[stacked:]
    # Compile time grows with the rank, so the last dimensions that are never split are drawn as one.
    split = max((i + 1 for i, axis in enumerate(leaf.axes[stacked:]) if axis is not None), default=0)
    flat = (*shape[:split], prod(shape[split:]))
    flat_spec = None if layout is None else PartitionSpec(*layout[:split], None)

    def normal(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, flat, leaf.dtype, out_sharding=flat_spec)

    value = jax.vmap(normal)(jax.random.split(key, leaf.shape[0])) if stacked else normal(key)
    value = leaf.scale * value.reshape(leaf.shape)
    if not leaf.zero_row:
        return value
    row = jax.lax.broadcasted_iota(jnp.int32, leaf.shape, 0, out_sharding=spec)
    return jnp.where(row == 0, jnp.zeros_like(value), value)


@dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes. A mesh axis that a rule names and the mesh lacks counts as an axis of size one."""

    batch: tuple[str, ...] = ("replica", "data")
    """Rows of a batch."""
    embed: tuple[str, ...] = ("data",)
    """The width axis of stored parameters: ("data",) is FSDP, () keeps whole parameters on every device."""
    kv_heads: tuple[str, ...] = ("tensor",)
    """Attention heads, by groups that share one KV head."""
    ffn: tuple[str, ...] = ("tensor",)
    """Columns of the feed-forward layer."""

    def __post_init__(self) -> None:
        problems = [
            f"{field.name} names mesh axis {axis!r}; there are {', '.join(MESH_AXES)}"
            for field in fields(self)
            for axis in getattr(self, field.name)
            if axis not in MESH_AXES
        ]
        if problems:
            raise InputError("sharding rules", problems)

    def stored(self, axes: Axes) -> PartitionSpec | None:
        """How a parameter with these logical axes is kept between steps; None without a mesh."""
        mesh = jax.sharding.get_abstract_mesh()
        return None if mesh.empty else self.spec(mesh, axes)

    def used(self, axes: Axes) -> PartitionSpec | None:
        """How a layer sees it, or how an activation lies: the 'embed' split gathered away; None without a mesh."""
        return self.stored(tuple(None if axis == "embed" else axis for axis in axes))

    def spec(self, mesh: Mesh | AbstractMesh, axes: Axes) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes on a given mesh.

        Raises:
          InputError: two dimensions of the array would lie on the same mesh axis.
        """
        parts = [self._mesh_axes(mesh, axis) for axis in axes]
        taken = [name for part in parts for name in part]
        twice = sorted({name for name in taken if taken.count(name) > 1})
        if twice:
            raise InputError("sharding rules", f"axes {axes} put two dimensions on mesh axis {', '.join(twice)}")
        return PartitionSpec(*[part if len(part) > 1 else part[0] if part else None for part in parts])

    def _mesh_axes(self, mesh: Mesh | AbstractMesh, axis: str | None) -> tuple[str, ...]:
        names = getattr(self, axis, ()) if axis else ()
        return tuple(name for name in names if name in mesh.axis_names)

    def check(self, mesh: Mesh | AbstractMesh, abstract_model: Any) -> None:
        """Makes sure that every leaf can be split as the rules say.

        Raises:
          InputError: lists every leaf whose axis the mesh does not divide, and tensor parallelism beyond the KV heads.
        """
        problems: dict[str, None] = {}  # an ordered set: stacked towers repeat their problems
        for path, leaf in jax.tree_util.tree_flatten_with_path(abstract_model)[0]:
            self.spec(mesh, leaf.axes)
            for size, axis in zip(leaf.shape, leaf.axes, strict=True):
                ways = prod(mesh.shape[name] for name in self._mesh_axes(mesh, axis))
                if size % ways:
                    problems[_misfit(leaf_name(path), axis, size, ways)] = None
        if problems:
            raise InputError(f"mesh {dict(mesh.shape)}", list(problems))

    def check_rows(self, mesh: Mesh | AbstractMesh, rows: int, what: str) -> None:
        """Raises InputError unless `rows` (a batch dimension) divides over the mesh's batch axes."""
        ways = prod(mesh.shape[name] for name in self._mesh_axes(mesh, "batch"))
        if rows % ways:
            raise InputError(f"mesh {dict(mesh.shape)}", f"{what} = {rows} does not divide over {ways} devices")


RULES = Rules()


def _misfit(name: str, axis: str | None, size: int, ways: int) -> str:
    if axis == "kv_heads":
        return f"tensor parallelism {ways} does not divide {size} KV heads; lower mesh.tensor, or use data (FSDP)"
    return f"{name}: its {axis!r} axis of {size} does not divide over {ways} devices"


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (replica, data, tensor) with Explicit axes over `devices` (default: all there are).

    Raises:
      InputError: the sizes do not multiply to the number of devices, or more than one of them is open.
    """
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh(mesh_sizes(config, len(devices)), MESH_AXES, devices=devices)


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The mesh that `make_mesh` would give over so many devices, without them: for `eval_shape` under
    `jax.sharding.use_abstract_mesh`. Raises InputError like `make_mesh`."""
    return AbstractMesh(mesh_sizes(config, devices), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


def mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """(replica, data, tensor) with the open size filled in.

    >>> mesh_sizes(MeshConfig(data=-1, tensor=2), 8)
    (1, 4, 2)
    """
    sizes = [config.replica, config.data, config.tensor]
    place = f"mesh (replica, data, tensor) = {tuple(sizes)} over {devices} devices"
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise InputError(place, "sizes are positive, and at most one of them is -1 (the rest)")
    known = prod(size for size in sizes if size != -1)
    if devices % known or (-1 not in sizes and known != devices):
        raise InputError(place, f"the sizes take {known} devices{' or a multiple' if -1 in sizes else ''}")
    filled = tuple(devices // known if size == -1 else size for size in sizes)
    return filled[0], filled[1], filled[2]


def shardings_for(abstract_model: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A tree of NamedSharding like the model: for `jax.jit(..., out_shardings=)`, Orbax restore, shard-wise import.

    Raises:
      InputError: the mesh does not fit the model (`Rules.check`).
    """
    rules.check(mesh, abstract_model)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, rules.spec(mesh, leaf.axes)), abstract_model)


def abstract_on(abstract_model: Any, mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> Any:
    """The model as ShapeDtypeStructs that carry their shardings: for `eval_shape` and `.lower` on any mesh."""
    rules.check(mesh, abstract_model)

    def stand_in(leaf: Leaf) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, rules.spec(mesh, leaf.axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(stand_in, abstract_model)


def reshard(x: jax.Array, spec: PartitionSpec | None) -> jax.Array:
    """`x` laid out as `spec` (a collective where it has to be); `x` itself without a mesh."""
    return x if spec is None else jax.sharding.reshard(x, spec)


def put_rows(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Host arrays of a batch as device arrays split by rows over the batch axes."""

    def put(x: Any) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, rules.spec(mesh, ("batch", *[None] * (x.ndim - 1)))))

    return jax.tree.map(put, tree)


def leaf_name(path: tuple[Any, ...]) -> str:
    """A leaf's place in the tree as words, 'query_tower/layers/q'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
