"""The benchmark's results as JSON, Markdown and one self-contained HTML page. No number in them is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crops_jax.artifacts.folders import Folder
from crops_jax.comparison import charts
from crops_jax.comparison.html import made_by, render
from crops_jax.comparison.methods import METHODS, PRINTED, TABLES, is_baseline
from crops_jax.comparison.statistics import signed, what_is_beyond_chance
from crops_jax.config import BM25_NAME
from crops_jax.report.tables import MISSING, Table


@dataclass(frozen=True)
class Section:
    """One table of the page with what a reader has to know beside it."""

    title: str
    table: Table
    marks: list[list[str]]
    """For each cell "best" (of its column), "better" or "worse" (than the best baseline, surely), or nothing."""
    readings: list[str]


def write_page(results: Mapping[str, Any], out: Folder) -> None:
    """Writes results.json, results.md and bench.html."""
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(markdown(results), encoding="utf-8")
    (out / "bench.html").write_text(html(results), encoding="utf-8")


def markdown(results: Mapping[str, Any]) -> str:
    """The tables for a terminal or a repository."""
    parts = ["# The open benchmark", f"`{results['command']}`", made_by(results)]
    for world in results["worlds"]:
        parts += [f"## {world['title']}", *findings(world), f"*{world['about']}*"]
        for section in sections(world):
            parts += [f"### {section.title}", section.table.markdown(), *section.readings]
        parts.append(_legend(world))
    return "\n\n".join(parts) + "\n"


def html(results: Mapping[str, Any]) -> str:
    """One page without any other file: style, tables and charts are within it."""
    worlds = [
        {
            "title": world["title"],
            "about": world["about"],
            "findings": findings(world),
            "sections": sections(world),
            "legend": _legend(world),
            "charts": charts.of_world(world),
            "cases": world["cases"],
            "cases_at": min(int(c.removeprefix("CT@")) for c in world["columns"] if c.startswith("CT@")),
        }
        for world in results["worlds"]
    ]
    return render("bench.html", made=made_by(results), command=results["command"], worlds=worlds)


def findings(world: Mapping[str, Any]) -> list[str]:
    """What the figures say, in sentences; what speaks against CroPS comes first."""
    rows = {row["name"]: row for row in world["rows"]}
    if PRINTED not in rows:
        return []
    return [*_against_printed(rows, world), *_against_baseline(rows, world)]


def _against_printed(rows: Mapping[str, Any], world: Mapping[str, Any]) -> Iterator[str]:
    for column in world["headline"]:
        apart = [
            (found["value"], row)
            for row in rows.values()
            if (found := row["against"].get(METHODS[PRINTED].title, {}).get(column)) and found["differs"]
            and found["value"] > 0 and not _is_sparse(row["name"])
        ]  # fmt: skip
        baselines = [(gain, row["title"]) for gain, row in apart if is_baseline(row["name"])]
        ours = [(gain, row["title"]) for gain, row in apart if not is_baseline(row["name"])]
        named = {"baselines": baselines, "parts and readings of CroPS": ours}
        listed = [f"{kind}: {_largest(gains)}" for kind, gains in named.items() if gains]
        if listed:
            yield f"{column}: better than CroPS as printed, beyond chance: {'; '.join(listed)}."
        else:
            yield f"{column}: nothing here is better than CroPS as printed beyond chance."


def _largest(gains: Sequence[tuple[float, str]]) -> str:
    """The five largest gains, and how many more there are."""
    ordered = [f"{title} (+{100 * gain:.1f})" for gain, title in sorted(gains, reverse=True)]
    more = [f"and {len(ordered) - 5} more"] if len(ordered) > 5 else []
    return ", ".join(ordered[:5] + more)


def _against_baseline(rows: Mapping[str, Any], world: Mapping[str, Any]) -> Iterator[str]:
    best = rows.get(world["best_baseline"])
    if best is None:
        return
    for name in (PRINTED, "crops_low", "anchors_4"):
        found = rows.get(name, {}).get("against", {}).get("best baseline")
        if not found:
            continue
        gains = [f"{column} {signed(found[column])}" for column in world["headline"] if found[column]]
        against = f"{best['title']}, the best baseline on the validation day"
        yield f"{rows[name]['title']} against {against}: {'; '.join(gains)}."


def sections(world: Mapping[str, Any]) -> list[Section]:
    """The tables of a world, in the order of the paper."""
    found = [_section(TABLES[table], rows, world["columns"]) for table, rows in _by_table(world["rows"])]
    rows = [row for row in world["rows"] if not _is_sparse(row["name"])]
    columns = [c for c in world["columns"] if c.startswith(("CT", "QR")) and c.endswith(world["headline"][0][2:])]
    found.append(_split_section(rows, columns))
    if "sensitivity" in world:
        table, left_out = Table(**world["sensitivity"]["table"]), world["sensitivity"]["left_out"]
        found.append(Section(table.title, table, [[""] * len(row[1:]) for row in table.rows], left_out))
    found.append(_training_section(world))
    return found


def _by_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The tables with their rows. A row alone compares nothing: its table is left out where the row is in another."""
    of = {table: [row for row in rows if table in _tables(row["name"])] for table in TABLES}
    shown = {row["name"] for those in of.values() if len(those) > 1 for row in those}
    for table, those in of.items():
        if len(those) > 1 or any(row["name"] not in shown for row in those):
            shown |= {row["name"] for row in those}
            yield table, those


def _tables(name: str) -> tuple[str, ...]:
    return ("methods", "source") if name == BM25_NAME else METHODS[name].tables


