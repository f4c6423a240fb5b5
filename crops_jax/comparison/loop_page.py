"""The loop's results as JSON, Markdown and one self-contained HTML page. No number in them is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from crops_jax.artifacts.folders import Folder
from crops_jax.comparison.charts import curves
from crops_jax.comparison.html import made_by, render
from crops_jax.comparison.loop_config import is_control
from crops_jax.comparison.statistics import signed
from crops_jax.report.tables import MISSING, Table

STAND_INS = (
    "Users, platform and language model are simulated, and the click rate, the long-play rate and the reformulation "
    "rate are offline stand-ins for the paper's online metrics (its Table 6): nobody was asked, and no live traffic "
    "was served."
)


def write_page(results: Mapping[str, Any], out: Folder) -> None:
    """Writes results.json, results.md and loop.html."""
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(markdown(results), encoding="utf-8")
    (out / "loop.html").write_text(html(results), encoding="utf-8")


def markdown(results: Mapping[str, Any]) -> str:
    """The tables for a terminal or a repository."""
    parts = [f"# The loop: {results['title']}", *findings(results), STAND_INS, f"*{results['about']}*"]
    for measure in results["measures"]:
        parts += [f"## {measure['title']}", measure["about"], table(results, measure).markdown()]
    return "\n\n".join([*parts, legend(results), f"`{results['command']}`", made_by(results)]) + "\n"


def html(results: Mapping[str, Any]) -> str:
    """One page without any other file."""
    sections = []
    for measure in results["measures"]:
        sections.append({
            "title": measure["title"], "about": measure["about"], "table": table(results, measure),
            "marks": [_marks(row, measure) for row in results["rows"]], "svg": chart(results, measure["name"]),
        })  # fmt: skip
    return render(
        "loop.html", results=results, made=made_by(results), stand_ins=STAND_INS, findings=findings(results),
        legend=legend(results), sections=sections,
    )  # fmt: skip


def chart(results: Mapping[str, Any], measure: str) -> str:
    """The means over the seeds by day; of several seeds each one thin beside them."""
    days = range(results["days"])
    percent = {row["title"]: 100 * np.array(row["by_seed"][measure]) for row in results["rows"]}
    lines = {title: (days, values.mean(0)) for title, values in percent.items()}
    faint = {title: [(days, seed) for seed in values] for title, values in percent.items() if len(values) > 1}
    return curves(lines, "day", "percent", days, faint)


def table(results: Mapping[str, Any], measure: Mapping[str, Any]) -> Table:
    """A row a method: day 0, day 1, the last day, what changed, and the difference to the first method."""
    last = results["days"] - 1
    against = f"day {last}, against {results['baseline']}" + (
        " (a control: its method)" if _controlled(results) else ""
    )
    columns = ["", "day 0", "day 1", f"day {last}", f"day {last} - day 1", against]
    rows = []
    for row in results["rows"]:
        means = 100 * np.array(row["by_seed"][measure["name"]]).mean(0)
        against = MISSING if row["against"] is None else signed(row["against"][measure["name"]], 2)
        cells = [f"{means[day]:.2f}" for day in (0, 1, last)]
        rows.append([row["title"], *cells, signed(row["change"][measure["name"]], 2), against])
    return Table(measure["title"], columns, rows)


def _marks(row: Mapping[str, Any], measure: Mapping[str, Any]) -> list[str]:
    found = [row["change"], row["against"]]
    return ["", "", "", *(_mark(part and part[measure["name"]], measure["more_is_better"]) for part in found)]


def _mark(found: Mapping[str, Any] | None, more_is_better: bool) -> str:
    if not found or not found["differs"]:
        return ""
    return "better" if (found["value"] > 0) == more_is_better else "worse"


def findings(results: Mapping[str, Any]) -> list[str]:
    """What the figures say, whichever way it goes: first whether each row narrows, then how it differs."""
    return [*_within(results), *_between(results)]


def _within(results: Mapping[str, Any]) -> Iterator[str]:
    """Whether each row serves more or fewer intents than on the first day of its own."""
    measure, last = results["measures"][0], results["days"] - 1
    for row in results["rows"]:
        found = row["change"][measure["name"]]
        word = ("it widens" if found["value"] > 0 else "it narrows") if found["differs"] else "no change beyond chance"
        yield f"{row['title']}: {measure['title'].lower()} from day 1 to day {last} {signed(found, 2)}: {word}."


def _between(results: Mapping[str, Any]) -> Iterator[str]:
    last = results["days"] - 1
    for row in results["rows"]:
        if row["against"] is None:
            continue
        gains = [f"{m['title'].lower()} {signed(row['against'][m['name']], 2)}" for m in results["measures"]]
        yield f"{row['title']} against {row['compared_with']} on day {last}: {', '.join(gains)}."


def _controlled(results: Mapping[str, Any]) -> bool:
    return any(is_control(row["name"]) for row in results["rows"])


def legend(results: Mapping[str, Any]) -> str:
    """What the columns are, and what the intervals know."""
    seeds = len(results["seeds"])
    if results["resamples"] is None:
        interval = f"Student's 95 % intervals over {seeds} seeds, paired by seed"
    else:
        of = "one seed" if seeds == 1 else f"the searches of {seeds} seeds together"
        interval = (
            f"95 % intervals over queries ({results['resamples']} bootstrap resamples, {of}): they know nothing of how "
            "another seed's loop would have gone, which takes three seeds"
        )
    world = ", ".join(f"{number:,} {name}" for name, number in results["world"].items())
    first = "" if results["first_steps"] is None else f" ({results['first_steps']} on day 0)"
    control = " A control serves as its method does, but trains on the logs of the first row and has its click memory."
    return (
        f"Percent, and percentage points. A world of {world}; {results['sessions']} sessions a day, "
        f"{results['steps']} steps a day{first}. Day 0 is served by the platform's own dense channel and is the same "
        "for all rows; from day 1 on each method's retriever serves, trained on the days before, and the click memory "
        f"knows the clicks of the days before alone.{control if _controlled(results) else ''} "
        f"In brackets: {interval}."
    )
