"""A log folder: where its tables lie, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.artifacts.walk import hidden
from crops_jax.engines.engine import Engine
from crops_jax.errors import InputError
from crops_jax.logs.casts import WrongType, cast, plain
from crops_jax.logs.declared import AS_THEY_ARE, SPACES, Declared, IdSpace, IdType, TimeUnit, read_declared
from crops_jax.logs.schema import DAY_TABLES, PLACES, TABLES, TYPING_TABLES
from crops_jax.logs.tables import LogTable, Part, look, open_table, raw_batches
from crops_jax.normal_text import normal_form

if TYPE_CHECKING:
    from ibis.expr.types import Table


@dataclass(frozen=True)
class LogFolder:
    """A log folder, and what is declared of it."""

    root: Path
    declared: Declared

    def place(self, name: str, day: str = "") -> Path:
        """Where a table lies, or would: a file or a folder of files."""
        return self.root / PLACES.get(name, f"{day}/{name}.parquet")

    def has(self, name: str, day: str = "") -> bool:
        """Whether the table is there, or a link to it that leads nowhere: reading such a link says what is wrong."""
        return os.path.lexists(self.place(name, day))

    @property
    def graded_by(self) -> str | None:
        """The table that grades come from: "truth", of all pairs of a simulated world (those not listed are 0), before
        "judgments"; None where nothing is graded."""
        return next((name for name in ("truth", "judgments") if self.has(name)), None)

    def grades(self) -> dict[tuple[str, int], float]:
        """The grade of every listed (query, item), queries in their normal form; empty where nothing is graded."""
        if self.graded_by is None:
            return {}
        table = self.read(self.graded_by)
        query, item, grade = (table[name].to_pylist() for name in ("query", "item_id", "grade"))
        return {(normal_form(q), i): g for q, i, g in zip(query, item, grade, strict=True)}

    def days(self) -> list[str]:
        """The days that the folder holds, sorted by name: folders with searches, but those whose names are hidden."""
        found = (path.parent.name for path in self.root.glob("*/searches.parquet"))
        return sorted(name for name in found if not hidden(name))

    def tables(self, day: str) -> list[str]:
        """The tables that a day has or should have: those of suggestions only where there is one of them."""
        told = [name for name in TYPING_TABLES if self.has(name, day)]
        return [*DAY_TABLES, *(name for name in TYPING_TABLES if told and (name != "followed" or name in told))]

    def stored(self) -> Iterator[tuple[str, Path]]:
        """(name, place) of every table that is there."""
        places = [(name, "") for name in PLACES] + [(name, day) for day in self.days() for name in self.tables(day)]
        yield from ((name, self.place(name, day)) for name, day in places if self.has(name, day))

    def open(self, name: str, day: str = "", columns: Sequence[str] | None = None) -> LogTable:
        """A table of the contract (`tables.open_table`)."""
        return open_table(self.place(name, day), name, self.declared, columns)

    def look(self, name: str, day: str = "") -> tuple[LogTable, list[str]]:
        """A table as far as it is sound, and what is wrong with it (`tables.look`)."""
        return look(self.place(name, day), name, self.declared)

    def read(self, name: str, day: str = "", columns: Sequence[str] | None = None) -> pa.Table:
        """A table of the contract in memory (`LogTable.read`)."""
        return self.open(name, day, columns).read()

    def engine_table(self, engine: Engine, name: str, day: str = "", columns: Sequence[str] | None = None) -> Table:
        """A table of the contract, or these columns of it, as the engine's."""
        return engine.read(self.open(name, day, columns))


def open_logs(logs: str | Path) -> LogFolder:
    """A log folder as it was declared when it was sealed; of one that is not sealed, as it looks (`declare`)."""
    root = Path(logs)
    declared = read_declared(root)
    return LogFolder(root, declare(root, "ms") if declared is None else declared)


def _one_by_one(function: Callable[[Part], Any], parts: Sequence[Part]) -> list[Any]:
    return [function(part) for part in parts]


def declare(root: Path, time_unit: TimeUnit, each: Callable[..., list[Any]] = _one_by_one) -> Declared:
    """What has to be known of a log folder: the unit of its integer times, and whether its ids have to be hashed.

    Ids are hashed where a table has them as strings, or as numbers that are no int64, or, for items, below 0: negative
    ids belong to documents that a language model wrote. Tables that cannot be read are left to the checks.

    Args:
      each: `Engine.each`, where an engine is to read the tables.
    """
    found: dict[str, set[IdType]] = {role: set() for role in SPACES}
    for name, path in LogFolder(root, AS_THEY_ARE).stored():
        columns = [column for column, want in TABLES[name].items() if want.role in SPACES]
        try:
            table = open_table(path, name, AS_THEY_ARE, columns)
        except InputError:
            continue
        kinds = each(partial(_kinds, {c: want.role for c, want in table.columns.items()}), table.parts)
        if None in kinds:
            continue
        for role, of_part in ((role, of_part) for part in kinds for role, of_part in part.items()):
            found[role] |= of_part
    spaces = {SPACES[role]: _space(kinds) for role, kinds in found.items()}
    return replace(AS_THEY_ARE, time_unit=time_unit, **spaces)


def _kinds(roles: Mapping[str, str], part: Part) -> dict[str, set[IdType]] | None:
    """`_beyond`; None of a part that cannot be read."""
    try:
        return _beyond(part, roles)
    except InputError:
        return None


def _beyond(part: Part, roles: Mapping[str, str]) -> dict[str, set[IdType]]:
    """What the ids of a part are, by role, as far as they are no numbers that are taken as they are."""
    found: dict[str, set[IdType]] = {role: set() for role in roles.values()}
    numbers = []
    for column in (c for c in roles if c in part.schema.names):
        kind = plain(pa.array([], part.schema.field(column).type)).type
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            found[roles[column]].add("string")
        elif roles[column] == "item" or not pa.types.is_signed_integer(kind):
            numbers.append(column)
    for batch in raw_batches(part, numbers) if numbers else ():
        for column in numbers:
            found[roles[column]] |= _beyond_numbers(plain(batch.column(column)), roles[column])
    return found


def _beyond_numbers(array: pa.Array, role: str) -> set[IdType]:
    try:
        whole = cast(array, pa.int64())
    except WrongType:
        return set()
    found: set[IdType] = set()
    if whole.bad.any() and (pa.types.is_uint64(array.type) or pa.types.is_decimal(array.type)):
        found.add("uint64" if pa.types.is_uint64(array.type) else "string")
    least = pc.min(whole.array).as_py()
    return found | ({"int64"} if role == "item" and least is not None and least < 0 else set())


def _space(kinds: set[IdType]) -> IdSpace | None:
    match sorted(kinds):
        case []:
            return None
        case [kind]:
            return IdSpace(kind)
        case _:
            return IdSpace("string")
