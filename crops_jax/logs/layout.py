"""What lies in a log folder beside the tables of the contract.

A table that is misspelt, lies in another place or has another format would be gone without, where it is optional.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from crops_jax.artifacts.manifest import MANIFEST
from crops_jax.artifacts.walk import hidden
from crops_jax.logs.folder import LogFolder
from crops_jax.logs.id_map import MAP_FOLDER
from crops_jax.logs.schema import DAY_TABLES, TYPING_TABLES

_DAYS = ("train", "validation", "test")  # names that mean something; other days have any name
# What seems to mean one of them, without its capitals and signs. A held-out day that is mined would be trained on, and
# then asked for.
_CALLED = dict.fromkeys(
    ("test", "tests", "testing", "testset", "testday", "eval", "evaluation", "holdout", "heldout"), "test"
) | dict.fromkeys(
    ("validation", "validations", "validationset", "validationday", "valid", "validate", "val", "valset", "dev",
     "devset"), "validation"
) | {"train": "train"}  # fmt: skip
_OF_DAY, _OF_ALL = (*DAY_TABLES, *TYPING_TABLES), ("items", "judgments")
_WRITTEN = ("truth", "hidden_items.parquet", "import.json", MAP_FOLDER)  # what simulations, recipes, checks write
_DATA = ("", "parquet", "parq", "pq", "csv", "tsv", "json", "jsonl", "orc", "avro", "gz", "zst", "zip")
_ALIKE = 0.8  # of `difflib`: "judgements" is near "judgments", "suggestions" is not near "suggested"


def of_all_days(path: str) -> bool:
    """Whether a path in a log folder belongs to what is read of it, and to no single day."""
    first = path.partition("/")[0]
    return first in _WRITTEN or first in (f"{table}.parquet" for table in _OF_ALL)


def of_a_day(path: str) -> bool:
    """Whether a path in the folder of a day belongs to one of its tables."""
    return path.partition("/")[0] in (f"{table}.parquet" for table in _OF_DAY)


def strange_entries(logs: LogFolder) -> tuple[list[str], list[str]]:
    """(what has to be mended, what is not read and does no harm), of all that the contract does not name."""
    problems, unread, days = [], [], logs.days()
    for entry in _visible(logs.root):
        name = entry.name
        if name == MANIFEST or of_all_days(name):
            continue
        if name in days and (named := _meant_day(name)):
            problems.append(f"{name}: would be a day to mine; name it {named}, or otherwise")
        if name in days or name in _DAYS:
            of_day = _in_day(logs, name)
            problems += of_day[0]
            unread += of_day[1]
        elif meant := _meant(logs, entry, _OF_ALL):
            problems.append(f"{name}: {meant}")
        elif _holds_day_tables(entry):
            problems.append(f"{name}: is no day, for it holds no searches.parquet: write it, or take the folder away")
        else:
            unread.append(f"{name}: is no table" + (", and no day without searches.parquet" if entry.is_dir() else ""))
    return problems, unread


def _meant_day(name: str) -> str | None:
    """Which of the days with a meaning another name seems to mean."""
    return None if name in _DAYS else _CALLED.get("".join(filter(str.isalnum, name.casefold())))


def _holds_day_tables(folder: Path) -> bool:
    inside = _visible(folder)  # a folder that a command wrote, such as mined candidates, is no day's
    return not any(path.name == MANIFEST for path in inside) and any(_near(path, _OF_DAY) for path in inside)


def _in_day(logs: LogFolder, day: str) -> tuple[list[str], list[str]]:
    problems, unread = [], []
    for entry in _visible(logs.root / day):
        if of_a_day(entry.name):
            continue
        if meant := _meant(logs, entry, (*_OF_DAY, *_OF_ALL), day):
            problems.append(f"{day}/{entry.name}: {meant}")
        else:
            unread.append(f"{day}/{entry.name}: is no table")
    return problems, unread


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not hidden(path.name)) if folder.is_dir() else []


def _near(path: Path, tables: tuple[str, ...]) -> str | None:
    """The table whose name that of a file or folder of data is near."""
    stem, *endings = path.name.casefold().split(".")
    near = get_close_matches(stem.strip(), tables, 1, _ALIKE) if (endings or [""])[-1].strip() in _DATA else []
    return near[0] if near else None


def _meant(logs: LogFolder, path: Path, tables: tuple[str, ...], day: str = "") -> str:
    """What is said of a path that is near a table which is not there; "" where it is near none."""
    near = _near(path, tuple(table for table in tables if not logs.has(table, day)))
    place = logs.place(near, day).relative_to(logs.root) if near else ""
    return f"is not read; if it is meant as {place}, write it there as Parquet, else take it away" if near else ""
