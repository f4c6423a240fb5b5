"""The pages of this room, and the line that says what computed their figures."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crops_jax import __version__
from crops_jax.artifacts.folders import require_place
from crops_jax.errors import InputError
from crops_jax.report import html


def require_page(out: Path, kind: str, workdirs: Iterable[str]) -> None:
    """Raises before the work what writing the page would raise after it: something else lies at `out`, or one of the
    work folders will, or matplotlib is missing.
    """
    if there := [place for place in workdirs if Path(place).resolve().is_relative_to(out.resolve())]:
        said = "is, or holds, the work folder {}: the page is a folder of its own, which nothing else lies in"
        raise InputError(f"--out {out}", f"{said.format(there[0])}; name another")
    require_place(out, kind)
    importlib.import_module("matplotlib")


def machine() -> dict[str, Any]:
    """What computed the results."""
    import jax  # a page of results that are there needs none

    return {
        "version": __version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def made_by(results: Mapping[str, Any]) -> str:
    """What computed these results."""
    return (
        f"crops_jax {results['version']}, jax {results['jax']}, {results['device']}, {results['cores']} CPU cores, "
        f"{results['date']}"
    )


def render(template: str, **values: Any) -> str:
    """The page of a template in `templates/` (`report.html.render`)."""
    return html.render(template, "crops_jax.comparison", **values)
