"""Memory of processes, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def bytes_of(what: str, process: int | str = "self") -> int:
    """VmRSS (what a process holds now) or VmHWM (its most so far); OSError where the process is gone."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    told = [line for line in lines if line.startswith(f"{what}:")]
    if not told:
        raise OSError(f"process {process} ended: it has no {what}")
    return 1024 * int(told[0].split()[1])
