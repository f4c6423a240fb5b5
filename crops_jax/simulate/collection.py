"""What the recipes in data/ share: opening a data set's files, and writing a judged collection (`judged` reads it)."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from crops_jax.errors import InputError
from crops_jax.logs.schema import ITEMS
from crops_jax.progress import progress

_SHOWN = 10  # bad lines that are named; the others are counted


@contextmanager
def opened(path: Path, missing: str = "no such file") -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where its name ends in .gz.

    Args:
      missing: said where there is no such file.

    Raises:
      InputError: there is no such file, or it turns out to be cut or damaged while it is read.
    """
    if not path.is_file():
        raise InputError(str(path), missing)
    with path.open("rb") as packed:
        if path.suffix != ".gz":
            yield packed
            return
        try:
            with gzip.open(packed) as stream:
                yield stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(str(path), f"cannot be unpacked ({error}); it is cut or damaged: get it again") from None


def one_line(text: str) -> str:
    r"""The text with its white space joined.

    >>> one_line(" oak\n  door ")
    'oak door'
    """
    return " ".join(text.split())


@dataclass
class Rejects:
    """What was left out: how often for which reason, and where first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        """Counts one; `place` is kept for the first of its reason."""
        self.counts[reason] += 1
        self.first.setdefault(reason, place)

    def facts(self) -> dict[str, dict[str, Any]]:
        """As a recipe's manifest tells it."""
        return {"rejects": dict(sorted(self.counts.items())), "first rejected": dict(sorted(self.first.items()))}


@dataclass
class Problems:
    """Lines of one file that nobody can read: they are mended, not left out, for what they say of is not known."""

    path: Path
    shown: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, line: int, what: str) -> None:
        """Notes one."""
        if len(self.shown) < _SHOWN:
            self.shown.append(f"line {line}: {what}")
        else:
            self.more += 1

    def end(self) -> None:
        """Raises InputError if there are any."""
        if self.shown:
            raise InputError(str(self.path), self.shown + ([f"and {self.more} more lines"] if self.more else []))


def lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank; a byte order mark and either line end are taken off."""
    with opened(path) as stream:
        for number, raw in enumerate(progress(stream, f"reading {path.name}", unit="line"), 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                problems.add(number, "is not UTF-8; save the file as UTF-8")
                continue
            if "\r" in (text := text.rstrip("\r\n")):
                problems.add(number, "holds carriage returns: end every line with a line feed")
            elif text.strip():
                yield number, text


def item_columns(ids: Sequence[int] | np.ndarray, **texts: Sequence[str | None]) -> dict[str, Any]:
    """Columns of the items table: these ids and text fields, all others null."""
    columns: dict[str, Any] = {name: pa.nulls(len(ids), column.type) for name, column in ITEMS.items()}
    return columns | {"item_id": pa.array(ids, pa.int64())} | texts


def judgment_columns(grades: Mapping[tuple[str, int], Sequence[float]]) -> tuple[dict[str, Any], dict[str, int]]:
    """(columns of the judgments table, counts): a (query, item) that has several grades gets their mean."""
    pairs = sorted(grades)
    columns = {
        "query": [q for q, _ in pairs], "item_id": [i for _, i in pairs],
        "grade": [float(np.mean(grades[p])) for p in pairs],
    }  # fmt: skip
    counts = {
        "judgments": len(pairs), "queries": len({q for q, _ in pairs}),
        "pairs judged more than once (mean taken)": sum(len(g) > 1 for g in grades.values()),
        "pairs judged more than once with different grades": sum(len(set(g)) > 1 for g in grades.values()),
    }  # fmt: skip
    return columns, counts


def tell(counts: Mapping[str, Any], out: Path) -> None:
    """Prints a recipe's counts, and last what was rejected, a line a reason."""
    for name, value in counts.items():
        if name not in ("rejects", "first rejected"):
            print(f"{name}: {value}")
    for reason, n in counts["rejects"].items():
        print(f"rejected: {n} x {reason} (the first: {counts['first rejected'][reason]})")
    print(f"wrote {out}")
