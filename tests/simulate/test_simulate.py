"""The simulator: same seed same bytes, calibrated behaviour, a real filter bubble, honest judged worlds, the recipe."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from recipes import load_recipe

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest
from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs
from crops_jax.logs.tables import read_table, write_table
from crops_jax.simulate.calibration import KINDS, read_calibration
from crops_jax.simulate.judged import JudgedWorldConfig
from crops_jax.simulate.logs import TEST_DAY, TRAIN_DAY
from crops_jax.simulate.platform import PlatformConfig, _Lexical
from crops_jax.simulate.sessions import DAY_MS, NextQuery, SessionsConfig
from crops_jax.simulate.simulator import SimulateConfig, build_world, simulate
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.simulate.users import Taste, UsersConfig
from crops_jax.simulate.wording import read_senses
from crops_jax.simulate.world import at_least, draw_per_row, sorted_csr

WORLD = SyntheticWorldConfig(n_items=1200, n_intents=252)
CONFIG = SimulateConfig(
    users=UsersConfig(n_users=500),
    sessions=SessionsConfig(train_sessions=3000, test_sessions=1000),
    platform=PlatformConfig(dense_width=16, dense_features=3000),
)


@pytest.fixture(scope="module")
def world():
    return build_world(WORLD)


@pytest.fixture(scope="module")
def logs(world, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("logs")
    return folder, simulate(world, CONFIG, folder)


def hashes(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.parquet")
    }


def test_same_seed_same_bytes_and_another_seed_differs(world, logs, tmp_path):
    first, counts = logs
    assert simulate(build_world(WORLD), CONFIG, tmp_path / "again") == counts
    assert hashes(tmp_path / "again") == hashes(first)
    simulate(world, dataclasses.replace(CONFIG, seed=1), tmp_path / "other")
    changed = {n for n, h in hashes(tmp_path / "other").items() if h != hashes(first)[n]}
    assert {"train/searches.parquet", "train/candidates.parquet", "test/feed.parquet"} <= changed
    assert "items.parquet" not in changed  # the world has its own seed


def test_tables_keep_the_contract_and_the_days_apart(logs):
    folder, counts = logs
    for day, start in (("train", TRAIN_DAY), ("test", TEST_DAY)):
        searches = read_table(folder / day / "searches.parquet", "searches")
        feed = read_table(folder / day / "feed.parquet", "feed")
        ts = np.concatenate([searches["ts"].to_numpy(), feed["ts"].to_numpy()])
        assert start <= ts.min() and ts.max() < start + DAY_MS
        assert (np.diff(searches["ts"].to_numpy()) >= 0).all()
        assert len(set(searches["request_id"].to_pylist())) == searches.num_rows == counts[day]["searches"]
    assert TEST_DAY - (TRAIN_DAY + DAY_MS) == DAY_MS  # a day lies between


def test_funnel_shows_ten_in_order_and_no_candidate_twice(logs):
    candidates = read_table(logs[0] / "train" / "candidates.parquet", "candidates")
    pairs = candidates.group_by(["request_id", "item_id"]).aggregate([])
    assert pairs.num_rows == candidates.num_rows
    exposed = candidates.filter(pc.equal(candidates["stage"], "exposed"))
    n = exposed.group_by("request_id").aggregate(
        [("position", "max"), ("position", "count_distinct"), ("position", "count")]
    )
    assert n["position_max"].equals(n["position_count"].cast(pa.int32()))
    assert n["position_count_distinct"].equals(n["position_count"])
    hidden = candidates.filter(pc.not_equal(candidates["stage"], "exposed"))
    assert not pc.any(hidden["clicked"]).as_py() and pc.max(hidden["watch_ms"]).as_py() == 0
    assert set(hidden["stage"].to_pylist()) == {"ranked", "filtered"}


def test_gaps_follow_the_calibration():
    calibration = read_calibration(None)
    gaps = calibration.gaps(40_000, np.random.default_rng(0))
    shares = [np.interp(np.log(90), seconds, share) for share, seconds in calibration.gap_seconds]
    assert shares == pytest.approx([0.424, 0.396])
    assert (gaps <= 90).mean() == pytest.approx(np.mean(shares), abs=0.015)
    assert np.median(gaps) == pytest.approx((107 + 146.5) / 2, rel=0.1)


def test_reformulations_in_the_log_keep_the_calibrated_share(logs):
    train = logs[1]["train"]
    assert train["reformulations"] > 500
    assert train["reformulations within 90 s"] / train["reformulations"] == pytest.approx(0.41, abs=0.05)


def test_kinds_of_query_change(world):
    queries = ("power tool", "power", "tool power", "cordless tool", "garden hose")
    small = dataclasses.replace(world, queries=queries, refined=sorted_csr([0], [1], [1.0], (1, 5)))
    kinds = NextQuery(small, read_calibration(None)).kinds(np.array([1, 0, 0, 0, 0]), np.array([0, 1, 2, 3, 4]))
    assert [KINDS[k] for k in kinds] == ["add_terms", "drop_terms", "same_terms", "substitute", "disjoint"]


def test_next_query_is_never_one_that_was_typed(world):
    draw = NextQuery(world, read_calibration(None))
    intent = np.arange(len(world.intents))
    rng = np.random.default_rng(0)
    typed = draw_per_row(world.first, intent, rng)[:, None]
    for _ in range(12):
        chosen = draw(intent, typed, rng)
        assert not (chosen[:, None] == typed).any(axis=1)[chosen >= 0].any()
        typed = np.concatenate([typed, chosen[:, None]], axis=1)
    assert (chosen == -1).all()  # an intent has fewer than 12 queries, and the bare head word is never a refinement


def test_clicks_fall_with_position_and_follow_relevance(logs):
    folder, counts = logs
    candidates = read_table(folder / "train" / "candidates.parquet", "candidates")
    exposed = candidates.filter(pc.equal(candidates["stage"], "exposed"))
    position, clicked = exposed["position"].to_numpy(), exposed["clicked"].to_numpy()
    rates = [clicked[position == p].mean() for p in (1, 2, 4, 8)]
    assert all(a > b for a, b in pairwise(rates))
    assert counts["train"]["share of clicks relevant to the query"] > 0.8


def test_the_filter_bubble_exists(world, logs):
    """For bare head words the minority senses get less exposure than their share of the relevant items."""
    folder, counts = logs
    searches = read_table(folder / "train" / "searches.parquet", "searches")
    candidates = read_table(folder / "train" / "candidates.parquet", "candidates")
    shown = candidates.filter(pc.equal(candidates["stage"], "exposed")).join(searches, "request_id")
    rank = {sense.name: sense.rank for sense in read_senses()}
    own = at_least(world.wanted, 3.0).tocoo()
    rank_of = {int(c): rank[world.intents[i].split(" / ")[1]] for c, i in zip(own.col, own.row, strict=True)}
    relevant = {sense.head: set(world.relevance[world.queries.index(sense.head)].indices) for sense in read_senses()}
    exposed = [
        rank_of[item]
        for query, item in zip(shown["query"].to_pylist(), shown["item_id"].to_pylist(), strict=True)
        if item in relevant.get(query, ())
    ]
    there = [rank_of[int(item)] for items in relevant.values() for item in items]
    minority_shown, minority_there = np.mean(np.array(exposed) > 0), np.mean(np.array(there) > 0)
    assert len(exposed) > 1000 and minority_shown < 0.8 * minority_there
    assert 0.2 < counts["train"]["share of them never exposed"] < 0.95


def test_truth_beside_the_logs(world, logs):
    folder, _ = logs
    truth = read_table(folder / "truth" / "relevance.parquet")
    grade = {(q, i): g for q, i, g in zip(*(truth[c].to_pylist() for c in ("query", "item_id", "grade")), strict=True)}
    judged = read_table(folder / "judgments.parquet", "judgments").to_pylist()
    assert all(grade.get((j["query"], j["item_id"]), 0.0) == j["grade"] for j in judged)
    assert {j["grade"] for j in judged} == {0.0, 1.0, 2.0, 3.0}
    hidden = read_table(folder / "hidden_items.parquet").to_pylist()
    corpus = set(read_table(folder / "items.parquet", "items")["item_id"].to_pylist())
    assert {h["intent"] for h in hidden} == set(world.intents) and not corpus & {h["item_id"] for h in hidden}
    assert all(h["intent"].split(" / ")[0] in h["queries"] for h in hidden)


ROWS = [  # (query, item, grade): invented
    ("green garden hose", 1, 3.0), ("garden hose 50 ft", 1, 3.0), ("garden hose 50 ft", 2, 2.5),
    ("brass nozzle", 2, 3.0), ("brass nozzle", 3, 1.0),
    ("green garden hose", 4, 2.0), ("steel rake", 5, 3.0), ("steel rake", 6, 2.67),
    ("cordless drill", 7, 3.0), ("drill cordless 18v", 7, 2.67), ("drill cordless 18v", 8, 3.0), ("only poor", 3, 1.33),
]  # fmt: skip


def collection(folder: Path, rows=ROWS, ids=range(1, 10)) -> Path:
    ids = list(ids)
    with write_folder(folder, kind="collection") as out:
        items = {"item_id": ids, "ocr_cover": [f"product number {i} of steel or rubber" for i in ids]}
        items |= {n: pa.nulls(9, pa.string()) for n in ("photo_caption", "keyword", "click_query")}
        items |= {n: pa.nulls(9, pa.int64()) for n in ("play_cnt", "like_cnt", "long_view_cnt", "download_cnt")}
        write_table("items", items, out / "items.parquet")
        query, item, grade = map(list, zip(*rows, strict=True))
        write_table("judgments", {"query": query, "item_id": item, "grade": grade}, out / "judgments.parquet")
    return folder


def test_judged_world_takes_relevance_from_grades_alone(tmp_path):
    config = JudgedWorldConfig(str(collection(tmp_path / "c")), relevant_grade=2.33, hidden_share=0.0)
    world = build_world(config)
    ids = world.items["item_id"].to_numpy()
    coo = at_least(world.wanted, world.relevant_grade).tocoo()
    relevant = {(world.intents[i], int(ids[c])) for i, c in zip(coo.row, coo.col, strict=True)}
    assert relevant == {(q, i) for q, i, g in ROWS if g >= 2.33}
    assert not world.complete and "only poor" not in world.queries
    taste = Taste(world, UsersConfig())
    assert not taste.relevant(np.zeros(1)).any()  # an unjudged pair has grade 0
    assert taste.click_chance(np.array([0.0]))[0] == UsersConfig().click_accident
    counts = simulate(world, CONFIG, tmp_path / "logs")
    assert open_logs(tmp_path / "logs").graded_by == "judgments"  # the truth of a pair that nobody judged is unknown
    judged = read_table(tmp_path / "logs" / "judgments.parquet").to_pylist()
    assert {(t["query"], t["item_id"], t["grade"]) for t in judged} <= set(ROWS)
    assert counts["train"]["clicks"] > 0


def test_a_judged_world_is_one_in_whatever_order_its_documents_lie(tmp_path):
    for name, ids in (("one", range(1, 10)), ("other", range(9, 0, -1))):
        config = JudgedWorldConfig(str(collection(tmp_path / name, ids=ids)), relevant_grade=2.33, hidden_share=0.0)
        simulate(build_world(config), CONFIG, tmp_path / f"{name}_logs")
    for table in ("train/candidates", "train/feed", "items"):
        one, other = (read_table(tmp_path / f"{name}_logs" / f"{table}.parquet") for name in ("one", "other"))
        assert one.equals(other), table


def test_shared_items_alone_make_no_siblings(tmp_path):
    world = build_world(JudgedWorldConfig(str(collection(tmp_path / "c")), relevant_grade=2.33, hidden_share=0.0))
    coo = world.first.tocoo()
    pairs = {(world.intents[i], world.queries[q]) for i, q in zip(coo.row, coo.col, strict=True) if i != q}
    assert ("green garden hose", "garden hose 50 ft") in pairs and ("cordless drill", "drill cordless 18v") in pairs
    assert ("garden hose 50 ft", "brass nozzle") not in pairs  # they share item 2 and nothing else
    assert np.allclose(np.asarray(world.first.sum(1)).ravel(), 1.0)


def test_held_out_items_leave_the_judged_world_everywhere(tmp_path):
    world = build_world(
        JudgedWorldConfig(str(collection(tmp_path / "c")), relevant_grade=2.33, hidden_share=0.4, seed=3)
    )
    hidden = set(world.hidden["item_id"].to_pylist())
    assert hidden and not hidden & set(world.items["item_id"].to_pylist())
    assert not hidden & set(world.judgments["item_id"].to_pylist())
    for row in world.hidden.to_pylist():
        good = {q for q, i, g in ROWS if i == row["item_id"] and g >= 2.33}
        assert set(row["queries"]) == good & set(world.queries) and row["intent"] in row["queries"]


def test_bad_collections_are_one_clear_error(tmp_path):
    rows = [*ROWS, ("steel rake", 99, 3.0), ("steel rake", 5, 3.0)]
    with pytest.raises(InputError, match=r"unknown items, such as \[99\]") as caught:
        build_world(JudgedWorldConfig(str(collection(tmp_path / "c", rows)), relevant_grade=2.33))
    assert len(caught.value.problems) == 2 and "judged twice" in str(caught.value)
    with pytest.raises(InputError, match="not finite"):
        build_world(JudgedWorldConfig(str(collection(tmp_path / "d", [("a", 1, float("nan"))])), relevant_grade=2.33))
    one = str(collection(tmp_path / "one", [("steel rake", 1, 3.0)]))
    with pytest.raises(InputError, match=r"keeps a relevant item in the corpus; world\.hidden_share = 0\.99 takes 1"):
        build_world(JudgedWorldConfig(one, relevant_grade=2.33, hidden_share=0.99))


def test_bad_configs_list_every_problem(world, tmp_path):
    bad = SimulateConfig(users=UsersConfig(n_users=0), platform=PlatformConfig(exposed=50, lexical_fields=("titel",)))
    with pytest.raises(InputError) as caught:
        simulate(world, bad, tmp_path)
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="n_items = 5 is below"):
        build_world(SyntheticWorldConfig(n_items=5))
    bad = SimulateConfig(
        seed=-1, users=UsersConfig(click_relevant=7), sessions=replace(CONFIG.sessions, persistence=-1.0),
        platform=PlatformConfig(noise=float("nan"), dense_width=0),
    )  # fmt: skip
    with pytest.raises(InputError) as caught:
        simulate(world, bad, tmp_path)
    assert [p.split(" = ")[0] for p in caught.value.problems] == [
        "platform.dense_width must be at least 1, and platform.dense_features 2", "seed", "users.click_relevant",
        "platform.noise", "sessions.persistence",
    ]  # fmt: skip
    for change, said in {
        ("relevant_grade", 0.0): "a pair that nobody judged would be relevant",
        ("hidden_share", 1.0): "hidden_share = 1",
        ("relevant_grade", -1.0): "must be a number of 0 or more", ("first_sibling_share", 3.0): "between 0 and 1",
    }.items():  # fmt: skip
        config = replace(JudgedWorldConfig("nowhere", relevant_grade=2.0), **dict([change]))
        with pytest.raises(InputError, match=said):
            build_world(config)


@pytest.mark.parametrize(("titles", "queries"), [
    (("苹果手机新款", "无线耳机新款", "蓝牙音箱新款", "机械键盘新款"), ("苹果", "无线", "蓝牙", "机械")),  # no spaces
    (("买iPhone手机壳", "买Pixel手机壳", "买Galaxy手机壳", "买Nokia手机壳"), ("iphone", "pixel", "galaxy", "nokia")),
    (("की 新款", "कु 新款", "के 新款", "को 新款"), ("की", "कु", "के", "को")),  # vowel signs alone tell them apart
])  # fmt: skip
def test_a_collection_of_any_script_has_a_lexical_channel(titles, queries, tmp_path):
    with write_folder(tmp_path / "c", kind="collection") as out:
        columns = {"item_id": list(range(4)), "ocr_cover": titles}
        columns |= {n: pa.nulls(4, pa.string()) for n in ("photo_caption", "keyword", "click_query")}
        columns |= {n: pa.nulls(4, pa.int64()) for n in ("play_cnt", "like_cnt", "long_view_cnt", "download_cnt")}
        write_table("items", columns, out / "items.parquet")
        columns = {"query": queries, "item_id": list(range(4)), "grade": [3.0] * 4}
        write_table("judgments", columns, out / "judgments.parquet")
    world = build_world(JudgedWorldConfig(str(tmp_path / "c"), relevant_grade=2.0, hidden_share=0.0))
    found = _Lexical(world, PlatformConfig())(np.arange(4))
    best = world.items["item_id"].take(pa.array(found.argmax(1))).to_pylist()
    assert dict(zip(world.queries, best, strict=True)) == {query: i for i, query in enumerate(queries)}


def test_documents_without_a_word_are_searched_by_the_other_channels(tmp_path):
    """Single letters are no words of the lexical channel."""
    letters = [(f"query {i}", i, 3.0) for i in range(1, 4)]
    folder = collection(tmp_path / "c", letters)
    world = build_world(JudgedWorldConfig(str(folder), relevant_grade=2.0, hidden_share=0.0))
    bare = replace(world, items=world.items.set_column(1, "ocr_cover", pa.array(list("abcdefghi"))))
    assert not _Lexical(bare, PlatformConfig())(np.arange(3)).any()
    with pytest.raises(InputError, match="has 1 items: a search needs two"):
        simulate(replace(world, items=world.items.slice(0, 1)), CONFIG, tmp_path / "one")


def test_damaged_and_mistyped_tables(tmp_path):
    path = tmp_path / "t.parquet"
    write_table("judgments", {"query": ["a"] * 50, "item_id": list(range(50)), "grade": np.arange(50.0)}, path)
    assert read_table(path, "judgments").num_rows == 50
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 4] ^= 0x10
    (tmp_path / "flipped.parquet").write_bytes(raw)
    (tmp_path / "cut.parquet").write_bytes(raw[: len(raw) // 2])
    for name in ("flipped.parquet", "cut.parquet"):
        with pytest.raises(InputError, match="damaged"):
            read_table(tmp_path / name, "judgments")
    wrong = pa.schema([pa.field("query", pa.string()), pa.field("item_id", pa.string())])
    write_table(wrong, {"query": ["a", None], "item_id": ["x", "y"]}, path)
    with pytest.raises(InputError) as caught:
        read_table(path, "judgments")
    assert len(caught.value.problems) == 3  # a null query, ids that are text, no grade
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "nothing.parquet")


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("homedepot")


COLUMNS = ("id", "product_uid", "product_title", "search_term", "relevance")


def invented_csv(path: Path, columns=COLUMNS) -> Path:
    good = [(n, 100 + n // 2, f"Invented &amp; odd  gadget {n // 2}", f"gadget {n % 3}", "2.67") for n in range(14)]
    bad = [
        (14, "x12", "no id", "gadget", "2"), (15, 120, "no grade", "gadget", ""),
        (16, 121, "too good", "gadget", "3.5"), (17, 122, " ", "gadget", "2"), (18, 123, "no query", "", "2"),
        (19, 100, "Another title", "new gadget", "1.33"), (20, 10**19, "no such number", "gadget", "2"),
    ]  # fmt: skip
    with path.open("w", newline="", encoding="latin-1") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        places = [COLUMNS.index(column) if column in COLUMNS else 2 for column in columns]
        writer.writerows([[row[place] for place in places] for row in good + bad])
    return path


def test_recipe_counts_every_bad_row(recipe, tmp_path):
    source = invented_csv(tmp_path / "train.csv")
    with pytest.raises(InputError, match="sha256"):
        recipe.convert(source, tmp_path / "out", any_file=False)
    counts = recipe.convert(source, tmp_path / "out", any_file=True)
    assert read_manifest(tmp_path / "out", "collection")["counts"] == counts
    assert counts["rows"] == 21 and counts["items"] == 7 and counts["judgments"] == 15
    assert counts["rejects"] == {
        "product_uid or relevance is not a number": 2,
        "product_uid is negative or above 64 bits, or relevance is outside 1..3": 2,
        "empty product_title or search_term": 2,
        "title differs from the product's first one (row kept)": 1,
    }
    assert read_table(tmp_path / "out" / "items.parquet", "items")["ocr_cover"][0].as_py() == "Invented & odd gadget 0"


def test_recipe_reads_utf_8_with_a_mark_and_names_the_line_of_an_open_quote(recipe, tmp_path):
    source = invented_csv(tmp_path / "train.csv", COLUMNS[1:])
    plain = recipe.convert(source, tmp_path / "plain", any_file=True)
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    assert recipe.convert(source, tmp_path / "marked", any_file=True) == plain
    source.write_bytes(source.read_bytes() + b"\xe9")
    with pytest.raises(InputError, match="begins as UTF-8 and is none"):
        recipe.convert(source, tmp_path / "out", any_file=True)
    source.write_text('product_uid,product_title,search_term,relevance\n1,a,b,2\n2,"' + "never closed\n" * 20_000)
    with pytest.raises(InputError, match=r"line 3: field larger .* closed that opens there"):
        recipe.convert(source, tmp_path / "out", any_file=True)


def test_recipe_reads_utf_8_without_a_mark_and_merges_spellings_of_a_query(recipe, tmp_path):
    lines = ["product_uid,product_title,search_term,relevance", "1,Café table,café,3", "2,tea table,CAFÉ,2",
             "1,Café table,Café,2", "1_0,no number,café,3", "3,tea,cafe,1_0"]  # fmt: skip
    found = {}
    for encoding in ("utf-8", "utf-8-sig", "latin-1"):
        (tmp_path / "train.csv").write_bytes("\n".join(lines).encode(encoding))
        found[encoding] = recipe.convert(tmp_path / "train.csv", tmp_path / encoding, any_file=True)
        judged = read_table(tmp_path / encoding / "judgments.parquet", "judgments").to_pylist()
        assert [(row["query"], row["item_id"], row["grade"]) for row in judged] == [("café", 1, 2.5), ("café", 2, 2.0)]
        assert read_table(tmp_path / encoding / "items.parquet", "items")["ocr_cover"][0].as_py() == "Café table"
    assert found["utf-8"] == found["utf-8-sig"] == found["latin-1"]
    assert found["utf-8"]["rejects"] == {
        "query is another one but for case or invisible signs (row kept, as the first)": 2,
        "product_uid or relevance is not a number": 2,
    }


def test_recipe_takes_no_column_for_another_of_its_name(recipe, tmp_path):
    source = invented_csv(tmp_path / "train.csv", (*COLUMNS, "relevance"))
    with pytest.raises(InputError, match="column relevance is there 2 times; leave one"):
        recipe.convert(source, tmp_path / "out", any_file=True)


def test_recipe_names_every_missing_column(recipe, tmp_path):
    source = invented_csv(tmp_path / "train.csv", ("id", "product_uid", "title"))
    with pytest.raises(InputError) as caught:
        recipe.convert(source, tmp_path / "out", any_file=True)
    assert [p.split()[1] for p in caught.value.problems] == ["product_title", "search_term", "relevance"]
    assert not (tmp_path / "out").exists()
