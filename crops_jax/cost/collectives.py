"""The collectives of a compiled step: what travels between devices, how often, and who asked for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from crops_jax.cost.hlo import Instruction, Module, Visit, arrays, origin, size, visits

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
          "collective-broadcast", "send", "recv")  # fmt: skip


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind, origin and dtype."""

    kind: str
    origin: str  # the function of this package that asked for it
    dtype: str
    count: int  # times a step runs one
    bytes: int  # a step's, on one device: of the larger one of operand and result
    between_slices: bool


@dataclass(frozen=True)
class Sent:
    """One collective instruction."""

    kind: str
    origin: str
    dtype: str
    bytes: int  # of the larger one of operand and result
    times: int  # that a step runs it
    group: (
        tuple[int, ...] | None
    )  # devices that take part, as one of the groups has them; None where the text is silent
    between_slices: bool


def collectives(module: Module, package: str) -> list[Collective]:
    """A step's collectives by kind, origin (function of `package`, helpers for sharding left out) and dtype."""
    count: Counter[tuple] = Counter()
    total: Counter[tuple] = Counter()
    for sent in each(module, package):
        key = (sent.kind, sent.origin, sent.dtype, sent.between_slices)
        count[key] += sent.times
        total[key] += sent.times * sent.bytes
    found = [Collective(*key[:3], count[key], total[key], key[3]) for key in count]
    return sorted(found, key=lambda c: -c.bytes)


def each(module: Module, package: str) -> Iterator[Sent]:
    """Every collective of a step.

    An all-gather that the compiler runs beside several fusions stands in each of them, and counts once. A sum of which
    every device keeps a part is a reduce-scatter, however it is written.
    """
    chains = set()
    for visit in visits(module):
        kind = _kind(visit)
        if kind is None:
            continue
        chain = re.search(r'chain_id="(\d+)"', visit.instruction.attributes)
        if chain and (visit.scheduled, kind, chain[1]) in chains:
            continue
        chains |= {(visit.scheduled, kind, chain[1])} if chain else set()
        scope = module.scope(visit.computation)
        given = "".join(scope[name].type for name in visit.instruction.operands)
        # The type of an asynchronous permute holds both sides, which are equal.
        permuted = visit.instruction.opcode == "collective-permute-start"
        whole = given if permuted else max(visit.instruction.type, given, key=size)
        between = "megascale" in visit.instruction.attributes
        asked = origin(module, visit, scope, package)
        yield Sent(kind, asked, arrays(whole)[0].dtype, size(whole), visit.times, _group(visit.instruction), between)


def _kind(visit: Visit) -> str | None:
    opcode = visit.instruction.opcode.removesuffix("-start")
    if opcode not in _KINDS:
        return None
    if opcode in ("send", "recv"):  # between slices the host sends; one of each pair counts
        between = re.search(r'_xla_megascale_transfer_type="(\w+)"', visit.instruction.attributes)
        return between[1].lower().replace("_", "-") if between and opcode == "send" else None
    return "reduce-scatter" if visit.computation.startswith("all-reduce-scatter") else opcode


def _group(instruction: Instruction) -> tuple[int, ...] | None:
    """The first group of devices, in any of the forms in which XLA writes them."""
    told = instruction.attributes
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([0-9,]+)\}", told):
        return tuple(int(d) for d in listed[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?", told):
        return tuple(int(d) for d in _iota(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))[0])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", told):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        along = re.findall(r"'([^']+)'", mesh[2])
        if not set(along) <= set(sizes):
            return None
        devices = np.arange(prod(sizes.values())).reshape(tuple(sizes.values()))
        place = tuple(slice(None) if name in along else 0 for name in sizes)
        return tuple(int(d) for d in devices[place].ravel())
    return None


def _iota(sizes: str, order: str | None) -> np.ndarray:
    devices = np.arange(prod(map(int, sizes.split(",")))).reshape([int(s) for s in sizes.split(",")])
    return devices.transpose([int(axis) for axis in order.split(",")]) if order else devices
