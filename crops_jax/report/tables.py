"""Tables from evaluation results: the paper's three columns, and a longer one with everything beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import InputError

# `testset_metrics.Evaluation.results`, with an optional "scann" entry from `scann_index.compare`.
Results = dict[str, Any]
MISSING = "-"
_FEW = 30  # events


@dataclass(frozen=True)
class Table:
    """A table of strings: the first column names the row, the others are numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """A GitHub table; numbers to the right."""
        marks = [":---"] + ["---:"] * (len(self.columns) - 1)
        lines = [self.columns, marks, *self.rows]
        return "\n".join("| " + " | ".join(map(_in_cell, cells)) + " |" for cells in lines)

    def text(self) -> str:
        """Columns aligned with spaces, for a terminal."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        pad: list[Callable[[str, int], str]] = [str.ljust] + [str.rjust] * (len(self.columns) - 1)
        aligned = [
            "  ".join(p(cell, w) for p, cell, w in zip(pad, line, widths, strict=True)).rstrip() for line in lines
        ]
        return "\n".join([aligned[0], "-" * (sum(widths) + 2 * len(widths) - 2), *aligned[1:]])


def _in_cell(text: str) -> str:
    """A text that neither ends its cell nor its row."""
    return " ".join(text.replace("|", "\\|").splitlines())


def short_table(results: Sequence[Results]) -> Table:
    """One row a retriever: Recall@K on CT and QR at the largest K, NDCG@K on the judged documents; all in percent.

    Raises:
      InputError: results that were made with different cutoffs cannot stand in one table.
    """
    k, at = _common(results)
    columns = ["", f"Recall@{k[-1]} CT", f"Recall@{k[-1]} QR", f"NDCG@{at}"]
    rows = [[r["arm"], _recall(r, "CT", "all", k[-1]), _recall(r, "QR", "all", k[-1]), _ndcg(r, "judged", "all")]
            for r in results]  # fmt: skip
    return Table("Held-out test day, percent", columns, rows)


def long_tables(results: Sequence[Results]) -> list[Table]:
    """Recall at every K for each set, seen and unseen queries apart; NDCG in both protocols; search; counts.

    Raises:
      InputError: results that were made with different cutoffs.
    """
    k, at = _common(results)
    splits = ("all", "seen", "unseen")
    tables = [
        Table(f"Recall on {name}, percent", ["", *(f"@{c} {split}" for split in splits for c in k)],
              [[r["arm"], *(_recall(r, name, split, c) for split in splits for c in k)] for r in results])
        for name in ("CT", "QR", "unexposed", "ranked", "shown")
    ]  # fmt: skip
    columns = ["", *(f"{p} {s}" for p in ("judged", "full") for s in splits), f"judged@{at} of full"]
    rows = [[r["arm"], *(_ndcg(r, p, s) for p in ("judged", "full") for s in splits), _percent(r["judged_at"]["all"])]
            for r in results]  # fmt: skip
    tables.append(Table(f"NDCG@{at}, percent", columns, rows))
    tables.append(_search_table(results))
    tables += [compact_table(r) for r in results if "compact" in r]
    tables.append(_count_table(results, k[-1]))
    return tables


def several(count: int, one: str, many: str = "") -> str:
    """A number of things in words; `many` where more than one is not `one` with an s.

    >>> several(1, "search", "searches"), several(2, "search", "searches"), several(0, "run")
    ('1 search', '2 searches', '0 runs')
    """
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def table_notes(results: Sequence[Results]) -> list[str]:
    """What has to be said beside the short table: of cutoffs that the whole corpus lies within, where recall is no
    merit of a retriever, and of figures that stand on few events.
    """
    told_once: dict[str, None] = {}
    for r in results:
        if idle := [f"Recall@{k}" for k in sorted(r["cutoffs"]) if k >= r["corpus"]]:
            told = f"The corpus has {r['corpus']} documents, which in any order all count for {' and '.join(idle)}"
            told_once[f"{told}: take smaller evaluate.cutoffs."] = None
        for name in ("CT", "QR"):
            counted = r["recall"][name]["all"][str(max(r["cutoffs"]))]["counted"]
            if 0 < counted < _FEW:
                told_once[f"{name} has {several(counted, 'event')}: its recall says little."] = None
    return list(told_once)


def short_text(results: Sequence[Results]) -> str:
    """The short table and what has to be said beside it, for a terminal."""
    return "\n".join([f"{short_table(results).text()}\n", *table_notes(results)])


def _search_table(results: Sequence[Results]) -> Table:
    columns = ["", "documents", "ScaNN recall vs exact", "ScaNN queries/s", "exact queries/s"]
    rows = []
    for r in results:
        scann = r.get("scann")
        cells = [f"{scann['recall_against_exact'] * 100:.2f}", f"{scann['scann_queries_per_s']:.0f}",
                 f"{scann['exact_queries_per_s']:.0f}"] if scann else [MISSING] * 3  # fmt: skip
        rows.append([r["arm"], str(r["corpus"]), *cells])
    return Table("Search", columns, rows)


def compact_table(r: Results) -> Table:
    """What smaller vectors still find (`retrieval.compact.compare_forms`), one row a width and form."""
    compared = r["compact"]
    sets = list(compared["rows"][0]["recall"])
    columns = ["width, form", "bytes", *(f"Recall@{compared['k']} {name}" for name in sets)]
    rows = [
        [f"{row['width']}{'' if row['trained'] else ' (not trained)'}, {row['form']}", str(row["bytes"]),
         *(_percent({"value": row["recall"][name]}) for name in sets)]
        for row in compared["rows"]
    ]  # fmt: skip
    return Table(f"{r['arm']}: smaller vectors, {compared['queries']} queries, percent", columns, rows)


def _count_table(results: Sequence[Results], k: int) -> Table:
    """How many events or queries each number stands on; one row when all retrievers answered the same test."""

    def count(entry: dict[str, Any]) -> str:
        return str(entry["counted"]) + (f" (+{entry['dropped']} without truth)" if entry["dropped"] else "")

    columns = ["", *(f"{name} {s}" for name in ("CT", "QR", "unexposed", "judged") for s in ("seen", "unseen"))]
    rows = []
    for r in results:
        cells = [count(r["recall"][n][s][str(k)]) for n in ("CT", "QR", "unexposed") for s in ("seen", "unseen")]
        rows.append([r["arm"], *cells, *(count(r["ndcg"]["judged"][s]) for s in ("seen", "unseen"))])
    if all(row[1:] == rows[0][1:] for row in rows):
        rows = [["every row above", *rows[0][1:]]]
    return Table("Events (CT, QR) and queries (unexposed, judged) counted", columns, rows)


def report_markdown(results: Sequence[Results], heading: str) -> str:
    """The whole report: the short table, then the long ones."""
    parts = [f"# {heading}", *table_notes(results)]
    for table in [short_table(results), *long_tables(results)]:
        parts.append(f"## {table.title}\n\n{table.markdown()}")
    return "\n\n".join(parts) + "\n"


def write_report(
    target: str | Path, results: Sequence[Results], heading: str, inputs: dict[str, str | Path] | None = None
) -> None:
    """Writes the artefact "report": report.md and results.json (the results as given, in order)."""
    with write_folder(target, kind="report", inputs=inputs) as folder:
        (folder / "report.md").write_text(report_markdown(results, heading), encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(list(results), indent=1, sort_keys=True) + "\n")
        folder.counts.update(arms=[r["arm"] for r in results])


def _common(results: Sequence[Results]) -> tuple[list[int], int]:
    if not results:
        raise InputError("report", "no results to show; evaluate at least one arm first")
    settings = {(tuple(r["cutoffs"]), r["ndcg_at"]) for r in results}
    if len(settings) > 1:
        arms = [f"{r['arm']}: recall at {r['cutoffs']}, NDCG at {r['ndcg_at']}" for r in results]
        raise InputError("report: the arms were evaluated with different cutoffs; evaluate them again", arms)
    cutoffs, at = settings.pop()
    return sorted(cutoffs), at


def _recall(r: Results, name: str, split: str, k: int) -> str:
    return _percent(r["recall"][name][split][str(k)])


def _ndcg(r: Results, protocol: str, split: str) -> str:
    return _percent(r["ndcg"][protocol][split])


def _percent(entry: dict[str, Any]) -> str:
    return MISSING if entry["value"] is None else f"{entry['value'] * 100:.2f}"
