"""The miners, rule by rule, on logs small enough to read."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import DAY, T0, WordOverlap, candidate, feed, item, recast, search, small_world, write, write_day
from places import ROOT

from crops_jax.artifacts.folders import write_folder
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.engines.files import Sorted, files
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs
from crops_jax.logs.folder import open_logs
from crops_jax.mining.candidates import CANDIDATES_ORDER, CANDIDATES_SCHEMA
from crops_jax.mining.config import (
    FunnelConfig,
    HeldOutConfig,
    MiningConfig,
    QueryLevelConfig,
    SystemLevelConfig,
    ThresholdConfig,
    WorldKnowledgeConfig,
)
from crops_jax.mining.day import open_day
from crops_jax.mining.query_level import reformulation_pairs
from crops_jax.mining.system_level import feed_near_query
from crops_jax.mining.testsets import build_testsets
from crops_jax.mining.train_day import mine

CONFIG = MiningConfig(world_knowledge=WorldKnowledgeConfig(enabled=False), engine=EngineConfig(memory_limit="500MB"))


def mined(logs, relevance=None, config=CONFIG, name="mined"):
    with write_folder(logs / name, kind="mined") as out:
        mine(logs, out, relevance or WordOverlap(), config)
    return pq.read_table(logs / name / "candidates.parquet").to_pylist()


def of(rows, source):
    return {(r["query"], r["item_id"]) for r in rows if r["source"] == source}


@pytest.fixture(scope="module")
def connection():
    with open_engine(EngineConfig(memory_limit="500MB"), []) as engine:
        yield engine.connection


def pairs_of(connection, searches, config=None):
    columns = {name: [s[name] for s in searches] for name in ("request_id", "user_id", "query", "ts")}
    table = connection.create_table("searches", pa.table(columns), overwrite=True)
    rows = reformulation_pairs(table, config or QueryLevelConfig()).to_pyarrow().to_pylist()
    return {(r["request_id"], r["next_request_id"]) for r in rows}


def test_funnel_sources_and_evidence(tmp_path):
    rows = mined(small_world(tmp_path))
    assert of(rows, "P0") == {("transformer", 0), ("power transformer", 3), ("transformer", 1)}
    assert of(rows, "X3") == {("transformer", 1), ("transformer", 2), ("power transformer", 5)}
    assert of(rows, "U2") == {("transformer", 3)}
    assert of(rows, "F1") == {("transformer", 8)}  # item 9 has no text: a counted reject
    # P1: item 3 clicked after "power transformer" holds the word; item 5, watched for 20 s, does not.
    assert [(r["item_id"], r["evidence"], r["theta"]) for r in rows if r["source"] == "P1"] == [(3, "r2", 1.0)]
    assert {(r["query"], r["item_id"], r["evidence"]) for r in rows if r["source"] == "P2"} == {("transformer", 4, "1")}
    assert all((r["request_id"] is None) == (r["source"] in ("P1", "P2")) for r in rows)
    rejects = json.loads((tmp_path / "mined/rejects.json").read_text())
    assert {k: v["count"] for k, v in rejects["logs"].items()} == {
        "item_without_text": 1, "query_empty": 1, "query_too_long": 1
    }  # fmt: skip
    # scored: (transformer: 3, 5, 4) and (power transformer: 4, 5); refused: both 5s, and 4 with theta 1/2.
    assert rejects["theta"] == {"pairs_scored": 5, "pairs_not_above_alpha": 3}


def test_what_nobody_clicked_passes_theta_where_that_is_asked_for(tmp_path):
    every = mined(small_world(tmp_path))
    config = dataclasses.replace(CONFIG, funnel=FunnelConfig(alpha=0.6))
    rows = mined(tmp_path, config=config, name="purer")
    left_out = {("X3", "power transformer", 5), ("F1", "transformer", 8)}  # neither holds all words
    kept = [row for row in every if (row["source"], row["query"], row["item_id"]) not in left_out]
    low = ("X3", "U2", "F1")
    assert [row | {"theta": None} for row in rows if row["source"] in low] == [r for r in kept if r["source"] in low]
    assert {row["theta"] for row in rows if row["source"] in low} == {1.0}
    assert [row for row in rows if row["source"] not in low] == [row for row in kept if row["source"] not in low]
    rejects = json.loads((tmp_path / "purer/rejects.json").read_text())
    assert rejects["funnel"] == {"pairs_scored": 5, "pairs_not_above_alpha": 2}
    with pytest.raises(InputError, match=r"mining\.funnel config: alpha: 2 is no threshold"):
        FunnelConfig(alpha=2)


@pytest.mark.parametrize(("gap", "kept"), [(1, True), (89_999, True), (90_000, True), (90_001, False), (91_000, False),
                                           (0, False), (-5_000, False)])  # fmt: skip
@pytest.mark.parametrize("start", [T0 // 90_000 * 90_000, T0 // 90_000 * 90_000 + 89_999, T0 + 12_345])
def test_reformulation_window(connection, gap, kept, start):
    found = pairs_of(connection, [search("a", 1, "q", start), search("b", 1, "p", start + gap)])
    assert (("a", "b") in found) == kept


def test_reformulation_is_of_the_same_user_and_another_query(connection):
    searches = [
        search("a", 1, "transformer", T0),
        search("b", 2, "film", T0 + 1),
        search("c", 1, "transformer", T0 + 2),
    ]
    assert pairs_of(connection, searches) == set()


def test_chain_counts_every_pair_within_the_window(connection):
    searches = [search("a", 1, "q", T0), search("b", 1, "q2", T0 + 50_000), search("c", 1, "q3", T0 + 95_000)]
    assert pairs_of(connection, searches) == {("a", "b"), ("b", "c")}
    searches[2] |= {"ts": T0 + 90_000}
    assert pairs_of(connection, searches) == {("a", "b"), ("b", "c"), ("a", "c")}


@pytest.mark.parametrize(("most", "found"), [(100, 557), (2, 280), (1, 141)])
def test_bucket_join_equals_all_pairs(connection, most, found):
    """A third of the searches are of one user, often within a millisecond; `most` is counted in that user's order."""
    rng = np.random.default_rng(0)
    users, queries = (np.maximum(rng.integers(0, n, 300) - n // 3, 0).tolist() for n in (6, 7))
    times = (rng.integers(0, 3_000_000, 300) // 20_000 * 20_000).tolist()
    searches = [search(f"r{i}", users[i], f"q{queries[i]}", T0 + times[i]) for i in range(300)]
    brute = set()
    for user in set(users):
        row = sorted((s["ts"], s["request_id"], s["query"]) for s in searches if s["user_id"] == user)
        brute |= {
            (request, later)
            for i, (ts, request, query) in enumerate(row)
            for later_ts, later, other in row[i + 1 : i + 1 + most]
            if 0 < later_ts - ts <= 90_000 and query != other
        }
    assert pairs_of(connection, searches, QueryLevelConfig(max_searches_after=most)) == brute
    assert len(brute) == found


class Constant(WordOverlap):
    def __init__(self, theta=1.0, similarity=1.0):
        super().__init__()
        self.theta, self.similarity = theta, similarity

    def scores(self, queries, texts):
        super().scores(queries, texts)
        return np.full(len(queries), self.theta, np.float32)

    def query_similarity(self, a, b):
        return np.full(len(a), self.similarity, np.float32)


@pytest.mark.parametrize(("theta", "kept"), [(0.6, False), (0.6001, True), (0.5999, False)])
def test_theta_is_strict(tmp_path, theta, kept):
    rows = mined(small_world(tmp_path), Constant(theta=theta))
    assert bool(of(rows, "P1")) == bool(of(rows, "P2")) == kept


@pytest.mark.parametrize(("similarity", "kept"), [(0.5, True), (0.4999, False)])
def test_query_similarity_is_inclusive(tmp_path, similarity, kept):
    assert bool(of(mined(small_world(tmp_path), Constant(similarity=similarity)), "P1")) == kept


def test_pairs_are_scored_once(tmp_path):
    relevance = Constant()
    mined(small_world(tmp_path), relevance)
    assert len(relevance.asked) == len(set(relevance.asked)) == 5


def test_another_users_reformulation_gives_nothing(tmp_path):
    small_world(tmp_path)
    table = pq.read_table(tmp_path / "train/searches.parquet").to_pylist()
    moved = [row | ({"user_id": 7} if row["request_id"] == "r2" else {}) for row in table]
    write(tmp_path / "train/searches.parquet", "searches", moved)
    assert of(mined(tmp_path, Constant()), "P1") == set()


def test_only_what_was_consumed_after_the_reformulation_counts(tmp_path):
    small_world(tmp_path)
    path = tmp_path / "train/candidates.parquet"
    more = [
        candidate("r2", 6, position=3),
        candidate("r2", 7, position=4, watch_ms=9_999),
        candidate("r2", 8, "ranked"),
    ]
    more += [candidate("r2", 4, position=5, watch_ms=10_000), candidate("r2", 2, position=6, liked=True)]
    write(path, "candidates", pq.read_table(path).to_pylist() + more)
    assert of(mined(tmp_path, Constant()), "P1") == {("transformer", i) for i in (3, 5, 4, 2)}


@pytest.mark.parametrize("scores", [[float("nan")] * 5, [1.5] * 5, [1.0] * 4])
def test_a_broken_relevance_model_is_an_error(tmp_path, scores):
    class Broken(WordOverlap):
        def scores(self, queries, texts):
            return np.array(scores, np.float32)

    with pytest.raises(InputError, match=r"relevance\.scores"):
        mined(small_world(tmp_path), Broken())
    assert not (tmp_path / "mined").exists()


def feed_world(tmp_path, feed_rows, searches=None, items=200):
    write(tmp_path / "items.parquet", "items", [item(i, "q text") for i in range(items)])
    write_day(tmp_path, "train", searches or [search("a", 1, "q", T0 + DAY)], [candidate("a", 0)], feed_rows)
    return tmp_path


def near(logs, config=None):
    with open_engine(EngineConfig(memory_limit="500MB"), [logs]) as engine:
        day = open_day(engine, open_logs(logs), "train")
        rows = feed_near_query(engine, "near", day, config or SystemLevelConfig())
        return {(r["user_id"], r["item_id"]): r["distance_ms"] for r in rows.to_pyarrow().to_pylist()}


@pytest.mark.parametrize(("first", "common"), [(1, True), (101, False)])
def test_a_feed_of_which_no_user_searched_is_told_and_has_no_p2(tmp_path, capsys, first, common):
    """The feed's users are those of the searches under other names, all but the first one in one case."""
    logs = small_world(tmp_path)
    recast(logs, "feed", user_id=lambda column: pa.array([first] + [102] * (len(column) - 1), pa.int64()))
    assert check_logs(logs, "train").common_user == common
    rows = mined(logs)
    said = "warning: no user of the feed has a search, so there will be no P2"
    assert (said in capsys.readouterr().err) != common
    assert common or of(rows, "P2") == set()


def test_the_101st_feed_item_is_ignored(tmp_path):
    # Item i is i seconds after the query, item 150 half a second before it: the nearest in time, and the first kept.
    rows = [feed(1, 150, T0 + DAY - 500)] + [feed(1, i, T0 + DAY + i * 1000) for i in range(1, 121)]
    kept = near(feed_world(tmp_path, rows))
    assert set(kept) == {(1, 150)} | {(1, i) for i in range(1, 100)}


def test_ties_at_the_cap_go_to_the_smaller_item_id(tmp_path):
    rows = [feed(1, i, T0 + DAY) for i in (30, 10, 20)]
    assert set(near(feed_world(tmp_path, rows), SystemLevelConfig(max_items_per_user=2))) == {(1, 10), (1, 20)}


def test_feed_window_is_centred_and_only_interactions_of_its_users_count(tmp_path):
    rows = [feed(1, 1, T0), feed(1, 2, T0 + 2 * DAY), feed(1, 3, T0 + 2 * DAY + 1), feed(2, 4, T0 + DAY),
            feed(1, 5, T0 + 2 * DAY + 2, watch_ms=20_000), feed(1, 6, T0 + 2 * DAY + 3, watch_ms=9_999),
            feed(1, 7, T0 - 1)]  # fmt: skip
    assert set(near(feed_world(tmp_path, rows))) == {(1, 1), (1, 2)}
    wide = SystemLevelConfig(window_ms=2 * DAY)
    assert set(near(tmp_path, wide)) == {(1, 1), (1, 2), (1, 3), (1, 5), (1, 7)}


def test_a_user_who_asked_twice_counts_once(tmp_path):
    searches = [search("a", 1, "q", T0 + DAY), search("b", 1, "q", T0 + DAY + 10_000)]
    assert near(feed_world(tmp_path, [feed(1, 1, T0 + DAY + 9_000)], searches)) == {(1, 1): 1_000}


def test_same_input_gives_same_sorted_bytes_on_any_number_of_threads(tmp_path):
    small_world(tmp_path)
    mined(tmp_path, name="one")
    mined(tmp_path, name="two", config=dataclasses.replace(CONFIG, engine=EngineConfig("500MB", threads=1)))
    for name in ("candidates.parquet/part-0.parquet", "knowledge.parquet", "rejects.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    table = pq.read_table(tmp_path / "one/candidates.parquet/part-0.parquet")
    assert table.schema.equals(CANDIDATES_SCHEMA)
    keys = [tuple((r[k] is not None, r[k]) for k in CANDIDATES_ORDER) for r in table.to_pylist()]
    assert keys == sorted(keys)


def test_written_pages_carry_checksums(tmp_path):
    rows = 300_000  # more than two row groups
    with open_engine(EngineConfig(memory_limit="500MB"), [tmp_path]) as engine:
        table = engine.connection.create_table("t", pa.table({"x": np.random.default_rng(0).permutation(rows)}))
        path = tmp_path / "t.parquet"
        assert engine.write_sorted(table, path, Sorted(pa.schema([("x", pa.int64())]), ["x"])) == rows
    assert pq.read_table(path, page_checksum_verification=True)["x"].to_numpy().tolist() == list(range(rows))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_sql_reaches_no_file(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
    with open_engine(EngineConfig(memory_limit="500MB"), []) as engine:
        assert engine.read(files(tmp_path / "t.parquet")).count().to_pyarrow().as_py() == 1
        with pytest.raises(Exception, match="Permission Error"):
            engine.connection.raw_sql(f"select * from '{tmp_path}/t.parquet'")
    with pytest.raises(InputError, match="engine config"), open_engine(EngineConfig(memory_limit="much"), []):
        pass


@pytest.mark.parametrize("change", ["late_search", "late_feed", "shared_request"])
def test_leak_guard(tmp_path, change):
    small_world(tmp_path)
    late = T0 + 2 * DAY
    name, row, said = {
        "late_search": ("searches", search("rx", 5, "q", late), "train/searches.ts: 1 rows at or after"),
        "late_feed": ("feed", feed(1, 1, late), "train/feed.ts: 1 rows at or after"),
        "shared_request": ("searches", search("t1", 5, "q", T0), "1 requests are in both days, e.g. t1"),
    }[change]
    path = tmp_path / f"train/{name}.parquet"
    write(path, name, [*pq.read_table(path).to_pylist(), row])
    with pytest.raises(InputError, match="leaks into mining") as error:
        mined(tmp_path)
    assert said in str(error.value)


def held_out_of(logs, config=None, relevance=None, day="test"):
    config = config or HeldOutConfig()
    with write_folder(logs / "testsets", kind="testsets") as out:
        counts = build_testsets(logs, out, relevance or WordOverlap(), config, MiningConfig(), day)
    tables = [pq.read_table(logs / f"testsets/{name}.parquet").to_pylist() for name in ("ct", "qr", "unexposed")]
    return [[tuple(row.values()) for row in table] for table in tables], counts


def test_ct_qr_and_never_exposed(tmp_path):
    (ct, qr, unexposed), counts = held_out_of(small_world(tmp_path))
    assert ct == [("t1", "transformer", 0), ("t1", "transformer", 1), ("t2", "transformer parts", 5),
                  ("t2", "transformer parts", 6), ("t4", "transformer coil", 3)]  # fmt: skip
    # t2 follows t1 after 90 s: of its clicks 6 holds "transformer" and 5 does not. t4 follows t3 after 91 s.
    assert qr == [("t1", "transformer", 6)]
    # Relevant to "transformer" are 0 (exposed), 3 (ranked only, exposed for other queries) and 4 (only in the feed).
    assert unexposed == [("transformer", 3), ("transformer", 4)]
    assert (counts["ct_events"], counts["qr_events"], counts["qr_pairs_not_above_alpha"]) == (3, 1, 1)


def test_events_are_sampled_by_seed(tmp_path):
    small_world(tmp_path)
    sampled = {}
    for seed in range(4):
        (sampled[seed], _, _), counts = held_out_of(tmp_path, HeldOutConfig(max_events=1, seed=seed))
        assert len({event for event, _, _ in sampled[seed]}) == counts["ct_events"] == 1
        assert counts["ct_events_before_sampling"] == 3
        shown = pq.read_table(tmp_path / "testsets/shown.parquet")["event_id"].to_pylist()
        assert {*shown} == {event for event, _, _ in sampled[seed]}
    assert len({rows[0][0] for rows in sampled.values()}) > 1
    assert held_out_of(tmp_path, HeldOutConfig(max_events=1, seed=0))[0][0] == sampled[0]


def test_the_validation_day_gives_the_sets_of_its_own_rows_and_is_guarded_too(tmp_path):
    of_test, _ = held_out_of(small_world(tmp_path))
    (tmp_path / "test").rename(tmp_path / "validation")
    assert held_out_of(tmp_path, day="validation")[0] == of_test
    shutil.copytree(tmp_path / "validation", tmp_path / "test")
    for day in ("validation", "test"):  # settings would be chosen by the very events that they are measured on
        with pytest.raises(InputError, match=r"the test day leaks into validation[\s\S]*searches\.ts: \d rows at or"):
            held_out_of(tmp_path, day=day)
    shutil.rmtree(tmp_path / "test")
    path = tmp_path / "train/searches.parquet"
    write(path, "searches", [*pq.read_table(path).to_pylist(), search("rx", 5, "q", T0 + 2 * DAY)])
    with pytest.raises(InputError, match=r"train/searches\.ts: 1 rows at or after .* of day 'validation'"):
        held_out_of(tmp_path, day="validation")


def test_full_truth_goes_before_judgments(tmp_path):
    small_world(tmp_path)
    (tmp_path / "truth").mkdir()
    truth = {"query": ["transformer"] * 2, "item_id": [7, 8], "grade": [3.0, 1.0]}
    pq.write_table(pa.table(truth), tmp_path / "truth/relevance.parquet")
    assert held_out_of(tmp_path)[0][2] == [("transformer", 7)]


def test_no_qr_event_is_an_error_and_a_warning_where_none_is_required(tmp_path, capsys):
    said = (
        "no event for QR: 4 searches have a user; of 1 pairs of a query and a later one 1 are similar .* 0 pass theta"
    )
    with pytest.raises(InputError, match=f"{said}.*--held_out.require_qr=False"):
        held_out_of(small_world(tmp_path), relevance=Constant(theta=0.0))
    (ct, qr, _), counts = held_out_of(tmp_path, HeldOutConfig(require_qr=False), Constant(theta=0.0))
    assert re.search(f"^warning: {said}", capsys.readouterr().err, re.M)
    assert (len(ct), qr, counts["qr_events"]) == (5, [], 0)


def test_where_nobody_has_a_name_qr_is_empty_and_ct_is_not(tmp_path, capsys):
    logs = small_world(tmp_path)
    for table in ("searches", "feed"):
        recast(logs, table, user_id=lambda column: pa.nulls(len(column), pa.int64()))
    (ct, qr, _), counts = held_out_of(logs)
    assert len(ct) == 5 and qr == [] and counts["qr_events"] == 0
    assert "warning: no search of the held-out day has a user" in capsys.readouterr().err


def test_threshold_default_is_the_papers():
    assert ThresholdConfig().alpha == 0.6
    assert MiningConfig().query_level.window_ms == 90_000
    assert MiningConfig().system_level.max_items_per_user == 100


def test_the_log_verbs_and_every_config_load_neither_jax_nor_the_engine():
    code = """
import sys
import crops_jax.simulate_logs, crops_jax.check_logs, crops_jax.mine, crops_jax.write_records, crops_jax.verify
from crops_jax.command_line import load_file
load_file("configs/demo.py"), load_file("configs/crops_qwen2_5_0_5b.py"), load_file("configs/demo_sparse.py")
loaded = {"jax", "flax", "torch", "tensorflow", "ibis", "duckdb", "openai"} & set(sys.modules)
sys.exit(str(loaded) if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
