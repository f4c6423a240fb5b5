"""The page's charts as SVG text: they take the page's own colour for ink, so they read in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

INK = "#010203"  # stands for the page's colour until the SVG is written
SERIES = ("#3b82c4", "#d9822b", "#3a9d5d", "#b0589f", "#8a8f3c", "#c0504d")  # readable on white and on black
_STYLES = ("-", "--", ":", "-.")  # of lines: where the colours begin anew, the next
WIDTH = 6.4
_LETTERS, _HANDLE = 108, 8  # letters of a legend that fit beside each other; what a line's sign takes of them


def of_world(world: Mapping[str, Any]) -> list[dict[str, str]]:
    """Charts of a world: the methods with their intervals, tau by step, and how near each label's documents come."""
    return [
        {"title": "Recall with 95 % intervals", "svg": _intervals(world)},
        {"title": "The temperature tau while training", "svg": _taus(world)},
        {"title": "Cosine of query and document by label, at the end of training", "svg": _cosines(world)},
    ]


def of_forms(compared: Mapping[str, Any]) -> str:
    """Recall of clicked documents by bytes a vector, a line for each form (`retrieval.compact.compare_forms`)."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for row in reversed(compared["rows"]):  # the narrowest first
        if row["recall"]["CT"] is not None:
            along, up = lines.setdefault(row["form"], ([], []))
            along.append(row["bytes"])
            up.append(100 * row["recall"]["CT"])
    ticks = sorted({row["bytes"] for row in compared["rows"]})
    return curves(lines, "bytes a vector", f"Recall@{compared['k']} CT, percent", ticks, logarithmic=True)


def _intervals(world: Mapping[str, Any]) -> str:
    rows = world["rows"][::-1]
    columns = world["headline"][:3]
    with _figure(0.26 * len(rows) + 1.0) as (figure, axes, text):
        for i, column in enumerate(columns):
            places = [k + 0.22 * (1 - i) for k in range(len(rows))]
            found = [row["metrics"][column]["all"] for row in rows]
            kept = [(p, f) for p, f in zip(places, found, strict=True) if f and f["low"] is not None]
            value = [100 * f["value"] for _, f in kept]
            low = [100 * (f["value"] - f["low"]) for _, f in kept]
            high = [100 * (f["high"] - f["value"]) for _, f in kept]
            axes.errorbar(value, [p for p, _ in kept], xerr=[low, high], fmt="o", ms=3.5, lw=1.2, color=SERIES[i],
                          label=column)  # fmt: skip
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("percent")
        axes.legend(loc="lower left", frameon=False, ncols=3, bbox_to_anchor=(0, 1), borderpad=0)
        text.append(figure)
    return text[0]


def _taus(world: Mapping[str, Any]) -> str:
    shown = ("crops", "crops_low", "binary", "fs_lr", "anchors_4", "softmax_ce")
    rows = [row for row in world["rows"] if row["name"] in shown]
    taus = {row["title"]: tuple(zip(*row["made"]["tau"], strict=True)) for row in rows}
    return curves(taus, "step", "tau")


def _cosines(world: Mapping[str, Any]) -> str:
    shown = ("crops", "crops_low", "crops_low_3", "binary", "anchors_4", "fs_lr")
    rows = [row for row in world["rows"] if row["name"] in shown]
    kept = {row["title"]: {int(k): v for k, v in row["made"]["cosine_by_label"].items() if v} for row in rows}
    lines = {title: ([*found], [*found.values()]) for title, found in kept.items()}
    return curves(lines, "label", "cosine", range(1, 6))


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, ticks: Sequence[int] | None = None,
    faint: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]] | None = None, logarithmic: bool = False,
) -> str:  # fmt: skip
    """One line a row, by its title, as (x values, y values); with `ticks` every value is a point.

    Args:
      faint: further lines of a row, such as those of its seeds, drawn thin in its colour.
      logarithmic: whether x is.
    """
    beside = _beside(lines)
    with _figure(2.8 + 0.14 * max(0, -(-len(lines) // beside) - 2)) as (figure, axes, text):
        for i, (title, (xs, ys)) in enumerate(lines.items()):
            colour, style = SERIES[i % len(SERIES)], _STYLES[i // len(SERIES) % len(_STYLES)]
            axes.plot(xs, ys, style if ticks is None else f"o{style}", ms=4, lw=1.5, color=colour, label=title)
            for along, up in (faint or {}).get(title, ()):
                axes.plot(along, up, lw=0.7, alpha=0.5, color=colour)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if logarithmic:
            axes.set_xscale("log")
        if ticks is not None:
            axes.set_xticks(ticks, map(str, ticks))
            axes.minorticks_off()
        # Above the lines, never on them.
        if lines:
            axes.legend(frameon=False, fontsize=7, loc="lower left", ncols=beside, bbox_to_anchor=(0, 1), borderpad=0)
        text.append(figure)
    return text[0]


def _beside(titles: Iterable[str]) -> int:
    """How many of the titles stand beside each other in a legend that is no wider than the chart."""
    return max(1, min(3, _LETTERS // (max(map(len, titles), default=0) + _HANDLE)))


@contextmanager
def _figure(height: float) -> Iterator[tuple[Any, Any, list[Any]]]:
    """A figure and its axes; what is put into the list comes back as SVG text."""
    import matplotlib

    style = {
        "svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 8, "text.color": INK, "axes.labelcolor": INK,
        "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.15, "grid.linewidth": 0.6,
        "font.family": "sans-serif", "figure.facecolor": "none", "axes.facecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure  # no pyplot: nothing is shown, and no state stays

        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        text: list[Any] = []
        yield figure, figure.subplots(), text
        text[0] = _svg(figure)


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"font(?:-family)?: ?[^;\"]*sans-serif[^;\"]*;?", lambda m: _size(m[0]), svg)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" '
    return re.sub(r"<svg [^>]*>", opening + 'xmlns:xlink="http://www.w3.org/1999/xlink">', svg, count=1)


def _size(font: str) -> str:
    found = re.search(r"[\d.]+px", font)
    return f"font-size: {found[0]};" if found else ""
