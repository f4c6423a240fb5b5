"""From tensors of a checkpoint to leaves of ours and back, by a table: theirs and ours, and how the axes are arranged.

Import reads, leaf by leaf and shard by shard, exactly the slices that the local devices hold. So leaves are sharded
from the start, and the host never holds a whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding

from crops_jax.errors import InputError
from crops_jax.models import hf_names
from crops_jax.models.safetensors_files import Entry, view
from crops_jax.parallel.sharding import Leaf, Rules, leaf_name

Table = Mapping[str, tuple[str, str]]
"""Our leaf: (their tensor, "their axes -> our axes"); {l} is the layer, our leaf stacks the layers first."""


def read_leaves(entries: Mapping[str, Entry], table: Table, abstract: Any, mesh: Mesh | None, rules: Rules) -> Any:
    """The tree of `Leaf`s with the checkpoint's weights as float32, laid out on the mesh (one device without)."""

    def read(path: tuple[Any, ...], leaf: Leaf) -> jax.Array:
        name, pattern = table[leaf_name(path)]
        sharding: Sharding = SingleDeviceSharding(jax.local_devices()[0])
        if mesh is not None:
            sharding = NamedSharding(mesh, rules.leaf_spec(mesh, leaf))
        # One device's slice at a time: `jax.make_array_from_callback` would first hold those of all devices.
        slices = sharding.addressable_devices_indices_map(leaf.shape)
        parts = [
            jax.block_until_ready(jax.device_put(_block(entries, name, pattern, leaf, index), device))
            for device, index in slices.items()
        ]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

    return jax.tree_util.tree_map_with_path(read, abstract)


def leaves_of(abstract: Any) -> dict[str, Leaf]:
    """The leaves of a tree by their names."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]}


def to_theirs(tree: Any, table: Table) -> dict[str, np.ndarray]:
    """Our weights under their names, float32, for a safetensors file."""
    tensors = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        template, pattern = table[leaf_name(path)]
        values = np.asarray(leaf, np.float32)
        stack = enumerate(values) if "{l}" in template else [(0, values)]
        for layer, value in stack:
            arranged = Arrangement(pattern, value.shape)
            theirs = value.transpose(arranged.to_theirs).reshape(arranged.theirs)
            tensors[template.format(l=layer)] = np.ascontiguousarray(theirs)
    return tensors


def tensor_problems(entries: Mapping[str, Entry], table: Table, leaves: Mapping[str, Leaf]) -> list[str]:
    """What is missing, has a wrong shape, holds no floats, or stands in no table."""
    wrong: list[str] = []
    wanted: dict[str, tuple[int, ...]] = {}
    for ours, leaf in leaves.items():
        wanted |= their_tensors(*table[ours], leaf)
    for name in [name for name in wanted if name in entries]:
        entry = entries[name]
        if entry.shape != wanted[name]:
            wrong.append(f"{name}: shape {entry.shape}, expected {wanted[name]}")
        elif entry.dtype.kind in "iub":
            wrong.append(f"{name}: holds {entry.dtype}, no floats: quantised weights are not read")
    missing, more = wanted.keys() - entries.keys(), entries.keys() - wanted.keys()
    return hf_names.missing(missing) + wrong + hf_names.unexpected(more)


def their_tensors(template: str, pattern: str, leaf: Leaf) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names of a leaf's tensors and their shapes."""
    stacked = "{l}" in template
    shape = leaf.shape[1:] if stacked else leaf.shape
    for layer in range(leaf.shape[0]) if stacked else (0,):
        yield template.format(l=layer), Arrangement(pattern, shape).theirs


class Arrangement:
    """'(g r d) e -> e g r d' for our shape: their shape, their axes apart, and the permutation to ours."""

    def __init__(self, pattern: str, shape: tuple[int, ...]):
        left, right = pattern.split(" -> ")
        size = dict(zip(right.split(), shape, strict=True))
        letters = re.findall(r"\w", left)
        self.theirs = tuple(
            int(np.prod([size[letter] for letter in group.strip("()").split()]))
            for group in re.findall(r"\([^)]*\)|\w", left)
        )
        self.apart = tuple(size[letter] for letter in letters)
        self.to_ours = tuple(letters.index(letter) for letter in right.split())
        self.to_theirs = tuple(right.split().index(letter) for letter in letters)


def _block(
    entries: Mapping[str, Entry], template: str, pattern: str, leaf: Leaf, index: tuple[slice, ...]
) -> np.ndarray:
    """The slice `index` of our leaf as float32, read from the file.

    Raises:
      InputError: NaN or infinity in it.
    """

    def piece(name: str, shape: tuple[int, ...], part: tuple[slice, ...]) -> np.ndarray:
        arranged = Arrangement(pattern, shape)
        tensor = view(entries[name]).reshape(arranged.apart).transpose(arranged.to_ours)
        values = tensor[part].astype(np.float32, order="C")
        if not np.isfinite(values).all():  # else the first loss is NaN, and the data would be blamed
            said = f"{name} holds {np.size(values) - np.isfinite(values).sum()} numbers that are NaN or infinite"
            raise InputError(str(entries[name].file), f"{said}; get the weights again")
        return values

    if "{l}" not in template:
        return piece(template, leaf.shape, index)
    layers = range(*index[0].indices(leaf.shape[0]))
    return np.stack([piece(template.format(l=layer), leaf.shape[1:], index[1:]) for layer in layers])
