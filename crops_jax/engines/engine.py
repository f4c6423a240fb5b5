"""The port: what the miners ask of a relational engine. Everything else about it stays in its own file.

Miners are Ibis expressions. A table comes in as a `Stream`; it goes out as one sorted Parquet file, or as a folder of
parts, each sorted and with all rows of its keys (`Parts`). Both have the same bytes, whatever engine wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pyarrow as pa

from crops_jax.engines.config import EngineConfig
from crops_jax.normal_text import VISIBLE

if TYPE_CHECKING:
    from ibis.expr.types import BooleanValue, IntegerValue, StringValue, Table

    from crops_jax.engines.files import Sorted

NORMAL_FORM = "crops_normal_form"  # what the engines call `normal_text.normal_form`
DRAW = "crops_draw"  # and `stable_hash.hash_texts`
PART = "part"  # the column of `Engine.write_parts` that says where a row goes
T = TypeVar("T")
S = TypeVar("S")


class Stream(Protocol):
    """Rows that an engine asks for as often as it needs them: record batches of one schema."""

    schema: pa.Schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, from the first."""
        ...

    def pieces(self) -> Sequence[Stream]:
        """Streams that have the same rows together, and can be sent to other processes and read there."""
        ...


class Engine(Protocol):
    """One open engine (`open_engine`)."""

    def read(self, stream: Stream) -> Table:
        """A stream as an Ibis table; it is read anew by everything that is computed from it."""
        ...

    def materialise(self, name: str, expression: Table) -> Table:
        """Computes an expression once into the temporary table `name`, which later expressions read."""
        ...

    def scope(self) -> AbstractContextManager[None]:
        """What is materialised inside is gone, with its memory, when the block ends well; nor is what is `read` inside
        of use after it."""
        ...

    def count(self, expression: Table) -> int:
        """How many rows an expression has."""
        ...

    def write_sorted(self, expression: Table, path: str | Path, how: Sorted) -> int:
        """Writes an expression as Parquet with page checksums, sorted, and returns its rows."""
        ...

    def write_parts(self, expression: Table, folder: Path, how: Sorted) -> None:
        """As `write_sorted`, into a file `part-X.parquet` below `folder` for every value X of the column `PART`.

        A part that is there already is kept: it is from a run that was killed.
        """
        ...

    def each(self, function: Callable[[S], T], values: Sequence[S]) -> list[T]:
        """`function` of every value, in their order, run where the engine runs: both have to be picklable there."""
        ...


def open_engine(config: EngineConfig, folders: Sequence[str | Path]) -> AbstractContextManager[Engine]:
    """The engine that the config names, which may read and write `folders` and its own temporary files.

    Whatever goes wrong inside the block for a reason that lies outside the program, in a statement or in an expression
    that is computed late, comes out of it as an InputError.

    Raises:
      InputError: a setting is refused (a memory limit that cannot be parsed, say), memory, disk space or open files run
        out, a file may not be read or written, a value fits no type, or a stream's own error.
    """
    # Each engine is imported where it is used: a training host reads the configs of the mining half without them.
    match config.backend:
        case "duckdb":
            from crops_jax.engines import duckdb

            return duckdb.open_engine(config, folders)
        case "spark":
            from crops_jax.engines import spark

            return spark.open_engine(config)


def normalised(text: Any) -> StringValue:
    """A column of texts in their `normal_text.normal_form`, made by that function: SQL has no case folding of its own.

    It costs a call to Python for every distinct text of a few thousand rows: take it of distinct texts where there are
    many.
    """
    return _builtin(NORMAL_FORM)(text)


def md5(text: Any) -> StringValue:
    """The MD5 digest of a column of texts, in hexadecimal: a hash that all engines have."""
    return _builtin("md5")(text)


def draw(text: Any, seed: int) -> IntegerValue:
    """A seeded order of a column of texts: that of their `stable_hash.hash_texts`. It costs what `normalised` does."""
    return _draw()(text, seed)


@cache
def _draw() -> Callable[[Any, int], IntegerValue]:
    import ibis

    def function(text: str, seed: int) -> int:
        """A function that the engine has."""

    return ibis.udf.scalar.builtin(function, name=DRAW)


@cache
def _builtin(name: str) -> Callable[[Any], StringValue]:
    import ibis

    def function(text: str) -> str:
        """A function that the engine has."""

    return ibis.udf.scalar.builtin(function, name=name)


def has_text(text: Any) -> BooleanValue:
    """`normal_text.has_text` of a column."""
    return text.re_search(VISIBLE)
