"""The coverage of an arm's sources as one page; no number in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crops_jax.labels import SOURCES
from crops_jax.report.html import render
from crops_jax.report.tables import Table


def coverage_html(coverage: Mapping[str, Any]) -> str:
    """The page of what `records.coverage` and `write_records` report (coverage.json)."""
    return render("coverage.html", title=coverage["arm"], coverage=coverage, tables=tables(coverage))


def tables(coverage: Mapping[str, Any]) -> list[Table]:
    """Sources, labels, positives a query, conflicts, what was left out."""
    return [
        _sources(coverage),
        _counts("Pairs of a query and a document, by label", "label", coverage["labels"], coverage["pairs"]),
        _by_query(coverage),
        _counts("Pairs on whose label sources do not agree", "label taken", coverage["conflicts"], coverage["pairs"]),
        _counts("Left out", "reason", _flat(coverage["left_out"]), None),
    ]


def _sources(coverage: Mapping[str, Any]) -> Table:
    columns = ["source", "queries with it", "of all, %", "pairs", "positives never exposed", "what"]
    meaning = {source.letter: source.meaning for source in SOURCES}
    rows = [
        [letter, f"{found['queries']:,}", _share(found["queries"], coverage["queries"]), f"{found['pairs']:,}",
         f"{found['positives_never_exposed']:,}", meaning[letter]]
        for letter, found in coverage["sources"].items()
    ]  # fmt: skip
    return Table("Sources", columns, rows)


def _by_query(coverage: Mapping[str, Any]) -> Table:
    seen, hidden = coverage["queries_by_positives"], coverage["queries_by_positives_never_exposed"]
    rows = [[number, f"{queries:,}", _share(queries, coverage["queries"]), f"{hidden[number]:,}",
             _share(hidden[number], coverage["queries"])] for number, queries in seen.items()]  # fmt: skip
    columns = ["documents of a query", "queries with so many positives", "%", "with so many never exposed", "%"]
    return Table("Positives a query", columns, rows)


def _counts(title: str, name: str, counts: Mapping[str, int], total: int | None) -> Table:
    columns = [name, "number"] + (["%"] if total is not None else [])
    rows = [[key, f"{n:,}"] + ([_share(n, total)] if total is not None else []) for key, n in counts.items()]
    return Table(title, columns, rows)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    """Counts below a tree of reasons, by the path to each; what is no number is left to the JSON."""
    found: dict[str, int] = {}
    for name, value in nested.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}: ")
        elif isinstance(value, int):
            found[path] = value
    return found


def _share(part: int, whole: int | None) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
