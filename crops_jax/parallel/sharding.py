"""The mesh, and one `Rules` object that says on which mesh axes each logical axis of an array lies.

A leaf of a model is described once (`Leaf`: shape, logical axes, how it starts). Everything else follows from that:
how it is stored (`Rules.stored`, where FSDP splits the 'embed' axis over the data axis), how a layer uses it
(`Rules.used`, where that split is gathered away), and whether the mesh fits the model (`Rules.check`).

The mesh is the ambient one: `with jax.set_mesh(make_mesh(config)):` once, around everything. Its axes are Explicit, so
shardings are part of the types and a mistake is an error at trace time. Without a mesh these functions do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from crops_jax.errors import InputError
from crops_jax.parallel.config import MeshConfig

MESH_AXES = ("replica", "data", "tensor")
TORUS_AXES = ("data", "ring", "depth")
"""What `data` becomes where it fills a TPU torus (`make_mesh`): of two axes data and ring, of three data and depth."""
Axes = tuple[str | None, ...]
Group = Literal["weights", "no_decay", "tables", "tau", "frozen"]


@dataclass(frozen=True)
class Leaf:
    """One parameter before it has a value: also a shape-and-dtype stand-in for `jax.eval_shape`."""

    shape: tuple[int, ...]
    axes: Axes  # logical axis of every dimension; None is never split
    init: Literal["normal", "constant"] = "normal"
    scale: float = 0.02  # standard deviation, or the constant
    group: Group = "weights"  # parameter group for the optimiser
    zero_row: bool = False  # row 0 is out-of-vocabulary: starts as zero
    frozen_layers: int = 0  # so many of a stacked leaf's first layers are not trained

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
class Split:
    """How FSDP keeps one parameter: which dimension lies on which mesh axes, and which axes split the batch."""

    stored: PartitionSpec
    dimension: int
    axes: tuple[str, ...]
    rows: tuple[str, ...]

    @property
    def whole(self) -> PartitionSpec:
        """The layout without the split: what a product wants."""
        return PartitionSpec(*[None if i == self.dimension else part for i, part in enumerate(self.stored)])

    @property
    def ways(self) -> int:
        """Into how many parts."""
        return prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in self.axes)

    @property
    def sums(self) -> bool:
        """Whether the devices that hold the parts hold different rows too, so that a gradient is a sum over them."""
        return self.ways > 1 and set(self.axes) <= set(self.rows)


@dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes. A mesh axis that a rule names and the mesh lacks counts as an axis of size one."""

    batch: tuple[str, ...] = ("replica", *TORUS_AXES)
    """Rows of a batch."""
    embed: tuple[str, ...] = TORUS_AXES
    """The width axis of stored parameters: this is FSDP, () keeps whole parameters on every device."""
    kv_heads: tuple[str, ...] = ("tensor",)
    """Attention heads, by groups that share one KV head."""
    ffn: tuple[str, ...] = ("tensor",)
    """Columns of the feed-forward layer."""
    vocab: tuple[str, ...] = ("tensor",)
    """Rows of an embedding table; where their number does not divide, each of these devices has them all."""

    def __post_init__(self) -> None:
        known = dict.fromkeys((*MESH_AXES, *TORUS_AXES))
        problems = [
            f"{field.name} names mesh axis {axis!r}; there are {', '.join(known)}"
            for field in fields(self)
            for axis in getattr(self, field.name)
            if axis not in known
        ]
        problems += [
            f"embed lies on {axis!r}, which does not split the batch" for axis in self.embed if axis not in self.batch
        ]
        if problems:
            raise InputError("sharding rules", problems)

    def stored(self, leaf: Leaf) -> PartitionSpec | None:
        """How a parameter is kept between steps; None without a mesh."""
        mesh = jax.sharding.get_abstract_mesh()
        return None if mesh.empty else self.leaf_spec(mesh, leaf)

    def used(self, axes: Axes) -> PartitionSpec | None:
        """How a layer sees it, or how an activation lies: the 'embed' split gathered away; None without a mesh."""
        mesh = jax.sharding.get_abstract_mesh()
        return None if mesh.empty else self.spec(mesh, tuple(None if axis == "embed" else axis for axis in axes))

    def leaf_spec(self, mesh: Mesh | AbstractMesh, leaf: Leaf) -> PartitionSpec:
        """The PartitionSpec of a parameter on a given mesh. Raises InputError like `spec`."""
        sizes = zip(leaf.axes, leaf.shape, strict=True)
        return self.spec(mesh, tuple(None if self._stays_whole(mesh, axis, size) else axis for axis, size in sizes))

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

    def split(self, w: jax.Array, x: jax.Array) -> Split | None:
        """How FSDP splits the stored parameter `w`, where devices hold different rows of `x`; None if it does not."""
        stored = jax.typeof(w).sharding.spec
        rows = axes_of(jax.typeof(x).sharding.spec[0])
        parts = [(i, axes_of(part)) for i, part in enumerate(stored) if set(axes_of(part)) & set(self.embed)]
        return Split(stored, *parts[0], rows) if parts else None

    def _mesh_axes(self, mesh: Mesh | AbstractMesh, axis: str | None) -> tuple[str, ...]:
        names = getattr(self, axis, ()) if axis else ()
        return tuple(name for name in names if name in mesh.axis_names)

    def ways(self, mesh: Mesh | AbstractMesh, axis: str | None) -> int:
        """Into how many parts a logical axis is split."""
        return prod(mesh.shape[name] for name in self._mesh_axes(mesh, axis))

    def _stays_whole(self, mesh: Mesh | AbstractMesh, axis: str | None, size: int) -> bool:
        return axis == "vocab" and size % self.ways(mesh, axis) != 0

    def check(self, mesh: Mesh | AbstractMesh, abstract_model: Any) -> None:
        """Makes sure that every leaf can be split as the rules say.

        Raises:
          InputError: lists every leaf whose axis the mesh does not divide, and tensor parallelism beyond the KV heads.
        """
        problems: dict[str, None] = {}  # an ordered set: stacked towers repeat their problems
        for path, leaf in jax.tree_util.tree_flatten_with_path(abstract_model)[0]:
            self.leaf_spec(mesh, leaf)
            for size, axis in zip(leaf.shape, leaf.axes, strict=True):
                ways = self.ways(mesh, axis)
                if size % ways and not self._stays_whole(mesh, axis, size):
                    problems[_misfit(leaf_name(path), axis, size, ways)] = None
        if problems:
            raise InputError(f"mesh {dict(mesh.shape)}", list(problems))

    def check_rows(self, mesh: Mesh | AbstractMesh, rows: int, what: str) -> None:
        """Raises InputError unless `rows` (a batch dimension) divides over the mesh's batch axes."""
        ways = self.ways(mesh, "batch")
        if rows % ways:
            raise InputError(f"mesh {dict(mesh.shape)}", f"{what} = {rows} does not divide over {ways} devices")


