"""One day of search sessions: what users type, are shown, click, and type next.

All sessions advance together: wave 1 holds every session's first query, wave 2 the queries typed after those, and so
on. A user who found nothing (or not enough) reformulates, turns to another need, or leaves. Where suggestions are
simulated, a query is typed before it is searched (`prefixes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from crops_jax.simulate.calibration import KINDS, Calibration
from crops_jax.simulate.platform import PlatformConfig, Pools, search
from crops_jax.simulate.prefixes import Completions, Typed, at_once, type_queries
from crops_jax.simulate.users import Taste, Users, UsersConfig, draw_interest
from crops_jax.simulate.world import World, draw_per_row

DAY_MS = 86_400_000
_HOURLY = np.array([4, 2, 1, 1, 1, 2, 4, 6, 7, 8, 8, 9, 10, 9, 8, 8, 9, 10, 12, 14, 15, 14, 11, 7], float)
_CANDIDATES = 16  # next queries considered for an intent, the heaviest first


@dataclass(frozen=True)
class SessionsConfig:
    """How many sessions a day has and how they go on."""

    train_sessions: int = 10000
    """Search sessions on the train day."""
    test_sessions: int = 20000
    """Search sessions on the test day."""
    validation_sessions: int = 0
    """Search sessions on the day between them, which settings are chosen by; 0: there is no such day."""
    max_queries: int = 4
    """Queries in one session at most."""
    satisfied_by_click: float = 0.6
    """Chance that a click on a relevant item ends the session."""
    persistence: float = 0.85
    """Chance that a user who is not satisfied types another query; otherwise the user leaves."""
    switch_share: float = 0.12
    """Share of the next queries that turn to another need: within seconds, yet no reformulation."""
    log_ranked: int = 8
    """Ranked but unexposed candidates that are logged for each event."""
    log_filtered: int = 8
    """Candidates cut between pre-rank and rank that are logged for each event."""


@dataclass(frozen=True)
class Wave:
    """E events in parallel arrays."""

    session: np.ndarray  # int64[E]
    step: np.ndarray  # int64[E], from 1
    user: np.ndarray  # int64[E]
    intent: np.ndarray  # int64[E]
    query: np.ndarray  # int64[E]
    ts: np.ndarray  # int64[E], ms after the day's start
    aimed: np.ndarray  # int64[E]: the query that was being typed; these four as in `prefixes.Typed`
    letters: np.ndarray  # int64[E]
    taken: np.ndarray  # int64[E]
    started: np.ndarray  # int64[E], ms after the day's start
    switched: np.ndarray  # bool[E]: the need differs from the session's previous query
    item: np.ndarray  # int32[E, W]: exposed, then ranked, then filtered columns; -1 is padding
    position: np.ndarray  # int32[E, W]
    clicked: np.ndarray  # bool[E, W]
    liked: np.ndarray  # bool[E, W]
    watch_ms: np.ndarray  # int64[E, W]
    found: np.ndarray  # bool[E]: clicked something relevant


@dataclass(frozen=True)
class Stage:
    """Everything a day of sessions needs besides its random stream."""

    world: World
    users: Users
    taste: Taste
    pools: Pools
    calibration: Calibration
    taste_config: UsersConfig
    platform: PlatformConfig
    config: SessionsConfig
    completions: Completions | None  # None: nobody sees how queries are typed


def day_of_sessions(stage: Stage, n_sessions: int, rng: np.random.Generator) -> list[Wave]:
    """The day's events, one `Wave` for each step of the sessions; no event lies outside the day."""
    user = rng.choice(len(stage.users.activity), size=n_sessions, p=stage.users.activity)
    intent = draw_interest(stage.users, user, rng)
    fresh = rng.random(n_sessions) < stage.taste_config.new_need_share
    intent = np.where(fresh, rng.choice(len(stage.world.intents), size=n_sessions, p=stage.world.popularity), intent)
    hour = rng.choice(24, size=n_sessions, p=_HOURLY / _HOURLY.sum())
    ts = ((hour + rng.random(n_sessions)) * DAY_MS / 24).astype(np.int64)
    query = draw_per_row(stage.world.first, intent, rng)
    session, switched, history = np.arange(n_sessions), np.zeros(n_sessions, bool), query[:, None]
    next_query = NextQuery(stage.world, stage.calibration)
    typing_rng = rng.spawn(1)[0]  # draws of its own: where nobody types, `rng` goes on as if there were no typing
    waves, since = [], np.full(n_sessions, -1)
    for step in range(1, stage.config.max_queries + 1):
        if len(session) == 0:
            break
        typed = _typed(stage, intent, history, ts, since, typing_rng)
        history = np.concatenate([history[:, :-1], typed.query[:, None]], axis=1)
        waves.append(_events(stage, session, step, user, intent, typed, ts, switched, rng))
        going = _goes_on(waves[-1].found, stage.config, rng)
        session, user, intent, ts, history = (a[going] for a in (session, user, intent, ts, history))
        since = ts
        switched = rng.random(len(session)) < stage.config.switch_share
        intent = np.where(switched, draw_interest(stage.users, user, rng), intent)
        query = np.where(switched, draw_per_row(stage.world.first, intent, rng), next_query(intent, history, rng))
        ts = ts + np.round(1000 * stage.calibration.gaps(len(ts), rng)).astype(np.int64)
        alive = (query >= 0) & (ts < DAY_MS) & (query != history[:, -1])
        history = np.concatenate([history, query[:, None]], axis=1)
        session, user, intent, ts, since, switched, history = (
            a[alive] for a in (session, user, intent, ts, since, switched, history)
        )
    return waves


