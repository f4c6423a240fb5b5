"""A row of days: another retriever and the clicks of the days before in the platform's place, and what a day did."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from crops_jax.simulate.measures import LONG_PLAY_MS, MEASURES, LoggedDay, measures, read_logged_day
from crops_jax.simulate.platform import PlatformConfig, Production, Vectors, lsa, memory_of_clicks
from crops_jax.simulate.sessions import DAY_MS, SessionsConfig
from crops_jax.simulate.simulator import SimulateConfig, build_world, simulate, simulate_day
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.simulate.users import UsersConfig
from crops_jax.simulate.world import sorted_csr

WORLD = SyntheticWorldConfig(n_items=300, n_intents=126, queries_per_intent=2)
CONFIG = SimulateConfig(
    users=UsersConfig(n_users=60),
    sessions=SessionsConfig(train_sessions=120, test_sessions=20),
    platform=PlatformConfig(dense_width=8, dense_features=400),
)
ONLY_DENSE = PlatformConfig(
    weight_lexical=0, weight_memory=0, weight_popularity=0, weight_dense=1, recall_each=20, memory_recall=20, ranked=20
)


@pytest.fixture(scope="module")
def world():
    return build_world(WORLD)


def digests(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob("*.parquet")}  # fmt: skip


def vectors(world, seed):
    rng = np.random.default_rng(seed)
    drawn = [rng.normal(size=(n, 6)) for n in (len(world.queries), world.items.num_rows)]
    return Vectors(*((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in drawn))


def test_day_0_of_the_platform_itself_is_the_ordinary_train_day_byte_for_byte(world, tmp_path):
    counts = simulate(world, CONFIG, tmp_path / "both")
    again = simulate_day(world, CONFIG, tmp_path / "one", 0)
    both, one = digests(tmp_path / "both"), digests(tmp_path / "one")
    assert {*both} - {*one} == {"truth/events_test.parquet",
                                *(f"test/{t}.parquet" for t in ("searches", "candidates", "feed"))}  # fmt: skip
    assert one == {name: both[name] for name in one} and again["train"] == counts["train"]
    simulate_day(world, CONFIG, tmp_path / "given", 0, lsa(world, CONFIG.platform, CONFIG.seed))
    assert digests(tmp_path / "given") == one, "the platform's own channel, given from outside"


def test_a_channel_of_vectors_ranks_as_numpy_does(world):
    dense = vectors(world, 0)
    nothing = sp.csr_matrix(world.relevance.shape)
    pools = Production(world, ONLY_DENSE, 0, dense).pools("day01", nothing)
    cosine = dense.queries @ dense.items.T
    best = np.argsort(-cosine, axis=1)[:, :10]
    order = np.argsort(-pools.rank, axis=1, kind="stable")[:, :10]
    ranked = np.take_along_axis(pools.item, order, 1)
    # Scores have 12 bits, so two that are nearer than that may change places: compare what they score, then who.
    np.testing.assert_allclose(*(np.take_along_axis(cosine, found, 1) for found in (ranked, best)), atol=2**-11)
    assert (ranked == best).mean() > 0.99


def test_an_item_without_a_vector_is_never_recalled(world):
    dense = vectors(world, 0)
    items = dense.items.copy()
    items[::2] = 0
    pools = Production(world, replace(ONLY_DENSE, lexical_fields=("click_query",), lexical_words=1), 0,
                       Vectors(dense.queries, items)).pools("day01", sp.csr_matrix(world.relevance.shape))  # fmt: skip
    found = pools.item[pools.rank > 0]
    assert len(found) and (found % 2 == 1).all()


def test_the_memory_of_clicks_is_the_share_of_a_querys_clicks(world):
    clicks = sp.csr_matrix(np.array([[3.0, 0, 1], [0, 0, 0], [0, 2, 0]]))
    assert memory_of_clicks(clicks).toarray().tolist() == [[0.75, 0, 0.25], [0, 0, 0], [0, 1, 0]]
    only_memory = replace(ONLY_DENSE, weight_dense=0, weight_memory=1)
    clicked = sorted_csr([4, 4], [7, 9], [1, 3], world.relevance.shape)
    pools = Production(world, only_memory, 0, vectors(world, 0)).pools("day01", memory_of_clicks(clicked))
    scores = {int(i): float(s) for i, s in zip(pools.item[4], pools.rank[4], strict=True) if i in (7, 9)}
    assert scores == {7: pytest.approx(1 / 3, abs=2**-12), 9: 1.0}
    assert pools.rank[5].max() == 0, "nobody clicked for this query"


def test_days_differ_and_ask_the_same_first_queries_whatever_serves_them(world, tmp_path):
    made = {(day, seed): tmp_path / f"{day}_{seed}" for day in (1, 2) for seed in (0, 1)}
    for (day, seed), folder in made.items():
        simulate_day(world, CONFIG, folder, day, vectors(world, seed))
    first = {}
    for key, folder in made.items():
        searches = pq.read_table(folder / "train/searches.parquet")
        steps = pq.read_table(folder / "truth/events_train.parquet")["step"].to_numpy()
        assert searches["request_id"][0].as_py() == f"day{key[0]:02d}-0000000"
        first[key] = [searches[name].to_numpy()[steps == 1].tolist() for name in ("user_id", "query", "ts")]
    assert first[1, 0] == first[1, 1] and first[2, 0] == first[2, 1]
    assert first[1, 0][1] != first[2, 0][1] and min(first[2, 0][2]) - max(first[1, 0][2]) < DAY_MS
    assert max(first[1, 0][2]) < min(first[2, 0][2])
    shown = [pq.read_table(made[1, seed] / "train/candidates.parquet")["item_id"].to_pylist() for seed in (0, 1)]
    assert shown[0] != shown[1]


@pytest.fixture(scope="module")
def tiny(world):
    """Three items, two queries, two intents. Query 0 may stand for both intents, query 1 for the second.

    Item 0 is for the first intent, 1 for the second, 2 for nobody.
    """
    wanted = sorted_csr([0, 1, 0], [0, 1, 2], [3, 3, 1], (2, 3))
    first = sp.csr_matrix(np.array([[1.0, 0.0], [0.5, 0.5]]))
    relevance = sorted_csr([0, 0, 1, 0], [0, 1, 1, 2], [3, 3, 3, 1], (2, 3))
    items = world.items.slice(0, 3).set_column(0, world.items.schema.field(0), pa.array([30, 10, 20], pa.int64()))
    return replace(world, items=items, queries=("a", "b"), intents=("x", "y"), wanted=wanted, first=first,
                   relevance=relevance, popularity=np.array([0.5, 0.5]))  # fmt: skip


def test_measures_by_hand(tiny):
    """Session 0 asks a, then rewords to b; session 1 asks a, then has another need and asks b; session 2 asks a."""
    day = LoggedDay(
        query=np.array([0, 1, 0, 1, 0]), session=np.array([0, 0, 1, 1, 2]),
        switched=np.array([False, False, False, True, False]),
        event=np.array([0, 0, 1, 3, 4, 4]), item=np.array([0, 2, 2, 0, 0, 2]),
        clicked=np.array([True, False, False, False, True, False]),
        watch_ms=np.array([LONG_PLAY_MS, 0, 0, 0, LONG_PLAY_MS - 1, 0]),
    )  # fmt: skip
    nothing = sp.csr_matrix((2, 3))
    found = measures(tiny, day, nothing)
    assert {*found} == {m.name for m in MEASURES}
    # a: item 0 serves the first of its two intents, nothing the second. b: its one intent is not served.
    assert (found["served"].of.tolist(), found["served"].out_of.tolist()) == ([1, 0], [2, 1])
    # Of the relevant pairs (a, 0), (a, 1), (b, 1) the first was shown; a grade of 1 is not relevant.
    assert found["reached"].value == pytest.approx(1 / 3)
    assert (found["clicks"].of.tolist(), found["clicks"].out_of.tolist()) == ([2, 0], [4, 2])
    assert found["long_plays"].value == pytest.approx(1 / 6)
    assert (found["reformulations"].of.tolist(), found["reformulations"].out_of.tolist()) == ([1, 0], [3, 2])
    before = sorted_csr([1, 0], [1, 0], [5, 1], (2, 3))
    later = measures(tiny, day, before)
    assert later["reached"].value == pytest.approx(2 / 3), "what was shown once stays shown"
    assert later["served"].value == found["served"].value, "that of the day alone"


def test_an_intent_of_a_query_that_nobody_asked_is_not_counted(tiny):
    only_b = LoggedDay(np.array([1]), np.array([0]), np.array([False]), np.array([0]), np.array([1]),
                       np.array([False]), np.array([0]))  # fmt: skip
    served = measures(tiny, only_b, sp.csr_matrix((2, 3)))["served"]
    assert (served.of.tolist(), served.out_of.tolist()) == ([0, 1], [0, 1])


def test_a_logged_day_is_what_was_simulated(world, tmp_path):
    counts = simulate_day(world, CONFIG, tmp_path, 3)["train"]
    day = read_logged_day(world, tmp_path)
    found = measures(world, day, sp.csr_matrix(world.relevance.shape))
    assert len(day.query) == counts["searches"] and len(day.item) == counts["exposures"]
    assert day.clicks(world).sum() == counts["clicks"] == found["clicks"].of.sum()
    assert found["reformulations"].of.sum() == counts["reformulations"]
    shown = day.shown(world)
    pairs = world.relevance.multiply(shown > 0)
    asked = np.flatnonzero(np.asarray(shown.sum(1)).ravel())
    never = 1 - (pairs.data >= world.relevant_grade).sum() / (world.relevance[asked].data >= world.relevant_grade).sum()
    assert never == pytest.approx(counts["share of them never exposed"], abs=1e-4)
    searches = pq.read_table(tmp_path / "train/searches.parquet").to_pylist()
    texts = {row["request_id"]: row["query"] for row in searches}
    rows = pq.read_table(tmp_path / "truth/events_train.parquet").sort_by(
        [("session_id", "ascending"), ("step", "ascending")]
    )
    assert [world.queries[q] for q in day.query] == [texts[r] for r in rows["request_id"].to_pylist()]
