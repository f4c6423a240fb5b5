"""Everything that suggests, side by side: JSON, Markdown and one page. No number in them is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crops_jax.artifacts.folders import Folder
from crops_jax.comparison.html import made_by, render
from crops_jax.comparison.statistics import signed, told, what_is_beyond_chance
from crops_jax.comparison.suggestions import BySeed, Figure, differences, figures
from crops_jax.normal_text import normal_form
from crops_jax.report.tables import MISSING, Table
from crops_jax.suggestions.suggester import SHOWN
from crops_jax.suggestions.testset import SuggestionTest

HIT, RANK = f"HR@{SHOWN}", f"MRR@{SHOWN}"


def _both(name: str, truth: str, split: str) -> dict[str, tuple[str, str, str]]:
    return {f"{metric}, {name}": (truth, split, metric) for metric in (HIT, RANK)}


_HEADLINE = (
    _both("taken", "click", "all")
    | _both("ordered", "order", "all")
    | {f"{HIT}, seen prefixes": ("click", "seen", HIT)}
    | _both("unseen prefixes", "click", "unseen")
)
_NEXT = (
    _both("searched next", "next", "all")
    | _both("seen prefixes", "next", "seen")
    | _both("unseen prefixes", "next", "unseen")
    | _both("typed to the end", "typed", "all")
)
_BUILT_IN = (
    "Where what is right is what users took, a query that production did not show could not be taken, so whatever "
    "resembles production has the advantage; in a simulated world production is itself a list of popular completions. "
    "What users searched next may be any query; part of it was taken from suggestions all the same."
)
Kind = Literal["baseline", "arm"]
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Answers:
    """What one method answered to the events of a test set, of both truths."""

    title: str
    kind: Kind
    suggestions: BySeed
    ms: float  # a request, asked alone: the median
    about: str = ""
    main: bool = False  # what the other arms are ablations of


def write_suggestion_page(
    answers: Sequence[Answers], test: SuggestionTest, command: str, machine: Mapping[str, Any], out: Folder,
    left_out: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Writes results.json, results.md and suggestions.html, and returns the results.

    Args:
      left_out: why a method has no row, by its title.
    """
    results = compared(answers, test, _RESAMPLES) | {"left_out": dict(left_out), "command": command, **machine}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(markdown(results), encoding="utf-8")
    page = render("suggestions.html", made=made_by(results), results=results, findings=findings(results),
                  built_in=_BUILT_IN, sections=_sections(results), legend=legend(results))  # fmt: skip
    (out / "suggestions.html").write_text(page, encoding="utf-8")
    return results


def compared(answers: Sequence[Answers], test: SuggestionTest, resamples: int) -> dict[str, Any]:
    """The figures of every method, and how each differs from the best baseline (of HR@16) and from the main arm."""
    parts = [(test.taken, slice(len(test.taken.events))), (test.next, slice(len(test.taken.events), None))]
    told = [[(truth, [of_seed[part] for of_seed in a.suggestions]) for truth, part in parts] for a in answers]
    rows = [
        {"title": a.title, "kind": a.kind, "seeds": len(a.suggestions), "ms": a.ms, "about": a.about,
         "figures": _by_name(f for truth, own in of_both for f in figures(truth, own, resamples)), "against": {}}
        for a, of_both in zip(answers, told, strict=True)
    ]  # fmt: skip
    best = _best_baseline(rows)
    main = next((n for n, a in enumerate(answers) if a.main), None)
    for n, row in enumerate(rows):
        for other in {best, main} - {n, None}:
            both = zip(told[n], told[other], strict=True)
            found = (f for (truth, one), (_, two) in both for f in differences(truth, one, two, resamples))
            row["against"][rows[other]["title"]] = _by_name(found)
    return {
        "events": len(test.taken.events), "ordered": int(test.taken.ordered.sum()),
        "unseen": int((~test.taken.seen).sum()), "prefixes": len(set(test.taken.prefixes)),
        "next": _told_of_next(test), "resamples": resamples, "rows": rows,
        "best_baseline": None if best is None else rows[best]["title"],
        "main_arm": None if main is None else rows[main]["title"],
    }  # fmt: skip


def _told_of_next(whole_test: SuggestionTest) -> dict[str, int]:
    test = whole_test.next
    whole = sum(prefix == normal_form(query) for prefix, query in zip(test.prefixes, test.queries, strict=True))
    return {"events": len(test.events), "prefixes": len(set(test.prefixes)), "unseen": int((~test.seen).sum()),
            "taken": int(test.taken.sum()), "shown": int(test.shown.sum()), "whole": whole,
            "neither": int((~test.taken & ~test.shown).sum()),
            "before_a_search": whole_test.before_a_search, "without_a_search": whole_test.without_a_search,
            "without_user": whole_test.without_user}  # fmt: skip