def _goes_on(found: np.ndarray, config: SessionsConfig, rng: np.random.Generator) -> np.ndarray:
    satisfied = found & (rng.random(len(found)) < config.satisfied_by_click)
    return ~satisfied & (rng.random(len(found)) < config.persistence)


def _typed(stage: Stage, intent, history, ts, since, rng) -> Typed:
    if stage.completions is None:
        return at_once(history[:, -1], ts)
    return type_queries(stage.completions, intent, history, ts, since, stage.calibration.examination, rng)


def _events(stage: Stage, session, step, user, intent, typed: Typed, ts, switched, rng) -> Wave:
    """Searches, then examines the shown items from the top and clicks what serves the intent."""
    results = search(stage.pools, typed.query, stage.platform, rng)
    n = min(stage.platform.exposed, results.ranked.shape[1])
    shown = results.ranked[:, :n]
    grade = stage.taste.grade(intent[:, None], shown)
    examined = np.interp(np.arange(n), np.arange(len(stage.calibration.examination)), stage.calibration.examination)
    chance = examined[None, :] * stage.taste.click_chance(grade)
    clicked = (rng.random(shown.shape) < chance) & (shown >= 0)
    liked, watch, _ = stage.taste.reactions(shown, grade, clicked, rng)
    ranked = _sample(results.ranked[:, n:], stage.config.log_ranked, rng)
    filtered = _sample(results.filtered, stage.config.log_filtered, rng)
    place = np.broadcast_to(np.arange(1, n + 1, dtype=np.int32), shown.shape)
    extra = ranked[0].shape[1] + filtered[0].shape[1]
    wide = [np.pad(a, ((0, 0), (0, extra))) for a in (clicked, liked, watch)]
    return Wave(
        session, np.full(len(session), step), user, intent, typed.query, ts,
        typed.aimed, typed.letters, typed.taken, typed.started, switched,
        np.concatenate([shown, ranked[0], filtered[0]], axis=1),
        np.concatenate([place, ranked[1], filtered[1]], axis=1),
        *wide, found=(clicked & stage.taste.relevant(grade)).any(axis=1),
    )  # fmt: skip


def _sample(item: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(items, positions from 1) of up to n real candidates of each row, drawn evenly, in their order."""
    n = min(n, item.shape[1])
    key = np.where(item >= 0, rng.random(item.shape), 2.0)
    chosen = np.sort(np.argpartition(key, max(n - 1, 0), axis=1)[:, :n], axis=1) if n else np.zeros((len(item), 0), int)
    return np.take_along_axis(item, chosen, 1), (chosen + 1).astype(np.int32)


class NextQuery:
    """Draws the next query of users with an intent: a kind of change by the calibration, then a query of that kind."""

    def __init__(self, world: World, calibration: Calibration):
        self._share = calibration.kinds
        self._query, self._weight = _padded(world.refined, _CANDIDATES)
        self._words = _word_matrix(world.queries)
        self._n_words = np.asarray(self._words.sum(1)).ravel()

    def __call__(self, intent: np.ndarray, history: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64[E]; -1 where every query of the intent has been typed. `history` is int64[E, typed so far]."""
        query, weight = self._query[intent], self._weight[intent].copy()
        for column in history.T:
            weight[query == column[:, None]] = 0
        kind = self.kinds(np.repeat(history[:, -1], query.shape[1]), np.maximum(query, 0).ravel()).reshape(query.shape)
        total = np.stack([np.where(kind == k, weight, 0).sum(1) for k in range(len(KINDS))], axis=1)
        share = np.where(total > 0, self._share, 0)
        within = np.take_along_axis(np.where(total > 0, total, 1), kind, 1)
        chance = np.cumsum(weight / within * np.take_along_axis(share, kind, 1), axis=1)
        best = chance[:, -1] if chance.shape[1] else np.zeros(len(query))
        pick = (chance <= (rng.random(len(query)) * best)[:, None]).sum(1)
        chosen = np.take_along_axis(query, np.minimum(pick, query.shape[1] - 1)[:, None], 1)[:, 0]
        return np.where(best > 0, chosen, -1)

    def kinds(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """int64[n]: index into KINDS of the change from one query to the next, by their sets of words."""
        both = np.asarray(self._words[before].multiply(self._words[after]).sum(1)).ravel()
        a, b = self._n_words[before], self._n_words[after]
        conditions = [(both == a) & (both == b), both == a, both == b, both > 0]
        return np.select(conditions, [KINDS.index(k) for k in ("same_terms", "add_terms", "drop_terms", "substitute")],
                         KINDS.index("disjoint"))  # fmt: skip


def _padded(matrix: sp.csr_matrix, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(columns int64[rows, w], weights float64[rows, w]) of the heaviest entries of each row; -1 and 0 are padding."""
    coo = matrix.tocoo()
    order = np.lexsort((coo.col, -coo.data, coo.row))
    row = coo.row[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    keep = place < width
    shape = (matrix.shape[0], int(place[keep].max(initial=0)) + 1)
    columns, weights = np.full(shape, -1, np.int64), np.zeros(shape)
    columns[row[keep], place[keep]] = coo.col[order][keep]
    weights[row[keep], place[keep]] = coo.data[order][keep]
    return columns, weights


def _word_matrix(queries: tuple[str, ...]) -> sp.csr_matrix:
    number: dict[str, int] = {}
    cells = [
        (q, number.setdefault(w, len(number))) for q, text in enumerate(queries) for w in set(text.lower().split())
    ]
    rows, cols = np.array(cells or np.empty((0, 2)), int).T
    return sp.csr_matrix((np.ones(len(rows)), (rows, cols)), shape=(len(queries), max(len(number), 1)))
