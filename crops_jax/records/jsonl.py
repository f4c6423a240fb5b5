"""The paper's Listing 1 as JSON lines: `user_id, query, photo_list[{photo_id, photo_content, hierarchical_label}]`.

Listing 1 has no request id, no source and no dense keys: a file that comes back as groups gets request ids in the
order of its lines, and empty source sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crops_jax.errors import InputError
from crops_jax.labels import MAX_LEVEL, Group
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.records.features import UNKNOWN_COUNT, Record
from crops_jax.records.items import Items

_MOST_PROBLEMS = 20  # shown of one file; the rest is counted
_LABELS = range(1, MAX_LEVEL + 1)


@dataclass(frozen=True)
class Photo:
    """One graded document of Listing 1; a counter is None where it is not known."""

    photo_id: int
    content: dict[str, str | int | None]  # the four text fields and the four counters
    label: int


@dataclass(frozen=True)
class DataItem:
    """One `data_item` of Listing 1."""

    user_id: int
    query: str
    photos: tuple[Photo, ...]


def data_item(record: Record) -> DataItem:
    """The record in the paper's form; request id, sources and keys are left behind."""

    def counter(name: str, row: int) -> int | None:
        value = int(getattr(record, name)[row])
        return None if value == UNKNOWN_COUNT else value

    photos = []
    for row in range(len(record)):
        content: dict[str, str | int | None] = {name: getattr(record, name)[row] for name in TEXT_FIELDS}
        content |= {name: counter(name, row) for name in COUNTERS}
        photos.append(Photo(int(record.item_id[row]), content, int(record.label[row])))
    return DataItem(record.user_id, record.query, tuple(photos))


def write_jsonl(data: Iterable[DataItem], path: Path) -> int:
    """Writes one data item a line, UTF-8, and returns their number."""
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for item in data:
            photos = [{"photo_id": p.photo_id, "photo_content": p.content, "hierarchical_label": p.label}
                      for p in item.photos]  # fmt: skip
            line = {"user_id": item.user_id, "query": item.query, "photo_list": photos}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> list[DataItem]:
    """Every data item of the file.

    Raises:
      InputError: names each line and field that is missing or of the wrong type (the first 20, then a count).
    """
    problems: list[str] = []
    data = [item for item in _parsed(path, problems) if item is not None]
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        raise InputError(str(path), problems[:_MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))
    return data


def listed_groups(path: Path) -> tuple[list[Group], Items]:
    """A file of data items as groups and their items, ready for `write_records`.

    The first copy of a document gives its texts. A document listed twice for one query keeps its highest label.

    Raises:
      InputError: as `read_jsonl`.
    """
    groups, contents = [], {}
    for line, item in enumerate(read_jsonl(path), start=1):
        labels: dict[int, int] = {}
        for photo in item.photos:
            labels[photo.photo_id] = max(photo.label, labels.get(photo.photo_id, 0))
            contents.setdefault(photo.photo_id, photo.content)
        ids = list(labels)
        label = np.fromiter(labels.values(), np.int32)
        groups.append(Group(f"line-{line}", item.user_id, item.query, np.array(ids, np.int64), label, label * 0))
    columns: dict[str, Any] = {"item_id": pa.array(contents, pa.int64())}
    columns |= {name: pa.array([c[name] for c in contents.values()], pa.string()) for name in TEXT_FIELDS}
    columns |= {name: pa.array([c[name] for c in contents.values()], pa.int64()) for name in COUNTERS}
    return groups, Items({str(path): pa.table(columns)})


def _parsed(path: Path, problems: list[str]) -> Iterator[DataItem | None]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: is not JSON in UTF-8 ({error})")
            continue
        checker = _Fields(f"line {number}", problems)
        yield checker.data_item(value)


class _Fields:
    """Takes typed fields out of parsed JSON and notes every one that is missing or mistyped."""

    def __init__(self, place: str, problems: list[str]):
        self._place = place
        self._problems = problems
        self._before = len(problems)

    def data_item(self, value: Any) -> DataItem | None:
        user_id = self._take(value, "user_id", int)
        query = self._take(value, "query", str)
        photos = self._take(value, "photo_list", list) or []
        parsed = [self._photo(photo, f"photo_list[{i}]") for i, photo in enumerate(photos)]
        return DataItem(user_id, query, tuple(parsed)) if len(self._problems) == self._before else None

    def _photo(self, value: Any, where: str) -> Photo:
        photo_id = self._take(value, "photo_id", int, where)
        label = self._take(value, "hierarchical_label", int, where)
        if label is not None and label not in _LABELS:
            self._problems.append(f"{self._place}: {where}.hierarchical_label is {label}, not within 1..{MAX_LEVEL}")
        given = self._take(value, "photo_content", dict, where)
        content = {}
        if given is not None:
            inner = f"{where}.photo_content"
            content = {name: self._take(given, name, str, inner) for name in TEXT_FIELDS}
            content |= {name: self._take(given, name, int, inner, nullable=True) for name in COUNTERS}
        return Photo(photo_id, content, label)

    def _take(self, value: Any, name: str, kind: type, where: str = "", nullable: bool = False) -> Any:
        field = f"{where}.{name}" if where else name
        if not isinstance(value, dict) or name not in value:
            self._problems.append(f"{self._place}: {field} is missing")
            return None
        found = value[name]
        if nullable and found is None:
            return None
        if not isinstance(found, kind) or isinstance(found, bool):
            self._problems.append(f"{self._place}: {field} is {type(found).__name__}, not {kind.__name__}")
        elif isinstance(found, int) and not -(1 << 63) <= found < 1 << 63:
            self._problems.append(f"{self._place}: {field} is {found}, which does not fit in 64 bits")
        elif isinstance(found, str) and any("\ud800" <= c <= "\udfff" for c in found):
            self._problems.append(f"{self._place}: {field} holds half of a surrogate pair")
        else:
            return found
        return None
