"""What a simulated day did for its users: offline stand-ins for online metrics, from the day's log and the truth.

Each is a share that is kept by query, as a numerator and a denominator, so that queries can be resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import scipy.sparse as sp

from crops_jax.logs.folder import open_logs
from crops_jax.logs.tables import read_table
from crops_jax.simulate.world import World, at_least

# KuaiRand's `long_view`: 18 s, or the whole of a shorter video. A search log has no durations, so that a video
# below 18 s is never a long play here.
LONG_PLAY_MS = 18_000


@dataclass(frozen=True)
class Measure:
    """One share, and what a reader has to know of it."""

    name: str
    title: str
    about: str
    more_is_better: bool = True


MEASURES = (
    Measure(
        "served", "Intents served",
        "Of the intents that the day's queries may stand for: those for which at least one relevant item was shown "
        "for the query, to whomever, on that day. A narrow search serves the usual intent of a query alone.",
    ),
    Measure(
        "reached", "Relevant pairs ever shown",
        "Of all relevant (query, item) pairs of the world: those that were shown on that day or a day before.",
    ),
    Measure("clicks", "Click rate", "Clicks of exposures; it stands in for the paper's CTR."),
    Measure(
        "long_plays", "Long-play rate",
        f"Exposures that were watched for at least {LONG_PLAY_MS // 1000} s; it stands in for the paper's LPR.",
    ),
    Measure(
        "reformulations", "Reformulation rate",
        "Searches after which the same need was put in other words; it stands in for the paper's RQR. Less is better.",
        more_is_better=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A share by query: it is sum(of) / sum(out_of)."""

    of: np.ndarray  # float64[Q]
    out_of: np.ndarray  # float64[Q]

    @property
    def value(self) -> float:
        """The share over all queries; NaN where nothing was counted."""
        return float(self.of.sum() / self.out_of.sum()) if self.out_of.sum() else float("nan")


@dataclass(frozen=True)
class LoggedDay:
    """The log of one day in rows of the world: E searches in the order of their sessions, X exposures."""

    query: np.ndarray  # int64[E]
    session: np.ndarray  # int64[E]
    switched: np.ndarray  # bool[E]: the need differs from the session's previous query
    event: np.ndarray  # int64[X], the search that showed it
    item: np.ndarray  # int64[X]
    clicked: np.ndarray  # bool[X]
    watch_ms: np.ndarray  # int64[X]

    def shown(self, world: World) -> sp.csr_matrix:
        """[Q, C]: how often the item was shown for the query."""
        return self._counts(world, np.ones(len(self.item), bool))

    def clicks(self, world: World) -> sp.csr_matrix:
        """[Q, C]: how often the item was clicked for the query."""
        return self._counts(world, self.clicked)

    def _counts(self, world: World, chosen: np.ndarray) -> sp.csr_matrix:
        cells = self.query[self.event[chosen]], self.item[chosen]
        counted = sp.csr_matrix((np.ones(int(chosen.sum())), cells), shape=world.relevance.shape)
        counted.sort_indices()
        return counted


def read_logged_day(world: World, logs: Path) -> LoggedDay:
    """The train day of a folder of simulated logs over this world."""
    folder = open_logs(logs)
    truth = read_table(
        logs / "truth" / "events_train.parquet", columns=["request_id", "session_id", "step", "switched"]
    )
    searches = folder.read("searches", "train", ["request_id", "query"])
    order = np.lexsort((truth["step"].to_numpy(), truth["session_id"].to_numpy()))
    row_of_query = {text: row for row, text in enumerate(world.queries)}
    row_of_request = {name: row for row, name in enumerate(truth["request_id"].take(order).to_pylist())}
    query = np.empty(len(row_of_request), np.int64)
    for request, text in zip(searches["request_id"].to_pylist(), searches["query"].to_pylist(), strict=True):
        query[row_of_request[request]] = row_of_query[text]
    columns = ["request_id", "item_id", "stage", "clicked", "watch_ms"]
    shown = folder.read("candidates", "train", columns)
    shown = shown.filter(pc.equal(shown["stage"], "exposed"))
    ids = world.items["item_id"].to_numpy()
    by_id = np.argsort(ids, kind="stable")
    return LoggedDay(
        query=query,
        session=truth["session_id"].to_numpy()[order],
        switched=truth["switched"].to_numpy()[order],
        event=np.array([row_of_request[r] for r in shown["request_id"].to_pylist()], np.int64),
        item=by_id[np.searchsorted(ids, shown["item_id"].to_numpy(), sorter=by_id)],
        clicked=shown["clicked"].to_numpy(),
        watch_ms=shown["watch_ms"].to_numpy(),
    )


def measures(world: World, day: LoggedDay, shown_before: sp.csr_matrix) -> Mapping[str, Share]:
    """Every one of `MEASURES` of a day.

    Args:
      shown_before: [Q, C], what the days before showed for the queries.
    """
    n = len(world.queries)
    shown = day.shown(world)

    def by_query(query: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(query if chosen is None else query[chosen], minlength=n).astype(float)

    exposures = day.query[day.event]
    follows = np.zeros(len(day.query), bool)
    follows[:-1] = (day.session[1:] == day.session[:-1]) & ~day.switched[1:]
    return {
        "served": _served(world, shown, by_query(day.query) > 0),
        "reached": _reached(world, shown + shown_before),
        "clicks": Share(by_query(exposures, day.clicked), by_query(exposures)),
        "long_plays": Share(by_query(exposures, day.watch_ms >= LONG_PLAY_MS), by_query(exposures)),
        "reformulations": Share(by_query(day.query, follows), by_query(day.query)),
    }


def _served(world: World, shown: sp.csr_matrix, asked: np.ndarray) -> Share:
    stands_for = at_least(world.first.T.tocsr(), np.nextafter(0, 1))  # [Q, I]
    found = (shown @ at_least(world.wanted, world.relevant_grade).T) > 0
    return Share(_row_sums(stands_for.multiply(found)) * asked, _row_sums(stands_for) * asked)


def _reached(world: World, shown: sp.csr_matrix) -> Share:
    relevant = at_least(world.relevance, world.relevant_grade)
    return Share(_row_sums(relevant.multiply(shown > 0)), _row_sums(relevant))


def _row_sums(matrix: sp.spmatrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1), float).ravel()
