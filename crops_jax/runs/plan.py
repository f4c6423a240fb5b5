"""The plan of an experiment's train step on TPUs that are not there: compiled by their own compiler, and read.

`compile_plan` compiles the step that `train` runs, with the same state, batch and shardings, with libtpu and for a
topology that is only described. The result cannot be run, but it says what running it takes.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from time import monotonic
from typing import Any

import jax
from jax.core import ShapedArray
from jax.experimental import topologies
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.sharding import AxisType, Mesh

from crops_jax.config import Experiment
from crops_jax.cost import hlo
from crops_jax.cost.chips import Chip, chip_of, topology_problem
from crops_jax.cost.collectives import Collective, collectives, each
from crops_jax.cost.products import product_flops
from crops_jax.cost.roofline import Roofline, roofline
from crops_jax.cost.traffic import Traffic, traffic
from crops_jax.errors import InputError
from crops_jax.parallel.sharding import axes_of, leaf_name, make_mesh
from crops_jax.runs.tasks import task_of

_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU machine to ask about itself
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",  # any that it knows, or it complains
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
_NOTEWORTHY = 1 << 20  # bytes of an array that must not be on every device


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while the step runs."""

    arguments: int
    outputs: int
    aliased: int  # outputs that lie where donated arguments lay
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """All of it: an upper bound; whether it fits is the compiler's own account, which leaves a little aside."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class Plan:
    """What the compiler said."""

    topology: str
    slices: int
    devices: int
    chip: str
    hbm_bytes: int
    mesh: dict[str, int]
    model_parameters: int
    batch: dict[str, int]  # queries, documents, and token slots a step
    remat: str
    dtype: str
    fits: bool
    memory: Memory | None  # none where it does not fit
    refusal: str  # then: what the compiler says
    largest: list[str]  # then: the largest arrays on one device
    replicated: list[str]  # arrays of the state of 1 MiB and more that every device keeps whole
    analytic_flops: int  # of a step on all devices
    compiled_flops: int | None
    collectives: list[Collective]
    traffic: list[Traffic]  # with the device's memory, most first; those of 1 MiB a step and more
    scores_bytes: int  # thereof of attention's scores: arrays of a document row's slots times themselves
    roofline: Roofline | None
    lower_s: float
    compile_s: float


def describe(topology: str, slices: int) -> Any:
    """The devices of `slices` slices of a topology, v5e:16x16.

    Raises:
      InputError: there is no such topology, or libtpu is not installed.
    """
    problem = topology_problem(topology)
    if problem:
        raise InputError(f"--topology {topology}", problem)
    if slices < 1:
        raise InputError(f"--slices {slices}", "is not above zero")
    if libtpu_path() is None:
        told = "make .venv/.tpu-aot, then TPU_LIBRARY_PATH=.venv/tpu-aot/libtpu/libtpu.so before the command"
        raise InputError("libtpu", f"is not installed; in a checkout of crops-jax: {told}")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # Shapes are traced on the CPU even where a TPU is, which another process may be using.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # such executables cannot be kept
    one_device_a_chip = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices, **one_device_a_chip
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"--topology {topology}", str(error).splitlines()[0]) from None


def libtpu_path() -> Path | None:
    """The TPU compiler: the file that TPU_LIBRARY_PATH names, or the installed package's; None where there is none."""
    named = os.environ.get("TPU_LIBRARY_PATH")
    if named and Path(named).is_file():
        return Path(named)
    package = importlib.util.find_spec("libtpu")
    return Path(package.origin).parent / "libtpu.so" if package else None


