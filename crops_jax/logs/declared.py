"""What cannot be read off a log's columns: the unit of its integer times, and how its ids become numbers.

Inside the program an id is an int64 of 0 or above. Where the platform's own ids are such numbers, they are taken as
they are. Where they are strings (a UUID, "v_123") or numbers outside this range, an id becomes a hash of its text: the
same number in every log, whatever other ids there are. `check_logs` makes sure that no two ids share a number, seals
the declaration with the folder, and writes the pairs beside the tables.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from crops_jax.artifacts.manifest import MANIFEST, read_manifest
from crops_jax.stable_hash import hash_column

TimeUnit = Literal["s", "ms", "us", "ns"]
IdType = Literal["string", "int64", "uint64"]
SPACES = {"user": "users", "item": "items"}  # a column's role -> the field of `Declared`


@dataclass(frozen=True)
class IdSpace:
    """Ids that are hashed: of users, or of items."""

    type: IdType
    """What the platform writes them as."""
    salt: int = 0
    """Seed of the hash; above 0 where a smaller one gave two ids one number."""

    def number(self, texts: pa.Array) -> np.ndarray:
        """int64[n], 0 or above: the numbers of ids as they are written."""
        return (hash_column(texts, self.salt) >> np.uint64(1)).astype(np.int64)

    def as_written(self, texts: pa.ChunkedArray) -> pa.ChunkedArray:
        """Ids as text in the type that the platform writes them in."""
        return texts.cast({"string": pa.string(), "int64": pa.int64(), "uint64": pa.uint64()}[self.type])


@dataclass(frozen=True)
class Declared:
    """How the tables of one log folder are read. None: these ids are taken as they are."""

    time_unit: TimeUnit = "ms"
    users: IdSpace | None = None
    items: IdSpace | None = None

    def space(self, role: str) -> IdSpace | None:
        """The space of a column of this role."""
        return getattr(self, SPACES[role]) if role in SPACES else None

    def user(self, written: int | str) -> int | None:
        """The number of a user as the platform writes it; None where no user can be written like this."""
        if self.users is not None:
            return int(self.users.number(pa.array([str(written)]))[0])
        try:
            return int(written)
        except ValueError:
            return None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return asdict(self)


AS_THEY_ARE = Declared()


def read_declared(logs: Path) -> Declared | None:
    """What was sealed with a log folder; None where it is not sealed. A simulated log declares nothing."""
    if not (logs / MANIFEST).is_file():
        return None
    config = read_manifest(logs)["config"] or {}
    if "time_unit" not in config:
        return AS_THEY_ARE
    spaces = {name: None if config[name] is None else IdSpace(**config[name]) for name in SPACES.values()}
    return Declared(config["time_unit"], **spaces)
