"""Reads the text of a compiled step: its instructions, how often each runs, and where it comes from.

XLA's own cost analysis counts the body of a loop once; here everything inside a `while` counts as often as the loop
runs, which the text says: start, limit and stride of the counter are constants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import PurePath

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4,
          "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_CALLS = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)|\bbranch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\](?:\{([0-9,]*)(?::([^}]*))?\})?")
_TILE, _SPACE = re.compile(r"T\(([0-9,]+)\)"), re.compile(r"S\((\d+)\)")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """The value of `name=value`, up to the next comma, space or closing quote."""
        found = re.search(rf'\b{name}="?([^,\s"}}]+)', self.attributes)
        return found[1] if found else None


@dataclass
class Module:
    """A compiled module: its computations, which one is entered, and the source positions."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""
    tables: dict[str, dict[int, str]] = field(default_factory=dict)
    _scopes: dict[str, dict[str, Instruction]] = field(default_factory=dict)

    def scope(self, computation: str) -> dict[str, Instruction]:
        """A computation's instructions by name."""
        if computation not in self._scopes:
            self._scopes[computation] = {i.name: i for i in self.computations[computation]}
        return self._scopes[computation]


@dataclass(frozen=True)
class Array:
    """An array as it lies in memory."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int  # with what its tiles pad
    space: int  # 0: the device's large memory (HBM); others lie on the chip


def arrays(type_: str) -> list[Array]:
    """The arrays of an array's or a tuple's type, in order.

    >>> arrays("(bf16[3,64]{1,0:T(8,128)(2,1)}, f32[2]{0:S(1)})")
    [Array(dtype='bf16', shape=(3, 64), bytes=2048, space=0), Array(dtype='f32', shape=(2,), bytes=8, space=1)]
    """
    return [_array(*found) for found in _ARRAY.findall(type_)]


def _array(dtype: str, dims: str, order: str, layout: str) -> Array:
    shape = tuple(int(d) for d in dims.split(",") if d)
    padded = list(shape)
    tile = _TILE.search(layout)
    if tile and order:
        for axis, multiple in zip(order.split(","), reversed(tile[1].split(",")), strict=False):
            padded[int(axis)] = -(-padded[int(axis)] // int(multiple)) * int(multiple)
    space = _SPACE.search(layout)
    return Array(dtype, shape, int(_BYTES.get(dtype, 0) * prod(padded)), int(space[1]) if space else 0)


def shape(type_: str) -> tuple[int, ...]:
    """Dimensions of an array type."""
    return tuple(int(d) for d in _ARRAY.match(type_)[2].split(",") if d)


def size(type_: str) -> int:
    """Bytes of an array or tuple type, without what tiles pad."""
    return int(sum(_BYTES.get(kind, 0) * prod(int(d) for d in dims.split(",") if d)
                   for kind, dims, *_ in _ARRAY.findall(type_)))  # fmt: skip


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`."""
    module, current, table = Module(), None, None
    for line in _whole_lines(text):
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = module.tables.setdefault(line, {})
        elif table is not None and (entry := re.match(r"(\d+) (.*)", line)):
            table[int(entry[1])] = entry[2]
        elif header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current, table = module.computations.setdefault(header[2], []), None
            module.entry = header[2] if header[1] else module.entry
        elif line == "}":
            current = None
        elif current is not None and " = " in line:
            current.append(_instruction(line))
    return module


