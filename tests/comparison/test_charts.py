"""The charts of the pages."""

import re

import pytest

from crops_jax.comparison.charts import curves
from crops_jax.comparison.methods import METHODS

TITLES = sorted({f"{method.title}, control" for method in METHODS.values()}, key=len)
LEGEND = re.compile(r'<text style="font-size: 7px;[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<')


def lines(titles):
    return {title: ([0, 1, 2], [i, i + 1, i]) for i, title in enumerate(titles)}


@pytest.mark.parametrize("titles", [*(TITLES[i : i + 7] for i in range(0, len(TITLES), 7)), TITLES], ids=len)
def test_a_legend_ends_within_its_chart_however_long_the_titles_are(titles):
    svg = curves(lines(titles), "day", "percent", range(3))
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    told = [(float(x), title) for x, _, title in LEGEND.findall(svg)]
    assert {title.replace("&#39;", "'") for _, title in told} == {*titles}
    assert [title for x, title in told if x + 3.9 * len(title) > width] == [], "some 3.9 px a letter of 7 px"
    assert len({y for _, y, _ in LEGEND.findall(svg)}) >= len(titles) / 3
    right = max(float(x) for x in re.findall(r'id="xtick_3".*?<use [^>]*x="([\d.]+)"', svg, re.DOTALL)[:1])
    assert right > 0.85 * width, "and leaves the width to the lines"


def test_no_two_lines_look_alike():
    svg = curves(lines(TITLES[:20]), "day", "percent")
    drawn = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="fill: none; ([^"]*stroke: #[^"]*)"/>', svg)
    assert len(drawn) == len(set(drawn)) == 20
