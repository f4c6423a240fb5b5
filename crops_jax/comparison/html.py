"""The pages of this room, and the line that says what computed their figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from crops_jax import __version__
from crops_jax.report import html


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
