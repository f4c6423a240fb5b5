"""Reads the text of a compiled step: how often each part runs, its matrix products, its collectives, and where they
come from.

XLA's own cost analysis counts the body of a loop once; here everything inside a `while` counts as often as the loop
runs, which the text says: start, limit and stride of the counter are constants.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import PurePath

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4,
          "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
                "collective-broadcast", "send", "recv")  # fmt: skip
_CALLS = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)|\bbranch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")


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


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind, origin and dtype."""

    kind: str
    origin: str  # the function of this package that asked for it
    dtype: str
    count: int  # times a step runs one
    bytes: int  # a step's, on one device: of the larger one of operand and result
    between_slices: bool


@dataclass
class Module:
    """A compiled module: its computations, which one is entered, and the source positions."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""
    tables: dict[str, dict[int, str]] = field(default_factory=dict)


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`."""
    module, current, table = Module(), None, None
    for line in text.splitlines():
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


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    type_, rest = right[:end], right[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = _closing("(" + rest, 0) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end])) if opcode != "constant" else (rest[: end - 1],)
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
    before = {i.name: i for i in module.computations[caller]}
    start_of = _peeled(before, loop.operands[0]).operands
    condition = {i.name: i for i in module.computations[loop.attribute("condition").lstrip("%")]}
    body = {i.name: i for i in module.computations[loop.attribute("body").lstrip("%")]}

    def constant(scope: dict[str, Instruction], name: str) -> int | None:
        found = _peeled(scope, name)
        if found.opcode == "get-tuple-element" and scope is not before:  # carried around the loop unchanged
            return constant(before, start_of[int(found.attribute("index"))])
        return int(found.operands[0]) if found.opcode == "constant" else None

    test = next(i for i in condition.values() if i.root)
    counter, limit = _peeled(condition, test.operands[0]), constant(condition, test.operands[1])
    index = int(counter.attribute("index"))
    start = constant(before, start_of[index])
    step_of = _peeled(body, next(i for i in body.values() if i.root).operands[index])
    steps = [constant(body, name) for name in step_of.operands if _peeled(body, name).opcode == "constant"]
    if test.attribute("direction") != "LT" or step_of.opcode != "add" or None in (start, limit) or len(steps) != 1:
        raise ValueError(f"{loop.name}: cannot tell how often it runs")
    return -(-(limit - start) // steps[0])


def _peeled(scope: dict[str, Instruction], name: str) -> Instruction:
    """The instruction behind copies."""
    found = scope[name]
    while found.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        found = scope[found.operands[0]]
    return found


def product_flops(module: Module) -> int:
    """FLOPs of a step's matrix products on one device, two for every multiply-add."""
    return sum(v.times * _flops(module, v) for v in visits(module) if v.instruction.opcode in ("dot", "convolution"))


def _flops(module: Module, visit: Visit) -> int:
    scope = {i.name: i for i in module.computations[visit.computation]}
    i = visit.instruction
    left, right = (_shape(scope[name].type) for name in i.operands[:2])
    if i.opcode == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", i.attributes)
        return 2 * prod(_shape(i.type)) * prod(left[int(d)] for d in summed[1].split(",") if d)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    out, groups = _shape(i.type), int(i.attribute("batch_group_count") or 1)
    size = {name: right[at] for at, name in enumerate(labels[2])}
    # `i` of the kernel is already divided by feature groups, so this also holds for grouped convolutions.
    pairs = size["i"] * size["o"] * (left[labels[1].index("b")] // groups)
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", i.attributes) or ["", ""])[1]))
    spatial = [name for name in labels[1] if name.isdigit()]
    for name in spatial:
        pairs *= _places(out[labels[3].index(name)], left[labels[1].index(name)], size[name], window, int(name))
    return 2 * pairs


def _places(out: int, left: int, kernel: int, window: dict[str, str], at: int) -> int:
    """Pairs of an output place and a kernel place along one axis that meet an element and neither padding nor a hole.

    TPU's compiler writes batch axes of a product as axes of a dilated window, where most pairs meet nothing.
    """

    def at_axis(name: str, default: str) -> str:
        return window[name].split("x")[at] if name in window else default

    stride, hole, spread = (int(at_axis(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(at_axis("pad", "0_0").split("_")[0])
    reach = (left - 1) * hole
    met = 0
    for k in range(kernel):
        offset = k * spread - low
        met += sum(0 <= place <= reach and place % hole == 0 for place in range(offset, offset + out * stride, stride))
    return met


def _shape(type_: str) -> tuple[int, ...]:
    """Dimensions of an array type."""
    return tuple(int(d) for d in _ARRAY.match(type_)[2].split(",") if d)


def _size(type_: str) -> int:
    """Bytes of an array or tuple type."""
    return int(sum(_BYTES.get(kind, 0) * prod(int(d) for d in dims.split(",") if d)
                   for kind, dims in _ARRAY.findall(type_)))  # fmt: skip


def collectives(module: Module, package: str) -> list[Collective]:
    """A step's collectives by kind, origin (function of `package`, helpers for sharding left out) and dtype.

    An all-gather that the compiler runs beside several fusions stands in each of them, and counts once. A sum of which
    every device keeps a part is a reduce-scatter, however it is written.
    """
    total: Counter[tuple] = Counter()
    count: Counter[tuple] = Counter()
    chains = set()
    for visit in visits(module):
        kind = _kind(visit)
        if kind is None:
            continue
        chain = re.search(r'chain_id="(\d+)"', visit.instruction.attributes)
        if chain and (visit.scheduled, kind, chain[1]) in chains:
            continue
        chains |= {(visit.scheduled, kind, chain[1])} if chain else set()
        scope = {i.name: i for i in module.computations[visit.computation]}
        given = "".join(scope[name].type for name in visit.instruction.operands)
        # The type of an asynchronous permute holds both sides, which are equal.
        permuted = visit.instruction.opcode == "collective-permute-start"
        whole = given if permuted else max(visit.instruction.type, given, key=_size)
        between = "megascale" in visit.instruction.attributes
        key = (kind, _origin(module, visit, scope, package), _ARRAY.search(whole)[1], between)
        count[key] += visit.times
        total[key] += visit.times * _size(whole)
    found = [Collective(*key[:3], count[key], total[key], key[3]) for key in count]
    return sorted(found, key=lambda c: -c.bytes)


def _kind(visit: Visit) -> str | None:
    opcode = visit.instruction.opcode.removesuffix("-start")
    if opcode not in _COLLECTIVES:
        return None
    if opcode in ("send", "recv"):  # between slices the host sends; one of each pair counts
        between = re.search(r'_xla_megascale_transfer_type="(\w+)"', visit.instruction.attributes)
        return between[1].lower().replace("_", "-") if between and opcode == "send" else None
    return "reduce-scatter" if visit.computation.startswith("all-reduce-scatter") else opcode


def _origin(module: Module, visit: Visit, scope: dict[str, Instruction], package: str) -> str:
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