def _whole_lines(text: str) -> Iterator[str]:
    """Lines, with those joined that a kernel's metadata breaks: inside a computation every line is indented."""
    inside, parts = False, []
    for line in text.splitlines():
        if inside and line != "}" and not line.startswith("  "):
            parts.append(line)
            continue
        yield from ["".join(parts)] if parts else []
        inside = line.endswith("{") if not inside else line != "}"
        parts = [line]
    yield from ["".join(parts)] if parts else []


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    type_, rest = right[:end], right[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = _closing("(" + rest, 0) - 1
    literal = opcode in ("constant", "parameter")
    operands = (rest[: end - 1],) if literal else tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    name = left.strip().removeprefix("ROOT ").lstrip("%")
    return Instruction(name, type_, opcode, operands, rest[end:], left.lstrip().startswith("ROOT"))


def _closing(text: str, start: int) -> int:
    """One past the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced: {text[:80]}")


@dataclass(frozen=True)
class Visit:
    """An instruction, and how often a step runs it."""

    instruction: Instruction
    times: int
    computation: str
    scheduled: str  # the computation that is no fusion in which it runs
    path: tuple[Instruction, ...]  # the calls that lead to it, outermost first


def visits(module: Module) -> Iterator[Visit]:
    """Every instruction that a step runs, loops multiplied out.

    Raises:
      ValueError: the text does not say how often a loop runs.
    """
    yield from _visits(module, module.entry, 1, module.entry, ())


def _visits(module: Module, name: str, times: int, scheduled: str, path: tuple[Instruction, ...]) -> Iterator[Visit]:
    for instruction in module.computations[name]:
        yield Visit(instruction, times, name, scheduled, path)
        if instruction.opcode.endswith(("-done", "-update")):
            continue
        runs = trip_count(module, name, instruction) if instruction.opcode == "while" else 1
        for kind, called, branches in _CALLS.findall(instruction.attributes):
            inside = scheduled if kind in ("calls", "to_apply") else called
            for target in [called] if called else re.findall(r"%([\w.\-]+)", branches):
                yield from _visits(module, target, times * runs, inside or target, (*path, instruction))


def trip_count(module: Module, caller: str, loop: Instruction) -> int:
    """How often a `while` runs its body, from the constants that start, step and end its counter.

    Raises:
      ValueError: they are no constants.
    """
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if stated:
        return int(stated[1])
    before = module.scope(caller)
    start_of = peeled(before, loop.operands[0]).operands
    condition, body = (module.scope(loop.attribute(name).lstrip("%")) for name in ("condition", "body"))

    def constant(scope: dict[str, Instruction], name: str) -> int | None:
        found = peeled(scope, name)
        if found.opcode == "get-tuple-element" and scope is not before:  # carried around the loop unchanged
            return constant(before, start_of[int(found.attribute("index"))])
        return int(found.operands[0]) if found.opcode == "constant" else None

    test = next(i for i in condition.values() if i.root)
    counter, limit = peeled(condition, test.operands[0]), constant(condition, test.operands[1])
    index = int(counter.attribute("index"))
    start = constant(before, start_of[index])
    step_of = peeled(body, next(i for i in body.values() if i.root).operands[index])
    steps = [constant(body, name) for name in step_of.operands if peeled(body, name).opcode == "constant"]
    if test.attribute("direction") != "LT" or step_of.opcode != "add" or None in (start, limit) or len(steps) != 1:
        raise ValueError(f"{loop.name}: cannot tell how often it runs")
    return -(-(limit - start) // steps[0])


def peeled(scope: dict[str, Instruction], name: str) -> Instruction:
    """The instruction behind copies."""
    found = scope[name]
    while found.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        found = scope[found.operands[0]]
    return found


def origin(module: Module, visit: Visit, scope: dict[str, Instruction], package: str) -> str:
    """`module.function` of the innermost frame in `package` that the instruction, or what it belongs to, tells of."""
    operands = [scope[name] for name in visit.instruction.operands if name in scope]
    for told in (visit.instruction, *visit.path[::-1], *operands):
        frame = int(told.attribute("stack_frame_id") or 0)
        while frame:
            place = _numbers(module.tables["StackFrames"][frame])
            at = _numbers(module.tables["FileLocations"][place["file_location_id"]])
            file = PurePath(module.tables["FileNames"][at["file_name_id"]].strip('"'))
            function = module.tables["FunctionNames"][at["function_name_id"]].strip('"').split(".<locals>")[0]
            if package in file.parts and file.stem not in ("sharding", "collectives"):
                return f"{file.stem}.{function}"
            frame = place["parent_frame_id"] - 1  # numbered from 1, where 1 is "no parent"
    return "compiler"


def _numbers(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}
