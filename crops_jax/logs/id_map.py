"""The map between a platform's ids and their numbers inside the program, where the two differ."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import Engine, open_engine
from crops_jax.engines.files import Sorted
from crops_jax.errors import InputError
from crops_jax.logs.declared import SPACES, Declared, IdSpace
from crops_jax.logs.folder import LogFolder
from crops_jax.logs.schema import TABLES
from crops_jax.logs.tables import PLATFORM

if TYPE_CHECKING:
    from ibis.expr.types import Table

MAP_FOLDER = "id_map"  # in the log folder: users.parquet and items.parquet, where they are hashed
_SALTS = 8  # of a billion ids, one salt in twenty gives two of them one number


def without_collisions(logs: LogFolder, days: list[str], config: EngineConfig) -> LogFolder:
    """The log folder with salts under which every id of it has a number of its own.

    Raises:
      InputError: no salt does it.
    """
    declared = logs.declared
    with open_engine(config, []) as engine:
        for role, name in SPACES.items():
            if (space := getattr(declared, name)) is not None:
                found = _unshared(engine, replace(logs, declared=declared), days, role, space)
                declared = replace(declared, **{name: found})
    return replace(logs, declared=declared)


def write_id_map(logs: LogFolder, days: list[str], config: EngineConfig) -> dict[str, int]:
    """Writes the map of users and of items below `MAP_FOLDER`, and returns how many ids each holds.

    A map of an earlier check goes away.
    Columns: the number inside the program (`user_id`, `item_id`), and the id as it is written (`tables.PLATFORM`).
    """
    counts, folder = {}, logs.root / MAP_FOLDER
    with open_engine(config, [logs.root]) as engine:
        for role, name in SPACES.items():
            path = folder / f"{name}.parquet"
            path.unlink(missing_ok=True)
            if logs.declared.space(role) is None:
                continue
            folder.mkdir(exist_ok=True)
            schema = pa.schema(
                [pa.field(f"{role}_id", pa.int64(), False), pa.field(PLATFORM[role], pa.string(), False)]
            )
            counts[name] = engine.write_sorted(_pairs(engine, logs, days, role), path, Sorted(schema, schema.names))
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return counts


def _unshared(engine: Engine, logs: LogFolder, days: list[str], role: str, space: IdSpace) -> IdSpace:
    for salt in range(_SALTS):
        salted = replace(space, salt=salt)
        declared: Declared = replace(logs.declared, **{SPACES[role]: salted})
        pairs = _pairs(engine, replace(logs, declared=declared), days, role)
        twice = pairs.group_by(f"{role}_id").aggregate(times=pairs.count()).filter(lambda t: t.times > 1)
        if twice.count().to_pyarrow().as_py() == 0:
            return salted
    raise InputError(str(logs.root), f"ids of {SPACES[role]} share numbers under each of {_SALTS} salts: number them")


def _pairs(engine: Engine, logs: LogFolder, days: list[str], role: str) -> Table:
    """(number, id as it is written) of all ids of the tables that define them, each once."""
    import ibis

    places = [("items", "")] if role == "item" else [(name, day) for day in days for name in _naming(logs, day, role)]
    tables = [logs.engine_table(engine, name, day) for name, day in places]
    pairs = (
        ibis.union(*[t.select(f"{role}_id", PLATFORM[role]) for t in tables], distinct=True)
        if len(tables) > 1
        else (tables[0].select(f"{role}_id", PLATFORM[role]).distinct())
    )
    return pairs.filter(pairs[f"{role}_id"].notnull())


def _naming(logs: LogFolder, day: str, role: str) -> list[str]:
    return [name for name in logs.tables(day) if any(column.role == role for column in TABLES[name].values())]