RULES = Rules()


def axes_of(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    return (part,) if isinstance(part, str) else tuple(part or ())


def _misfit(name: str, axis: str | None, size: int, ways: int) -> str:
    if axis == "kv_heads":
        return f"tensor parallelism {ways} does not divide {size} KV heads; lower mesh.tensor, or use data (FSDP)"
    return f"{name}: its {axis!r} axis of {size} does not divide over {ways} devices"


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (replica, data, tensor) with Explicit axes over `devices` (default: all there are).

    Where the devices are several TPU slices, each slice holds whole replicas: nothing but the sum of gradients, split
    as the parameters are, and the loss's documents travel between slices. Where `data` fills a torus of two or three
    axes, it becomes two mesh axes (`TORUS_AXES`).

    Raises:
      InputError: the sizes do not multiply to the number of devices, more than one of them is open, or the replicas do
        not divide over the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    replica, data, tensor = mesh_sizes(config, len(devices))
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        # GPUs have a slice_index too, their node's: there any axis may cross it.
        slices.setdefault(getattr(device, "slice_index", 0) if device.platform == "tpu" else 0, []).append(device)
    if replica % len(slices):
        fewest = f"set --mesh.replica={len(slices)}"
        raise InputError(f"mesh.replica = {replica}", f"is no multiple of the {len(slices)} slices; {fewest}")
    torus = _torus(slices[min(slices)], data)
    shape = (replica // len(slices), *torus.values(), tensor)
    names = ("replica", *torus, "tensor")
    parts = [create_device_mesh(shape, slices[i], allow_split_physical_axes=True) for i in sorted(slices)]
    return Mesh(np.concatenate(parts), names, axis_types=(AxisType.Explicit,) * len(names))


def _torus(devices: Sequence[jax.Device], ways: int) -> dict[str, int]:
    """`ways` as mesh axes, where so many devices are a whole TPU slice, else as one axis.

    Its compiler plans FSDP's sums as reduce-scatters over these axes, one after the other: a plane is two of them, a
    space a plane and its depth. Over one axis it does so for a ring, and for slices of two rows, alone.
    """
    if devices[0].platform == "tpu":
        sizes = [len(set(along)) for along in zip(*(device.coords for device in devices), strict=True)]
        match sorted(size for size in sizes if size > 1):
            case (a, b) if a > 2 and a * b == ways:
                return {"data": a, "ring": b}
            case (a, b, c) if a * b * c == ways:
                return {"data": a * b, "depth": c}
    return {"data": ways}


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


def abstract_on(abstract_model: Any, mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> Any:
    """The model as ShapeDtypeStructs that carry their shardings: for `eval_shape` and `.lower` on any mesh.

    Raises:
      InputError: the mesh does not fit the model (`Rules.check`).
    """
    rules.check(mesh, abstract_model)

    def stand_in(leaf: Leaf) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, rules.leaf_spec(mesh, leaf))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(stand_in, abstract_model)


def reshard(x: jax.Array, spec: PartitionSpec | None) -> jax.Array:
    """`x` laid out as `spec` (a collective where it has to be); `x` itself without a mesh."""
    return x if spec is None else jax.sharding.reshard(x, spec)


def put_rows(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Host arrays of a batch as device arrays split by rows over the batch axes.

    Every process brings the rows that its own devices hold (`rows_here`), in rising order.
    """

    def put(x: Any) -> jax.Array:
        sharding = NamedSharding(mesh, rules.spec(mesh, ("batch", *[None] * (x.ndim - 1))))
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, tree)


def rows_here(mesh: Mesh, rows: int, rules: Rules = RULES) -> list[int]:
    """Numbers of the rows, of so many, that this process's devices hold when they are split over the batch axes.

    It follows from the mesh alone: a process's devices need not be neighbours on it, and processes that share a row's
    tensor axis hold the same rows.
    """
    sharding = NamedSharding(mesh, rules.spec(mesh, ("batch",)))
    slices = sharding.addressable_devices_indices_map((rows,)).values()
    return sorted({row for (part,) in slices for row in range(*part.indices(rows))})


def take_rows(array: jax.Array) -> np.ndarray:
    """What this process gave to `put_rows` for `array`."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([parts[start] for start in sorted(parts)])


def leaf_name(path: tuple[Any, ...]) -> str:
    """A leaf's place in the tree as words, 'query_tower/layers/q'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
