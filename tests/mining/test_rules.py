"""P1 and P2 of days that hypothesis invents, against the rules as they are written down: all pairs, in plain Python.

Windows, caps, ties, robots, equal moments, items that come again and again, other spellings of a user's order.
"""

from collections import defaultdict

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.mining.config import MiningConfig, QueryLevelConfig, SystemLevelConfig
from crops_jax.mining.day import Day
from crops_jax.mining.numbers import number_queries
from crops_jax.mining.train_day import _scored_sources, _with_evidence
from crops_jax.mining.work import Work

LONG = 20_000  # watched for so long, which is an interaction
SILENT = st.sampled_from([(False, False, 0), (False, False, 9_999)])
ACTS = st.sampled_from([(True, False, 0), (False, True, 0), (False, False, LONG), (False, False, 10_000)]) | SILENT
# The robot does most of what is done; moments are few, so that many are equal.
USERS, MOMENTS = st.sampled_from([0, 0, 0, 1, 2]), st.integers(0, 30)
QUERIES, ITEMS = st.integers(0, 4), st.integers(0, 6)
SEARCHES = st.lists(st.tuples(USERS, QUERIES, MOMENTS), min_size=1, max_size=25)
STAGES = st.sampled_from(["exposed", "exposed", "ranked", "filtered"])
RESULTS = st.lists(st.tuples(st.integers(0, 24), ITEMS, STAGES, ACTS), max_size=30, unique_by=lambda r: r[:2])
FEED = st.lists(st.tuples(USERS, ITEMS, MOMENTS, ACTS), max_size=40)
CONFIGS = st.builds(
    lambda window, after, near, most: MiningConfig(
        query_level=QueryLevelConfig(window_ms=window, max_searches_after=after),
        system_level=SystemLevelConfig(window_ms=near, max_items_per_user=most),
    ),
    st.integers(1, 12), st.integers(1, 5), st.integers(0, 20), st.integers(0, 5),
)  # fmt: skip


class Numbers:
    """A discriminator that reads numbers: queries up to two apart are similar, and so is an item to every third."""

    def query_similarity(self, a, b):
        return np.array([_similarity(int(x[1:]), int(y[1:])) for x, y in zip(a, b, strict=True)], np.float32)

    def scores(self, queries, texts):
        return np.array([_theta(int(q[1:]), int(t[1:])) for q, t in zip(queries, texts, strict=True)], np.float32)


def _similarity(a, b):
    return 1 - abs(a - b) / 4  # 0.5, two apart, is just enough


def _theta(query, item):
    return (0.2, 0.6, 0.7)[(query + item) % 3]  # 0.6 is not above alpha


def reformulations(searches, results, config):
    """P1: {(query, item): request of the reformulation}."""
    found = defaultdict(list)
    for user in {user for user, _, _ in searches}:
        own = sorted((ts, request, query) for request, (who, query, ts) in enumerate(searches) if who == user)
        for place, (ts, _, query) in enumerate(own):
            for later, again, reworded in own[place + 1 : place + 1 + config.max_searches_after]:
                similar = query != reworded and _similarity(query, reworded) >= config.min_query_similarity
                if similar and 0 < later - ts <= config.window_ms:
                    for request, item, stage, acts in results:
                        if request == again and stage == "exposed" and consumed(acts) and _theta(query, item) > 0.6:
                            found[query, item].append((later - ts, f"r{again:02d}"))
    return {pair: min(reasons)[1] for pair, reasons in found.items()}


def around(searches, feed, config):
    """P2: {(query, item): user}."""
    nearest = defaultdict(dict)
    for user, query, ts in searches:
        for who, item, seen, acts in feed:
            if who == user and consumed(acts) and abs(seen - ts) <= config.window_ms:
                of_user = nearest[query, user]
                of_user[item] = min(abs(seen - ts), of_user.get(item, abs(seen - ts)))
    found = defaultdict(list)
    for (query, user), items in nearest.items():
        for distance, item in sorted((distance, item) for item, distance in items.items())[: config.max_items_per_user]:
            if _theta(query, item) > 0.6:
                found[query, item].append((distance, user))
    return {pair: str(min(reasons)[1]) for pair, reasons in found.items()}


def consumed(acts):
    clicked, liked, watched = acts
    return clicked or liked or watched >= 10_000


@pytest.fixture(scope="module")
def engine():
    with open_engine(EngineConfig(memory_limit="500MB", threads=1), []) as engine:
        yield engine


def table(engine, name, schema, rows):
    columns = {name: pa.array([row[i] for row in rows], kind) for i, (name, kind) in enumerate(schema.items())}
    return engine.connection.create_table(name, pa.table(columns), overwrite=True)


def day(engine, searches, results, feed):
    number, text, yes = pa.int64(), pa.string(), pa.bool_()
    acts = {"clicked": yes, "liked": yes, "watch_ms": number}
    asked = [(f"r{i:02d}", user, f"q{query}", ts) for i, (user, query, ts) in enumerate(searches)]
    shown = [(f"r{i:02d}", item, stage, *did) for i, item, stage, did in results]
    seen = [(user, item, ts, *did) for user, item, ts, did in feed]
    fields = dict.fromkeys(("photo_caption", "keyword", "click_query"), text)
    return Day(
        table(engine, "s", {"request_id": text, "user_id": number, "query": text, "ts": number}, asked),
        table(engine, "c", {"request_id": text, "item_id": number, "stage": text, **acts}, shown),
        table(engine, "f", {"user_id": number, "item_id": number, "ts": number, **acts}, seen),
        table(engine, "i", {"item_id": number, "ocr_cover": text, **fields},
              [(i, f"i{i}", None, None, None) for i in range(7)]),
        False,
    )  # fmt: skip


@pytest.mark.slow
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(SEARCHES, RESULTS, FEED, CONFIGS)
def test_p1_and_p2_are_the_rules_for_any_day(engine, tmp_path_factory, searches, results, feed, config):
    results = [row for row in results if row[0] < len(searches)]
    work = Work(engine, tmp_path_factory.mktemp("one"), 0)
    logged = day(engine, searches, results, feed)
    queries = number_queries(work, "queries", logged.searches)
    passed, _ = _scored_sources(work, logged, queries, Numbers(), config)
    passed = _with_evidence(passed, logged).join(queries, "number")
    found = {"P1": {}, "P2": {}}
    for row in passed.to_pyarrow().to_pylist():
        pair = int(row["query"][1:]), row["item_id"]
        assert pair not in found[row["source"]]
        found[row["source"]][pair] = row["evidence"]
    assert found["P1"] == reformulations(searches, results, config.query_level)
    assert found["P2"] == around(searches, feed, config.system_level)
