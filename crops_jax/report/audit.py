"""The audit of what a language model wrote: a table, and a picture like the paper's Fig. 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax.report.tables import MISSING, Table

PAPER = (81.3, 14.5, 4.2)  # Fig. 6: percent of 1,000 generations, graded by people
_COLOURS = ("#3a9d5d", "#d9822b", "#c0504d")
_BINS = np.linspace(0, 1, 21)


def audit_table(facts: Mapping[str, Any]) -> Table:
    """One row a grade: share with its 95 % interval, the paper's beside it, and theta of these documents."""
    rows = []
    for (grade, found), paper in zip(facts["grades"].items(), PAPER, strict=True):
        theta = [MISSING, MISSING] if found["theta_median"] is None else [
            f"{found['theta_median']:.2f}", f"{100 * found['above_alpha']:.1f}"]  # fmt: skip
        low, high = found["interval"]
        share = [f"{100 * found['share']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", f"{paper}"]
        rows.append([grade, str(found["documents"]), *share, *theta])
    columns = ["grade", "documents", "%", "95 % interval", "paper %", "theta, median", "theta > alpha %"]
    return Table(f"{facts['graded']} generations graded by {facts['judge']}", columns, rows)


def draw_audit(facts: Mapping[str, Any], theta: Mapping[str, Sequence[float]], path: Path) -> None:
    """Writes the picture as SVG: shares of the grades beside the paper's, and theta's distribution by grade.

    Args:
      theta: grade -> theta of its documents.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "audit", "font.size": 8}):
        from matplotlib.figure import Figure  # no pyplot: nothing is shown, and no state stays

        figure = Figure(figsize=(8, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        grades = list(facts["grades"])
        shares = [100 * facts["grades"][grade]["share"] for grade in grades]
        bounds = [[100 * end for end in facts["grades"][grade]["interval"]] for grade in grades]
        errors = [[s - low for s, (low, _) in zip(shares, bounds, strict=True)],
                  [high - s for s, (_, high) in zip(shares, bounds, strict=True)]]  # fmt: skip
        left.bar(grades, shares, color=_COLOURS, yerr=np.maximum(errors, 0), capsize=3)
        left.plot(grades, PAPER, "k_", ms=28, label="the paper's, by people")
        left.set_ylabel("percent of the generations")
        figure.suptitle(f"{facts['graded']} generations graded by {facts['judge']}", fontsize=9)
        left.legend(frameon=False, markerscale=0.4)
        within = [np.clip(theta[grade], 0, 1) for grade in grades]  # a rounded 1 is counted, too
        right.hist(within, bins=_BINS, stacked=True, color=_COLOURS, label=grades)
        right.axvline(facts["alpha"], color="black", lw=1, ls="--", label=f"alpha = {facts['alpha']:g}")
        right.set_xlabel("theta(query, generation)")
        right.set_ylabel("generations")
        right.legend(frameon=False)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
