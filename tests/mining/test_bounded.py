"""P1 and P2 under users who do a thousand times what others do: the rows of the plain rule, from bounded work."""

import numpy as np
import pyarrow as pa
import pytest

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.mining.config import SystemLevelConfig
from crops_jax.mining.day import Day
from crops_jax.mining.system_level import feed_near_query


@pytest.fixture(scope="module")
def engine():
    with open_engine(EngineConfig(memory_limit="500MB"), []) as engine:
        yield engine


def _table(engine, name, columns):
    return engine.connection.create_table(name, pa.table(columns), overwrite=True)


def near(engine, searches, feed, config):
    """{(query, user, item): distance} of P2 for (user, query, ts) and (user, item, ts)."""
    asked = _table(engine, "asked", dict(zip(("user_id", "query", "ts"), searches, strict=True)))
    columns = dict(zip(("user_id", "item_id", "ts"), feed, strict=True))
    acts = {"clicked": [True] * len(feed[0]), "liked": [False] * len(feed[0]), "watch_ms": [0] * len(feed[0])}
    seen = _table(engine, "seen", columns | acts)
    rows = feed_near_query(engine, "near", Day(asked, seen, seen, seen, False), config).to_pyarrow().to_pylist()
    found = {(r["query"], r["user_id"], r["item_id"]): r["distance_ms"] for r in rows}
    assert len(found) == len(rows)
    return found


def plainly(searches, feed, config):
    """The rule as it is written down: all pairs of a user's searches and feed rows."""
    distances = {}
    for user, query, ts in zip(*searches, strict=True):
        for who, item, seen in zip(*feed, strict=True):
            if who == user and abs(seen - ts) <= config.window_ms:
                items = distances.setdefault((query, user), {})
                items[item] = min(abs(seen - ts), items.get(item, abs(seen - ts)))
    found = {}
    for (query, user), items in distances.items():
        kept = sorted((distance, item) for item, distance in items.items())[: config.max_items_per_user]
        found |= {(query, user, item): distance for distance, item in kept}
    return found


@pytest.mark.parametrize("seed", range(15))
def test_feed_near_query_is_the_rule_for_every_pattern(engine, seed):
    """Few and many items, equal moments, items seen again and again, a robot, caps from 1."""
    rng = np.random.default_rng(seed)
    users, queries, span = 4, int(rng.integers(1, 6)), int(rng.integers(1, 400))
    items = int(rng.integers(1, 40))
    most, window = int(rng.integers(1, 12)), int(rng.integers(0, 400))

    def rows(count, things):
        of = np.where(rng.random(count) < 0.6, 0, rng.integers(0, users, count))  # user 0 is the robot
        favourite = rng.integers(0, things, count) * (rng.random(count) < rng.random())
        return of.tolist(), favourite.tolist(), rng.integers(0, span, count).tolist()

    who, what, when = rows(int(rng.integers(0, 40)), queries)
    searches, feed = (who, [f"q{w}" for w in what], when), rows(int(rng.integers(0, 250)), items)
    config = SystemLevelConfig(window_ms=window, max_items_per_user=most)
    searches = searches if who else ([9], ["q"], [0])
    feed = feed if feed[0] else ([8], [1], [0])
    assert near(engine, searches, feed, config) == plainly(searches, feed, config)


@pytest.mark.parametrize("most", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_of_items_seen_at_one_moment_the_smaller_ids_are_kept_before_and_after_a_search(engine, most, after):
    """No end of a block cuts a moment, wherever it lies: `after` others are seen later."""
    searches = ([1, 1], ["before", "after"], [0, 20])
    later = list(range(after))
    feed = ([1] * (5 + after), [5, 4, 3, 2, 1, *(90 + i for i in later)], [10] * 5 + [40 + i for i in later])
    config = SystemLevelConfig(max_items_per_user=most)
    found = near(engine, searches, feed, config)
    assert found == {(query, 1, item): 10 for query in ("before", "after") for item in range(1, most + 1)}
    assert found == plainly(searches, feed, config)


def test_a_robots_work_grows_with_its_rows_alone(engine):
    """10,000 searches beside 10,000 feed rows, a third of them one item: all pairs would be 100 million rows."""
    n = 10_000
    searches = ([1] * n, [f"q{i % 5_000}" for i in range(n)], list(range(0, 2 * n, 2)))
    feed = ([1] * n, [i if i % 3 else 0 for i in range(n)], list(range(1, 2 * n, 2)))
    found = near(engine, searches, feed, SystemLevelConfig())
    assert len(found) == 5_000 * 100
    config = SystemLevelConfig(window_ms=400)
    at = [i for i in range(n) if i % 5_000 in (0, 7)]
    some = tuple([column[i] for i in at] for column in searches)
    close = tuple([column[i] for i in range(n) if min(abs(feed[2][i] - t) for t in some[2]) <= 400] for column in feed)
    assert near(engine, some, feed, config) == plainly(some, close, config)
