"""Training metrics: JSON lines on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TextIO


class MetricsLog:
    """Appends one JSON object a line to `path`; a resumed run drops the lines after its first step."""

    def __init__(self, path: Path, resume_at: int = 0):
        self._path = Path(path)
        kept = [r for r in read_metrics(self._path) if r["step"] <= resume_at] if self._path.exists() else []
        self._stream: TextIO = self._path.open("w")
        for record in kept:
            self._write(record)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line; arrays become floats, or lists of floats."""
        self._write({"step": step, **{k: _plain(v) for k, v in values.items()}})

    def _write(self, record: dict[str, Any]) -> None:
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; a last line cut by a kill is left out."""
    records = []
    for line in Path(path).read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        # JSON has no NaN: an absent label's mean is null.
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value
