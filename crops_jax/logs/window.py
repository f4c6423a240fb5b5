"""Two neighbouring days out of many, as a log folder of their own: one to mine, and the next one to evaluate on.

Every verb reads such a folder as it reads any other. The tables of the days are links to those of the whole log, or
copies where the disk knows no links. The other tables are copies: with one more day the items become more, and what was
made of the days before has to stay what it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from crops_jax.artifacts.folders import link_file, write_folder
from crops_jax.artifacts.manifest import FileFacts, read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs


def ensure_window(logs: Path, target: Path, today: str, tomorrow: str) -> None:
    """Makes `target` the log whose train day is `today` and whose test day is `tomorrow`.

    It is left as it is where it holds the same files of both days, even if the other tables have changed since.

    Raises:
      InputError: `logs` is not sealed.
    """
    manifest = read_manifest(logs, "logs", "python -m crops_jax.check_logs DIR")
    renamed, others = {today: "train", tomorrow: "test"}, set(open_logs(logs).days())
    facts = {}
    for entry in manifest["files"]:
        day, _, rest = entry["path"].partition("/")
        if day in renamed:
            facts[entry["path"]] = FileFacts(**entry | {"path": f"{renamed[day]}/{rest}"})
        elif day not in others:
            facts[entry["path"]] = FileFacts(**entry)
    config = {**(manifest["config"] or {}), "window": {name: day for day, name in renamed.items()}}
    if _holds(target, config, _of_days(vars(fact) for fact in facts.values())):
        return
    counts = {name: manifest["counts"][day] for day, name in renamed.items() if day in manifest["counts"]}
    with write_folder(target, kind="logs", config=config) as out:
        for path, fact in facts.items():
            put = link_file if path.partition("/")[0] in renamed else shutil.copyfile
            put(logs / path, out / fact.path)
        out.facts += facts.values()
        out.counts.update(counts)


def _holds(target: Path, config: dict[str, Any], days: list[dict[str, Any]]) -> bool:
    try:
        manifest = verify(target, deep=False)
    except InputError:
        return False
    return manifest["config"] == config and _of_days(manifest["files"]) == days


def _of_days(entries: Any) -> list[dict[str, Any]]:
    """The files of both days."""
    found = [dict(entry) for entry in entries if entry["path"].startswith(("train/", "test/"))]
    return sorted(found, key=lambda entry: entry["path"])