def _by_name(found: Iterable[Figure]) -> dict[str, Any]:
    return {"|".join((f.truth, f.split, f.metric)): told(f.estimate) for f in found}


def _best_baseline(rows: Sequence[Mapping[str, Any]]) -> int | None:
    hit = "|".join(_HEADLINE[f"{HIT}, taken"])
    known = [(row["figures"][hit]["value"], -n) for n, row in enumerate(rows) if row["kind"] == "baseline"]
    return -max(known)[1] if known else None


def markdown(results: Mapping[str, Any]) -> str:
    """The tables for a terminal or a repository."""
    parts = ["# Query suggestion", *findings(results), _BUILT_IN, legend(results)]
    for section in _sections(results):
        note = [section["note"]] if section["note"] else []
        parts += [f"## {section['title']}", *note, section["table"].markdown()]
    return "\n\n".join([*parts, f"`{results['command']}`", made_by(results)]) + "\n"


def findings(results: Mapping[str, Any]) -> list[str]:
    """What the figures say, whichever way it goes: each arm beside the best baseline, then beside the main arm."""
    found = []
    for name in (results["best_baseline"], results["main_arm"]):
        for row in results["rows"] if name is not None else ():
            if row["kind"] == "arm" and name in row["against"]:
                against, columns = row["against"][name], [*list(_HEADLINE.items())[:2], *list(_NEXT.items())[:2]]
                gains = [f"{column} {_in_words(against['|'.join(which)])}" for column, which in columns]
                found.append(f"{row['title']} against {name}: {'; '.join(gains)}.")
    return found + [f"{title} is left out: {why}." for title, why in results["left_out"].items()]


def _in_words(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return MISSING
    word = ("better" if one["value"] > 0 else "worse") if one["differs"] else "no difference beyond chance"
    return f"{signed(one)} ({word})"


def legend(results: Mapping[str, Any]) -> str:
    """What the columns are."""
    seeds = sorted({row["seeds"] for row in results["rows"] if row["kind"] == "arm"}) or [1]
    return (
        f"Percent. {results['events']:,} suggestions that were taken, of {results['prefixes']:,} prefixes "
        f"({results['ordered']:,} of these led to an order, {results['unseen']:,} have a prefix that nobody typed on "
        f"the train day). Arms: {_seeds(seeds)}. In brackets: 95 % intervals over "
        f"prefixes ({results['resamples']} bootstrap resamples). {what_is_beyond_chance(max(seeds))} ▲ ▼: better or "
        f"worse than {results['best_baseline'] or 'nothing'}, the best baseline, beyond chance. ms: median time of one "
        "request asked alone."
    )


def _seeds(seeds: Sequence[int]) -> str:
    return "one seed" if seeds == [1] else f"the mean of {' or '.join(map(str, seeds))} seeds"


def _sections(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield _section(results, "Suggestions that were taken on the test day", _HEADLINE, ms=True)
    yield _section(results, "What users searched next on the test day", _NEXT) | {"note": _about_next(results["next"])}
    splits = [name.split("|")[1] for row in results["rows"][:1] for name in row["figures"]]
    lengths = [split for split in dict.fromkeys(splits) if split.startswith("length")]
    for metric in (HIT, RANK):
        columns = {split.removeprefix("length "): ("click", split, metric) for split in lengths}
        yield _section(results, f"{metric} by the letters of the prefix", columns)


def _about_next(told: Mapping[str, int]) -> str:
    """What the second truth is made of."""
    if not told["events"]:
        return "No request was followed by a search of its user."
    share = {name: f"{100 * n / told['events']:.1f} %" for name, n in told.items()}
    return (
        f"{told['events']:,} requests of {told['prefixes']:,} prefixes after which their user searched "
        f"({told['unseen']:,} have a prefix that nobody typed on the train day); drawn from "
        f"{told['before_a_search']:,} such requests. Not asked are {told['without_a_search']:,} without a search "
        f"within the window, and {told['without_user']:,} of which nobody knows the user. Of these searches "
        f"{share['taken']} were taken from production's suggestions, in "
        f"this request or a later one of the same typing; {share['shown']} production showed at this prefix; "
        f"{share['neither']} neither. In {share['whole']} the query already stood there in full."
    )


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
    return {"title": title, "note": "", "table": Table(title, head, rows), "marks": marks}


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return MISSING
    bounds = "" if one["low"] is None else f" [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
    return f"{100 * one['value']:.1f}{bounds}"