def _is_sparse(name: str) -> bool:
    return name != BM25_NAME and METHODS[name].sparse


def _section(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Section:
    best = {column: max(_value(row, column) for row in rows) for column in columns}
    cells, marks = [], []
    for row in rows:
        cells.append([row["title"], *(_cell(row["metrics"][column]["all"]) for column in columns)])
        marks.append([_mark(row, column, best[column]) for column in columns])
    readings = [f"{row['title']}: {METHODS[row['name']].reading}." for row in rows
                if row["name"] != BM25_NAME and METHODS[row["name"]].reading]  # fmt: skip
    return Section(title, Table(title, ["", *columns], cells), marks, readings)


def _value(row: Mapping[str, Any], column: str) -> float:
    found = row["metrics"][column]["all"]
    return -1.0 if found is None else found["value"]


def _mark(row: Mapping[str, Any], column: str, best: float) -> str:
    found = row["against"].get("best baseline", {}).get(column)
    words = ["best"] if best >= 0 and _value(row, column) == best else []
    if found and found["differs"]:
        words.append("better" if found["value"] > 0 else "worse")
    return " ".join(words)


def _split_section(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Section:
    names = [f"{column} {split}" for column in columns for split in ("seen", "unseen")]
    cells = [
        [row["title"], *(_cell(row["metrics"][column][split]) for column in columns for split in ("seen", "unseen"))]
        for row in rows
    ]
    title = "Queries that the train day asked, and others"
    return Section(title, Table(title, ["", *names], cells), [[""] * len(names) for _ in rows], [])


def _training_section(world: Mapping[str, Any]) -> Section:
    title = "How each was trained"
    rates = sorted(world["learning_rates"])
    score_at = "validation" if len(rates) == 1 else f"validation at {', '.join(f'{rate:g}' for rate in rates)}"
    columns = ["", "steps", "seconds", "documents a step", "learning rate x", "tau at the end", score_at]
    cells = []
    for row in world["rows"]:
        made = row["made"]
        score = f"{100 * made['validation']:.2f}"
        if row["name"] == BM25_NAME:
            cells.append([f"BM25, k1 {made['k1']:g}, b {made['b']:g}", *[MISSING] * 5, score])
            continue
        tau = f"{made['tau'][-1][1]:.3f}" if made["tau"] else MISSING
        documents = str(made["documents_a_step"] or MISSING)  # versions before 0.9.8 wrote 0 for none
        cells.append([row["title"], str(made["steps"]), f"{made['train_seconds']:.0f}", documents,
                      _rate(made["rate"], rates), tau, _validation(made)])  # fmt: skip
    readings = ["Seconds are those of the first seed's steps, with all runs that it starts from; compiling, mining "
                "between rounds and saving are not among them. Validation is the mean of Recall on CT and QR of the "
                "validation day, by which learning rates, k1 and b were chosen."]  # fmt: skip
    versions = sorted({version for row in world["rows"] for version in row["made"].get("trained_by", [])})
    if versions:
        readings.append(f"Trained by crops_jax {', '.join(versions)}.")
    if len(rates) > 1:
        grid = ", ".join(f"{rate:g}" for rate in rates)
        readings.append(f"Learning rates were chosen among {grid} times the config's. Beyond a rate at the edge of "
                        "this grid there may be a better one.")  # fmt: skip
        readings += [f"{row['title']}: training diverges at {' and '.join(left)} times the config's, left out."
                     for row in world["rows"] if (left := _diverged(row))]  # fmt: skip
    return Section(title, Table(title, columns, cells), [[""] * 6 for _ in cells], readings)


def _diverged(row: Mapping[str, Any]) -> list[str]:
    """The factors of the learning rate at which the method has no score on the validation day (`bench.score_at`)."""
    scores = row["made"].get("validation_by_rate", {})  # BM25 has no learning rate
    return [f"{float(rate):g}" for rate, score in scores.items() if score is None]


def _validation(made: Mapping[str, Any]) -> str:
    """The score on the validation day at each learning rate, from the lowest."""
    by_rate = made.get("validation_by_rate", {made["rate"]: made["validation"]})
    scores = [by_rate[rate] for rate in sorted(by_rate, key=float)]
    return ", ".join(MISSING if score is None else f"{100 * score:.2f}" for score in scores)


def _rate(chosen: float, grid: Sequence[float]) -> str:
    """The factor that was chosen, and whether it is the smallest or the largest of several."""
    return f"{chosen:g}" + (" (edge)" if len(grid) > 1 and chosen in (min(grid), max(grid)) else "")


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return MISSING
    if found["low"] is None:
        return f"{100 * found['value']:.1f}"
    half = 50 * (found["high"] - found["low"])
    return f"{100 * found['value']:.1f} ±{half:.1f}"


def _legend(world: Mapping[str, Any]) -> str:
    ideal = f" {', '.join(world['without'])}: 100 for every row, and left out." if world.get("without") else ""
    return (
        f"Percent; ± is half of the 95 % interval over queries ({world['resamples']} bootstrap resamples of queries "
        f"with their events: {_queries(world, 'all')}; of unseen queries {_queries(world, 'unseen')}). "
        f"{what_is_beyond_chance(len(world['seeds']))} Comparisons are paired, and not corrected for their "
        f"number.{ideal}"
    )


def _queries(world: Mapping[str, Any], split: str) -> str:
    """How many queries stand behind the figures, by what is counted: "1909 of CT, 1022 of QR"."""
    counted = {column.split("@")[0]: found[split] for column, found in world["rows"][0]["metrics"].items()}
    return ", ".join(f"{found['queries'] if found else 0} of {name}" for name, found in counted.items())