def compile_plan(experiment: Experiment, topology: str, slices: int = 1) -> Plan:
    """Compiles the train step of `experiment` for a topology.

    Raises:
      InputError: no such topology, or the experiment's mesh or batch does not fit its devices.
    """
    devices = describe(topology, slices)
    mesh, task = make_mesh(experiment.mesh, devices), task_of(experiment)
    with jax.set_mesh(mesh):
        begin = monotonic()
        traced = task.traced_step(mesh)
        lowered = traced.lower()
        lower_s, begin = monotonic() - begin, monotonic()
        compiled, refusal = _compiled(lowered)
        state, batch = task.abstract_state(mesh), task.abstract_batch(mesh)
    chip = known_chip(devices[0].device_kind)
    analytic, slots = task.step_flops(batch), task.slots(batch)
    read = _read(compiled.as_text(), chip, mesh, analytic) if compiled else _Reading()
    row = max(side.context for side in slots.values())
    return Plan(
        topology=topology, slices=slices, devices=len(devices), chip=chip.name, hbm_bytes=chip.hbm_bytes,
        mesh=dict(mesh.shape),
        model_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.model)),
        batch={"queries": batch.sizes[0], "documents": batch.sizes[1],
               "token_slots": sum(side.tokens for side in slots.values())},
        remat=task.remat, dtype=task.dtype,
        fits=compiled is not None,
        memory=_memory(compiled) if compiled else None,
        refusal=refusal,
        largest=[] if compiled else _largest(state, traced.jaxpr.jaxpr),
        replicated=_replicated(state, mesh),
        analytic_flops=analytic,
        compiled_flops=read.flops * len(devices) if compiled else None,
        collectives=read.collectives,
        traffic=[moved for moved in read.traffic if moved.bytes >= _NOTEWORTHY],
        scores_bytes=sum(moved.bytes for moved in read.traffic if _is_scores(moved, row)),
        roofline=read.roofline,
        lower_s=lower_s, compile_s=monotonic() - begin,
    )  # fmt: skip


def _compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, str]:
    """The compiled step; none, and what the compiler says, where it does not fit the device's memory."""
    try:
        return lowered.compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error).removeprefix("RESOURCE_EXHAUSTED: ")


def known_chip(kind: str) -> Chip:
    """The chip that JAX calls `kind`.

    Raises:
      InputError: its rates are not known.
    """
    chip = chip_of(kind)
    if chip is None:
        said = "its peak, memory and rates are not in crops_jax/cost/chips.py; add a row with what its maker publishes"
        raise InputError(f"a plan for {kind}", said)
    return chip


@dataclass(frozen=True)
class _Reading:
    """What the compiled text says of one device."""

    flops: int = 0
    collectives: list[Collective] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)
    roofline: Roofline | None = None


def _read(text: str, chip: Chip, mesh: Mesh, analytic_flops: int) -> _Reading:
    module, package = hlo.parse(text), "crops_jax"
    flops, moved, devices = product_flops(module), traffic(module, package), mesh.devices.ravel().tolist()
    in_all = sum(one.bytes for one in moved)
    bounds = roofline(chip, devices, flops, analytic_flops / len(devices), in_all, each(module, package))
    return _Reading(flops, collectives(module, package), moved, bounds)


def _is_scores(moved: Traffic, row: int) -> bool:
    """Whether these are attention's scores, weights or mask; the batch's token ids may have as many rows as slots."""
    return len(moved.shape) > 2 and moved.shape[-2:] == (row, row) and not moved.dtype.startswith(("s", "u"))


def _memory(compiled: jax.stages.Compiled) -> Memory:
    stats = compiled.memory_analysis()
    return Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )


def _replicated(state: Any, mesh: Mesh) -> list[str]:
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        size = leaf.size * leaf.dtype.itemsize
        if size >= _NOTEWORTHY and leaf.sharding.shard_shape(leaf.shape) == leaf.shape and mesh.size > 1:
            found.append(f"{leaf_name(path)} {leaf.dtype}{list(leaf.shape)}: {size:,} bytes")
    return found


def _largest(state: Any, jaxpr: Jaxpr, count: int = 10) -> list[str]:
    """The largest arrays on one device: those of the state, and those that the step makes, as it is written.

    The compiler never stores some of the latter, but it refuses before it says which.
    """
    sizes: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        shape, size = _shard(leaf)
        sizes[f"{shape} kept between steps: {leaf_name(path)}"] = size
    made: dict[tuple[str, int], Counter[str]] = {}
    for equation in _equations(jaxpr):
        for out in equation.outvars:
            # What the compiler is free to lay out (Auto axes) has no part on one device yet.
            if isinstance(out.aval, ShapedArray) and AxisType.Auto not in out.aval.sharding.mesh.axis_types:
                made.setdefault(_shard(out.aval), Counter())[equation.primitive.name] += 1
    for (shape, size), by in made.items():
        sizes[f"{shape} made by {', '.join(name for name, _ in by.most_common(4))}"] = size
    return [f"{size:,} bytes: {name}" for name, size in sizes.most_common(count)]


def _shard(array: Any) -> tuple[str, int]:
    """An array's part on one device: (dtype[shape], bytes)."""
    ways = [prod(array.sharding.mesh.shape[axis] for axis in axes_of(part)) for part in array.sharding.spec.partitions]
    shape = [size // n for size, n in zip(array.shape, ways, strict=False)] + list(array.shape[len(ways) :])
    return f"{array.dtype}{shape}", prod(shape) * array.dtype.itemsize


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)
