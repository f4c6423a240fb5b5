"""A few days out of many, as a log folder of their own, under the names that every verb knows: train, test, validation.

The tables of the days are links to those of the whole log, or copies where the disk knows no links. The other tables
are copies: with one more day the items become more, and what was made of the days before has to stay what it was. What
is no table of the contract stays where it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from crops_jax.artifacts.folders import link_file, write_folder
from crops_jax.artifacts.manifest import FileFacts, data_files, read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.logs.layout import of_a_day, of_all_days


def ensure_window(logs: Path, target: Path, names: Mapping[str, str], *, current: bool = False) -> None:
    """Makes `target` the log of the days in `names`: the day as `logs` calls it -> train, test or validation.

    Args:
      current: makes it anew where any table has changed since; else it is left as it is where it holds the same files
        of the days, even if items or judgments have changed.

    Raises:
      InputError: `logs` is not sealed, or without one of the days; or since then a day has gone, or a table of these
        days or of all has gone, changed its size, or got another file. Other days may be on their way.
    """
    manifest = read_manifest(logs, "logs", "python -m crops_jax.check_logs DIR")
    facts = {}
    for entry in manifest["files"]:
        day, _, rest = entry["path"].partition("/")
        if day in names and of_a_day(rest):
            facts[entry["path"]] = FileFacts(**entry | {"path": f"{names[day]}/{rest}"})
        elif of_all_days(entry["path"]):
            facts[entry["path"]] = FileFacts(**entry)
    _require_sealed(logs, manifest, facts, names)
    config = {**(manifest["config"] or {}), "window": {name: day for day, name in names.items()}}
    wanted = [vars(fact) for fact in facts.values()]
    if _holds(target, config, wanted, None if current else names.values()):
        return
    counts = {name: manifest["counts"][day] for day, name in names.items() if day in manifest["counts"]}
    with write_folder(target, kind="logs", config=config) as out:
        for path, fact in facts.items():
            put = link_file if path.partition("/")[0] in names else shutil.copyfile
            put(logs / path, out / fact.path)
        out.facts += facts.values()
        out.counts.update(counts)


def _require_sealed(
    logs: Path, manifest: Mapping[str, Any], facts: Mapping[str, FileFacts], days: Collection[str]
) -> None:
    """Raises InputError unless the files of `facts` are there with their sizes and no others in the tables of `days`,
    and every sealed day is.
    """
    sealed = {entry["path"].partition("/")[0] for entry in manifest["files"] if _is_searches(entry["path"])}
    problems = [f"the day {day} is none of those that were sealed" for day in days if day not in sealed]
    problems += [f"the day {day} was sealed, and is not there" for day in sorted(sealed) if not (logs / day).is_dir()]
    problems += [f"{path}: missing, or of another size" for path, fact in facts.items() if not _is(logs / path, fact)]
    here = (path.relative_to(logs) for day in days if day in sealed for path in data_files(logs / day))
    late = (path for path in here if path.as_posix() not in facts and of_a_day("/".join(path.parts[1:])))
    problems += [f"{path}: came in after the folder was sealed" for path in late]
    if problems:
        raise InputError(str(logs), [*problems, "seal the folder again: python -m crops_jax.check_logs DIR"])


def _is_searches(path: str) -> bool:
    return path.partition("/")[2].partition("/")[0] == "searches.parquet"


def _is(path: Path, fact: FileFacts) -> bool:
    return path.is_file() and path.stat().st_size == fact.size


def _holds(target: Path, config: dict[str, Any], wanted: list[dict[str, Any]], days: Collection[str] | None) -> bool:
    """Whether a folder is the window that is wanted; of its files only those of `days` are asked for, if given."""
    try:
        manifest = verify(target, deep=False)
    except InputError:
        return False
    return manifest["config"] == config and _chosen(manifest["files"], days) == _chosen(wanted, days)


def _chosen(entries: list[dict[str, Any]], days: Collection[str] | None) -> list[dict[str, Any]]:
    found = [entry for entry in entries if days is None or entry["path"].partition("/")[0] in days]
    return sorted(found, key=lambda entry: entry["path"])
