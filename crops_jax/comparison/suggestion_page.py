"""Everything that suggests, side by side: JSON, Markdown and one page. No number in them is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from crops_jax.artifacts import Folder
from crops_jax.comparison.html import made_by, render
from crops_jax.comparison.statistics import Estimate
from crops_jax.comparison.suggestions import BySeed, Figure, differences, figures
from crops_jax.report.tables import MISSING, Table
from crops_jax.suggestions.suggester import SHOWN
from crops_jax.suggestions.testset import SuggestionTest

HIT, RANK = f"HR@{SHOWN}", f"MRR@{SHOWN}"
_HEADLINE = {
    f"{HIT}, taken": ("click", "all", HIT),
    f"{RANK}, taken": ("click", "all", RANK),
    f"{HIT}, ordered": ("order", "all", HIT),
    f"{RANK}, ordered": ("order", "all", RANK),
    f"{HIT}, seen prefixes": ("click", "seen", HIT),
    f"{HIT}, unseen prefixes": ("click", "unseen", HIT),
    f"{RANK}, unseen prefixes": ("click", "unseen", RANK),
}
_BUILT_IN = (
    "What is right is what users took among what production suggested. A query that production did not show could not "
    "be taken, so whatever resembles production has the advantage; in a simulated world production is itself a list of "
    "popular completions."
)
Kind = Literal["baseline", "arm"]


@dataclass(frozen=True)
class Answers:
    """What one method answered to the events of a test set."""

    title: str
    kind: Kind
    suggestions: BySeed
    ms: float  # a request, asked alone: the median
    about: str = ""
    main: bool = False  # what the other arms are ablations of


def write_suggestion_page(
    answers: Sequence[Answers], test: SuggestionTest, command: str, machine: Mapping[str, Any], out: Folder,
    resamples: int = 2_000,
) -> dict[str, Any]:  # fmt: skip
    """Writes results.json, results.md and suggestions.html, and returns the results."""
    results = compared(answers, test, resamples) | {"command": command, **machine}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(markdown(results), encoding="utf-8")
    page = render("suggestions.html", made=made_by(results), results=results, findings=findings(results),
                  built_in=_BUILT_IN, sections=_sections(results), legend=legend(results))  # fmt: skip
    (out / "suggestions.html").write_text(page, encoding="utf-8")
    return results


def compared(answers: Sequence[Answers], test: SuggestionTest, resamples: int) -> dict[str, Any]:
    """The figures of every method, and how each differs from the best baseline (of HR@16) and from the main arm."""
    rows = [
        {"title": a.title, "kind": a.kind, "seeds": len(a.suggestions), "ms": a.ms, "about": a.about,
         "figures": _by_name(figures(test, a.suggestions, resamples)), "against": {}}
        for a in answers
    ]  # fmt: skip
    best = _best_baseline(rows)
    main = next((n for n, a in enumerate(answers) if a.main), None)
    for n, row in enumerate(rows):
        for other in {best, main} - {n, None}:
            found = differences(test, answers[n].suggestions, answers[other].suggestions, resamples)
            row["against"][rows[other]["title"]] = _by_name(found)
    return {
        "events": len(test.events), "ordered": int(test.ordered.sum()), "unseen": int((~test.seen).sum()),
        "prefixes": len(set(test.prefixes)), "resamples": resamples, "rows": rows,
        "best_baseline": None if best is None else rows[best]["title"],
        "main_arm": None if main is None else rows[main]["title"],
    }  # fmt: skip


def _by_name(found: Sequence[Figure]) -> dict[str, Any]:
    return {"|".join((f.truth, f.split, f.metric)): _told(f.estimate) for f in found}


def _told(one: Estimate | None) -> dict[str, Any] | None:
    if one is None:
        return None
    bounds = {name: None if np.isnan(value) else value for name, value in (("low", one.low), ("high", one.high))}
    return asdict(one) | bounds | {"differs": bool(one.differs)}


def _best_baseline(rows: Sequence[Mapping[str, Any]]) -> int | None:
    hit = "|".join(_HEADLINE[f"{HIT}, taken"])
    known = [(row["figures"][hit]["value"], -n) for n, row in enumerate(rows) if row["kind"] == "baseline"]
    return -max(known)[1] if known else None


def markdown(results: Mapping[str, Any]) -> str:
    """The tables for a terminal or a repository."""
    parts = ["# Query suggestion", *findings(results), _BUILT_IN, legend(results)]
    for section in _sections(results):
        parts += [f"## {section['title']}", section["table"].markdown()]
    return "\n\n".join([*parts, f"`{results['command']}`", made_by(results)]) + "\n"


def findings(results: Mapping[str, Any]) -> list[str]:
    """What the figures say, whichever way it goes: each arm beside the best baseline, then beside the main arm."""
    found = []
    for name in (results["best_baseline"], results["main_arm"]):
        for row in results["rows"] if name is not None else ():
            if row["kind"] == "arm" and name in row["against"]:
                gains = [f"{column} {_signed(row['against'][name]['|'.join(_HEADLINE[column])])}"
                         for column in list(_HEADLINE)[:2]]  # fmt: skip
                found.append(f"{row['title']} against {name}: {', '.join(gains)}.")
    return found


def _signed(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return MISSING
    bounds = "" if one["low"] is None else f" [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
    word = ("better" if one["value"] > 0 else "worse") if one["differs"] else "no difference beyond chance"
    return f"{100 * one['value']:+.1f}{bounds} ({word})"


def legend(results: Mapping[str, Any]) -> str:
    """What the columns are."""
    seeds = sorted({row["seeds"] for row in results["rows"] if row["kind"] == "arm"}) or [1]
    return (
        f"Percent. {results['events']:,} requests of {results['prefixes']:,} prefixes in which a suggestion was taken "
        f"({results['ordered']:,} of these led to an order, {results['unseen']:,} have a prefix that nobody typed on "
        f"the train day). Arms: {_seeds(seeds)}. In brackets: 95 % intervals over "
        f"prefixes ({results['resamples']} bootstrap resamples). ▲ ▼: better or worse than "
        f"{results['best_baseline'] or 'nothing'}, the best baseline, beyond chance. ms: median time of one request "
        "asked alone."
    )


def _seeds(seeds: Sequence[int]) -> str:
    return "one seed" if seeds == [1] else f"the mean of {' or '.join(map(str, seeds))} seeds"


def _sections(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield _section(results, "Suggestions that were taken on the test day", _HEADLINE, ms=True)
    for metric in (HIT, RANK):
        splits = [name.split("|")[1] for name in results["rows"][0]["figures"]]
        lengths = [s for s in dict.fromkeys(splits) if s.startswith("length")] if results["rows"] else []
        columns = {split.removeprefix("length "): ("click", split, metric) for split in lengths}
        yield _section(results, f"{metric} by the letters of the prefix", columns)


def _section(
    results: Mapping[str, Any], title: str, columns: Mapping[str, tuple[str, str, str]], ms: bool = False
) -> dict[str, Any]:
    rows, marks = [], []
    for row in results["rows"]:
        against = row["against"].get(results["best_baseline"], {})
        cells, of_row = [], []
        for name in ("|".join(column) for column in columns.values()):
            cells.append(_cell(row["figures"][name]))
            apart = against.get(name)
            of_row.append(("better" if apart["value"] > 0 else "worse") if apart and apart["differs"] else "")
        rows.append([row["title"], *cells, *([f"{row['ms']:.1f}"] if ms else [])])
        marks.append([*of_row, *([""] if ms else [])])
    head = ["", *columns, *(["ms"] if ms else [])]
    return {"title": title, "table": Table(title, head, rows), "marks": marks}


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return MISSING
    bounds = "" if one["low"] is None else f" [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
    return f"{100 * one['value']:.1f}{bounds}"
