"""Bytes that a compiled step moves between a device and its large memory (HBM), of loops as often as they run.

Every scheduled instruction reads its operands and writes its result, once each. What lies in the chip's own memory, as
the text says (`hlo.Array.space`), is free, and so is what a fusion computes on the way. Of an array that is only
sliced, the slice counts; of one that is updated in place, the update.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from crops_jax.cost.hlo import Array, Instruction, Module, Visit, arrays, origin, visits

_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
     "opt-barrier", "add-dependency", "partition-id", "replica-id", "domain")
)  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """Reads and writes of arrays of one type, by one function of this package."""

    origin: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int  # a step's, on one device


def traffic(module: Module, package: str) -> list[Traffic]:
    """A step's reads and writes of HBM, most first.

    Args:
      package: whose functions the traffic is put down to (`hlo.origin`).
    """
    total: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for visit in visits(module):
        if visit.computation != visit.scheduled or _is_free(visit.instruction):
            continue
        asked = origin(module, visit, module.scope(visit.computation), package)
        for array, moved in (*_reads(module, visit), *_writes(module, visit)):
            if array.space == 0 and moved:
                total[asked, array.dtype, array.shape] += visit.times * moved
    return [Traffic(*key, moved) for key, moved in total.most_common()]


def _is_free(i: Instruction) -> bool:
    allocates = i.opcode == "custom-call" and not i.operands
    return i.opcode in _FREE or i.opcode.endswith(("-done", "-update")) or allocates


def _reads(module: Module, visit: Visit) -> Iterator[tuple[Array, int]]:
    """Each array that is read, and how many bytes of it."""
    i, scope = visit.instruction, module.scope(visit.computation)
    for place, name in enumerate(i.operands):
        for array in arrays(scope[name].type):
            yield array, min(array.bytes, _used(module, visit.computation, i, place, array.bytes))


def _used(module: Module, computation: str, user: Instruction, place: int, whole: int) -> int:
    """Bytes that an instruction reads of its operand at `place`."""
    match user.opcode:
        case "dynamic-slice" | "slice" | "gather" if place == 0:
            return _bytes(user.type)
        case "slice-start" | "dynamic-slice-start" if place == 0:  # (operands, result, context)
            return arrays(user.type)[len(user.operands)].bytes
        case "dynamic-update-slice" | "scatter" if place == 0:
            return 0
        case "fusion" | "async-start":
            inside = _called(user)
            parameter = next(
                i for i in module.computations[inside] if i.opcode == "parameter" and i.operands == (str(place),)
            )
            return _used_of(module, inside, parameter.name, whole)
    return whole


def _used_of(module: Module, computation: str, name: str, whole: int) -> int:
    """Bytes that a fusion reads of one value of its own."""
    total = 0
    for user in module.computations[computation]:
        for place in [at for at, operand in enumerate(user.operands) if operand == name]:
            if user.opcode == "bitcast":
                total += _used_of(module, computation, user.name, whole)
            elif user.opcode != "tuple":  # where it only passes through
                total += _used(module, computation, user, place, whole)
    return total


def _writes(module: Module, visit: Visit) -> Iterator[tuple[Array, int]]:
    """Each array that is written, and how many bytes of it."""
    i = visit.instruction
    results = arrays(i.type)
    match i.opcode:
        case "fusion" | "async-start":
            inside = _called(i)
            root = next(inner for inner in module.computations[inside] if inner.root)
            written = _written(module, inside, root)
            if i.opcode == "async-start":  # (operands, results, context)
                results = results[len(i.operands) :]
            yield from zip(results, written, strict=False)
        case "copy-start":  # (result, operand, context)
            yield results[0], results[0].bytes
        case opcode if opcode.endswith("-start"):  # (operands, results, context); an all-reduce has results alone
            own = results if opcode == "all-reduce-start" else results[len(i.operands) : 2 * len(i.operands)]
            yield from ((array, array.bytes) for array in own)
        case "send":
            return
        case _:
            yield from zip(results, _written(module, visit.computation, i), strict=False)


def _written(module: Module, computation: str, result: Instruction) -> list[int]:
    """Bytes that are written of a result's arrays."""
    scope = module.scope(computation)
    match result.opcode:
        case "tuple":
            return [size for name in result.operands for size in _written(module, computation, scope[name])]
        case "bitcast":
            return _written(module, computation, scope[result.operands[0]])
        case "dynamic-update-slice":
            return [_bytes(scope[result.operands[1]].type)]
        case "scatter":
            return [_bytes(scope[result.operands[-1]].type)]
        case "parameter":
            return [0] * len(arrays(result.type))
        case "fusion":
            inside = _called(result)
            return _written(module, inside, next(inner for inner in module.computations[inside] if inner.root))
    return [array.bytes for array in arrays(result.type)]


def _called(i: Instruction) -> str:
    return re.search(r"\bcalls=%?([\w.\-]+)", i.attributes)[1]


def _bytes(type_: str) -> int:
    return sum(array.bytes for array in arrays(type_))
