"""`python -m crops_jax.check_logs DIR`: checks a platform's own log folder against the contract and seals it.

Lists every problem of every table at once. A sound folder gets its manifest.json, which `crops_jax.mine` asks for. The
manifest keeps what cannot be read off the tables: the unit of integer times, and whether ids are hashed (then the map
of them is written to `id_map/`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from crops_jax.artifacts.manifest import MANIFEST, data_files, read_manifest, seal
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.errors import InputError, run_command
from crops_jax.logs.checks import MAX_REJECT_SHARE, LogReport, check_folder, no_p2
from crops_jax.logs.declared import AS_THEY_ARE, TimeUnit
from crops_jax.logs.folder import LogFolder, declare
from crops_jax.logs.id_map import without_collisions, write_id_map
from crops_jax.logs.layout import strange_entries
from crops_jax.logs.sealed import facts_of_logs
from crops_jax.mining.leak_guard import HELD_OUT, check_days


@dataclass(frozen=True)
class Command:
    """Checks a log folder against the contract (data/README.md) and seals it for mining."""

    logs: tyro.conf.Positional[Path]
    """The log folder: items.parquet, train/, and where there are, judgments.parquet, test/ and further days."""
    time_unit: TimeUnit = "ms"
    """Unit of times that are integers or floats; a timestamp column carries its own."""
    max_reject_share: float = MAX_REJECT_SHARE
    """Share of items, or of a day's searches, that may be left out for what they are; above it the folder is
    refused."""
    engine: Annotated[EngineConfig, tyro.conf.arg(name="")] = field(default_factory=EngineConfig)
    """Memory, disk and threads of the check."""


def run(
    logs: Path, time_unit: TimeUnit = "ms", engine: EngineConfig | None = None,
    max_reject_share: float = MAX_REJECT_SHARE,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Checks all days that are there; seals the folder and returns the report of each day.

    Raises:
      InputError: lists every problem of all days; an earlier seal of the folder is gone then.
    """
    engine = engine or EngineConfig()
    if not 0 <= max_reject_share <= 1:  # 50, or NaN, would allow everything
        raise InputError(f"--max-reject-share {max_reject_share:g}", "is no share from 0 to 1")
    if not logs.is_dir():
        raise InputError(str(logs), "there is no such folder")
    try:
        folder, days, reports = _sound(logs, time_unit, engine, max_reject_share)
    except InputError as error:
        if error.place.startswith(str(logs)):  # else the engine's, which says nothing of the logs
            _unseal(logs)
        raise
    try:
        (logs / MANIFEST).unlink(missing_ok=True)
        hashed = write_id_map(folder, days, engine)
        counts = reports | ({"hashed_ids": hashed} if hashed else {})
        facts = facts_of_logs(folder, engine)
        seal(logs, kind="logs", config=folder.declared.to_json(), inputs={}, counts=counts, facts=facts)
    except PermissionError as error:
        raise InputError(
            str(logs), f"cannot be sealed, {error.filename} may not be written: make it writable"
        ) from None
    return reports


def _unseal(logs: Path) -> None:
    """Takes an earlier seal away, for nobody is to go on with logs that are no longer sound."""
    with suppress(InputError, OSError):  # the manifest of something else, or one that may not be removed
        read_manifest(logs, "logs")
        (logs / MANIFEST).unlink()


def _sound(
    logs: Path, time_unit: TimeUnit, engine: EngineConfig, max_reject_share: float
) -> tuple[LogFolder, list[str], dict[str, dict[str, Any]]]:
    """The folder as it is to be read, its days and the report of each.

    Raises:
      InputError: as `run`.
    """
    data_files(logs)  # this and what is misspelt are told before hours of checks
    if problems := strange_entries(LogFolder(logs, AS_THEY_ARE))[0]:
        raise InputError(str(logs), problems)
    with open_engine(engine, []) as opened:
        folder = LogFolder(logs, declare(logs, time_unit, opened.each))
    days = sorted({*folder.days(), *(day for day in ("train", *HELD_OUT) if (logs / day).is_dir())}, key=_in_order)
    if not {*days} - {*HELD_OUT}:
        raise InputError(str(logs), "holds no folder train/ with searches, candidates and feed; see data/README.md")
    reports = {day: asdict(report) for day, report in _checked(folder, days, engine, max_reject_share).items()}
    folder = without_collisions(folder, days, engine)
    check_days(folder, engine)
    return folder, days, reports


def _in_order(day: str) -> tuple[int, str]:
    """Days to mine first, by name, and those that are held out last."""
    return HELD_OUT.index(day) + 1 if day in HELD_OUT else 0, day


def _checked(folder: LogFolder, days: list[str], engine: EngineConfig, max_reject_share: float) -> dict[str, LogReport]:
    """The report of each day, or one error with the problems of all."""
    reports, wrong = {}, {}
    for day in days:
        try:
            reports[day] = check_folder(folder, day, engine, max_reject_share)
        except InputError as error:
            if not error.place.startswith(str(folder.root)):
                raise  # the engine's: no day's logs will do
            wrong[day] = error
    if len(wrong) == 1:
        raise next(iter(wrong.values()))
    if wrong:
        first, *others = wrong.values()
        of_all = [p for p in first.problems if all(p in error.problems for error in others)]
        told = [f"{day}: {p}" for day, error in wrong.items() for p in error.problems if p not in of_all]
        raise InputError(str(folder.root), of_all + told)
    return reports


def main() -> None:
    """Checks the folder of the command line and prints rows and rejects."""
    command = tyro.cli(Command, prog="python -m crops_jax.check_logs")
    for day, report in run(command.logs, command.time_unit, command.engine, command.max_reject_share).items():
        print(f"{day}: " + ", ".join(f"{rows} {table}" for table, rows in report["rows"].items()))
        if why := no_p2(report["rows"]["feed"], report["common_user"]):
            print(f"{day}: {why}")
        for reason, reject in report["rejects"].items():
            print(f"  left out: {reject['count']} {reason}, e.g. {', '.join(reject['examples'])}")
    for entry in strange_entries(LogFolder(command.logs, AS_THEY_ARE))[1]:
        print(f"not read: {entry}")
    print(f"sealed: {command.logs}\nnext: python -m crops_jax.mine --config FILE")


if __name__ == "__main__":
    run_command(main)
