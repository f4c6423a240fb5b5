"""From the measures of every day to figures: curves, what changed, and how the methods differ on the last day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crops_jax.comparison.loop_config import PLATFORM, Loop, is_control, method_of
from crops_jax.comparison.methods import METHODS
from crops_jax.comparison.statistics import SEEDS_FOR_INTERVAL, Interval, over_seeds, share_difference, told
from crops_jax.simulate.measures import MEASURES, Share
from crops_jax.simulate.world import World

Days = Sequence[Mapping[str, Share]]  # one a day, by the measure's name


@dataclass(frozen=True)
class Row:
    """A method's days, seed by seed in the order of the loop's seeds."""

    name: str
    by_seed: Sequence[Days]

    @property
    def title(self) -> str:
        """Its name on the page."""
        if self.name == PLATFORM:
            return "the platform's own channel"
        title = METHODS[method_of(self.name)].title
        return f"{title}, control" if is_control(self.name) else title


def loop_results(loop: Loop, world: World, rows: Sequence[Row]) -> dict[str, Any]:
    """The JSON-able figures of a loop."""
    last, by_name = loop.days - 1, {row.name: row for row in rows}
    first = by_name[loop.methods[0]]

    def compared_with(row: Row) -> Row:
        """A control is compared with its method, any other row with the first method."""
        return by_name[method_of(row.name)] if is_control(row.name) else first

    return {
        "title": loop.title,
        "about": loop.about,
        "world": {"items": world.items.num_rows, "intents": len(world.intents), "queries": len(world.queries)},
        "days": loop.days,
        "seeds": list(loop.seeds),
        "sessions": loop.base.simulate.sessions.train_sessions,
        "steps": loop.base.train.steps,
        "first_steps": loop.first_steps,
        "resamples": loop.resamples if len(loop.seeds) < SEEDS_FOR_INTERVAL else None,
        "baseline": first.title,
        "measures": [asdict(measure) for measure in MEASURES],
        "rows": [
            {
                "name": row.name,
                "title": row.title,
                "by_seed": {m.name: [[day[m.name].value for day in days] for days in row.by_seed] for m in MEASURES},
                "change": {m.name: told(_apart(row, last, row, 1, m.name, loop.resamples)) for m in MEASURES},
                "compared_with": compared_with(row).title,
                "against": None if row is first else {
                    m.name: told(_apart(row, last, compared_with(row), last, m.name, loop.resamples))
                    for m in MEASURES
                },
            }
            for row in rows
        ],
    }  # fmt: skip


def _apart(a: Row, day_a: int, b: Row, day_b: int, measure: str, resamples: int) -> Interval:
    """Row `a` on one day minus row `b` on another (or the same); the seeds are paired."""
    pairs = [(x[day_a][measure], y[day_b][measure]) for x, y in zip(a.by_seed, b.by_seed, strict=True)]
    if len(pairs) >= SEEDS_FOR_INTERVAL:
        return over_seeds([x.value - y.value for x, y in pairs])
    return share_difference(*(_together([pair[side] for pair in pairs]) for side in (0, 1)), resamples)


def _together(shares: Sequence[Share]) -> tuple[np.ndarray, np.ndarray]:
    """The seeds' searches as if one day had had them all."""
    return sum(share.of for share in shares), sum(share.out_of for share in shares)
