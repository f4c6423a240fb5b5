"""`python -m crops_jax.check_logs DIR`: checks a platform's own log folder against the contract and seals it.

Lists every problem of every table at once. A sound folder gets its manifest.json, which `crops_jax.mine` asks for.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from crops_jax.artifacts import seal
from crops_jax.errors import InputError, run_command
from crops_jax.logs.checks import check_logs
from crops_jax.mining.leak_guard import check_days


def run(logs: Path) -> dict[str, dict]:
    """Checks `train` and, where it is there, `test`; seals the folder and returns the report of each day."""
    if not (logs / "train").is_dir():
        raise InputError(str(logs), "holds no folder train/ with searches, candidates and feed; see data/README.md")
    days = [day for day in ("train", "test") if (logs / day).is_dir()]
    reports = {day: asdict(check_logs(logs, day)) for day in days}
    check_days(logs)
    seal(logs, kind="logs", config=None, inputs={}, counts=reports)
    return reports


def main() -> None:
    """Checks the folder of the command line and prints rows and rejects."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise InputError("usage", "python -m crops_jax.check_logs DIR")
    for day, report in run(Path(sys.argv[1])).items():
        print(f"{day}: " + ", ".join(f"{rows} {table}" for table, rows in report["rows"].items()))
        for reason, reject in report["rejects"].items():
            print(f"  left out: {reject['count']} {reason}, e.g. {', '.join(reject['examples'])}")
    print(f"sealed: {sys.argv[1]}\nnext: python -m crops_jax.mine --config FILE")


if __name__ == "__main__":
    run_command(main)
