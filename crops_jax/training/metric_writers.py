"""Where the metrics of a run go: JSON lines, TensorBoard event files, Weights & Biases.

Each place takes one line of scalars a time and knows what a resumed run does with the lines after its first step.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from crops_jax.errors import InputError

Scalars = Mapping[str, int | float]


class MetricsPlace(Protocol):
    """Somewhere that metrics go to."""

    def write(self, step: int, values: Scalars) -> None:
        """Takes the metrics of one step."""

    def close(self, failed: bool) -> None:
        """The run is over; says whether an error or a signal ended it."""


class JsonLines:
    """One JSON object a line in `path`; a resumed run drops the lines after `resume_at`, the step it starts from."""

    def __init__(self, path: Path, resume_at: int = 0):
        kept = [r for r in read_metrics(path) if r["step"] <= resume_at] if path.exists() else []
        part = path.with_name(f"{path.name}.part")
        part.write_text("".join(json.dumps(record) + "\n" for record in kept))
        part.replace(path)  # a kill leaves the old file or the new one
        self._stream = path.open("a")

    def write(self, step: int, values: Scalars) -> None:
        """One line; JSON has no NaN, so what is not finite becomes null."""
        record = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()

    def close(self, failed: bool = False) -> None:
        """Closes the file."""
        self._stream.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a metrics file up to one that is no record of a step: the last one, where a kill cut it.

    Where more than that is left out, it is said.
    """
    lines, records = Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    if (left := len(lines) - len(records)) > 1:
        said = f"line {len(records) + 1} is no record of a step; the {left} lines from there on are left out"
        print(f"warning: {path}: {said}", file=sys.stderr)
    return records


class EventFiles:
    """TensorBoard event files in `folder`, one a start, one event a step.

    A file begins with TensorBoard's mark of a restart, which hides what earlier files hold after `resume_at`.
    """

    def __init__(self, folder: Path, resume_at: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"), f".from-step-{resume_at}")
        restart = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=resume_at + 1, session_log=restart))
        self._events.flush()

    def write(self, step: int, values: Scalars) -> None:
        """One event that holds all values."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._events.flush()

    def close(self, failed: bool = False) -> None:
        """Closes the file."""
        self._events.close()


class WandbRun:
    """A Weights & Biases run; its id is kept in `folder`, so that a resumed run continues it.

    The x axis is our own step, not theirs, which refuses to go back: steps that are repeated after a resume are logged
    again, with the values they had.
    """

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]):
        id_file = folder / "wandb_run_id"
        known = id_file.read_text() if id_file.exists() else None
        self._run = import_wandb().init(project=project, name=name, config=dict(config), id=known, resume="allow")
        id_file.write_text(self._run.id)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Scalars) -> None:
        """One row of the run's history."""
        self._run.log({"step": step, **values})

    def close(self, failed: bool = False) -> None:
        """Marks the run as finished, or as failed."""
        self._run.finish(exit_code=int(failed))


def import_wandb() -> ModuleType:
    """The optional package.

    Raises:
      InputError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        mend = "`pip install wandb`, or leave monitor.wandb_project unset"
        raise InputError("monitor.wandb_project", f"Weights & Biases cannot be imported ({error}): {mend}") from None
    return wandb
