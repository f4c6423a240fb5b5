"""Queries that differ in blanks, case or compatible forms are one query, from the log to the records' keys."""

import pyarrow.parquet as pq
import pytest
from hand_logs import DAY, T0, Always, candidate, feed, item, search, write, write_day
from whole_reading import CONFIG, everything, rows

from crops_jax.artifacts.folders import write_folder
from crops_jax.labels import LabelsConfig
from crops_jax.logs.checks import check_logs
from crops_jax.mining.train_day import mine
from crops_jax.records import RecordsConfig, RecordsReader, read_items, write_records
from crops_jax.records.candidates import read_groups


def mined(logs):
    with write_folder(logs / "mined", kind="mined") as out:
        mine(logs, out, Always(), CONFIG)
    return rows(logs / "mined/candidates.parquet")


SAME = [
    ("苹果\u3000手机", "苹果 手机"),
    ("苹果\u00a0手机", "苹果 手机"),
    ("苹果\u2003\u2003手机", " 苹果 手机\u3000"),
    ("苹果\u200b手机", "\ufeff苹果 手机"),
    ("iPhone Case", "iphone  case"),
    ("ｉＰｈｏｎｅ", "IPHONE"),
    ("ΦΩΣ", "φως"),
    ("STRASSE", "straße"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_a_respelling_is_no_reformulation(tmp_path, a, b):
    write(tmp_path / "items.parquet", "items", [item(0, "t"), item(1, "t u")])
    searches = [search("a", 1, a, T0), search("b", 1, b, T0 + 30_000), search("c", 1, "other", T0 + 60_000)]
    shown = [candidate("a", 0), candidate("b", 1, clicked=True), candidate("c", 0, clicked=True)]
    write_day(tmp_path, "train", searches, shown, [feed(2, 0, T0)])
    found = mined(tmp_path)
    assert {(r["item_id"], r["evidence"]) for r in found if r["source"] == "P1"} == {(0, "c")}
    assert len({r["query"] for r in found}) == 2  # one spelling stands for both


def two_spellings(logs):
    """Three searches of one query, two of them as "iPhone Case"; user 3 types "iphone  case", and watched item 3."""
    write(logs / "items.parquet", "items", [item(i, f"iphone case {i}") for i in range(6)])
    searches = [search("a", 1, "iPhone Case", T0), search("b", 2, "iPhone Case", T0 + 1),
                search("c", 3, "iphone  case", T0 + 2)]  # fmt: skip
    shown = [candidate("a", 0, clicked=True), candidate("b", 1), candidate("c", 0), candidate("c", 2, "ranked")]
    write_day(logs, "train", searches, shown, [feed(3, 3, T0 + 5)])
    return logs


def test_spellings_share_labels_pool_and_key_and_keep_their_text(tmp_path):
    logs = two_spellings(tmp_path)
    found = mined(logs)
    assert {r["query"] for r in found} == {"iPhone Case"}  # the spelling of most searches
    assert {r["typed"] for r in found if r["request_id"] == "c"} == {"iphone  case"}
    assert {r["typed"] for r in found if r["request_id"] != "c"} == {None}
    groups = list(read_groups(logs / "mined/candidates.parquet", LabelsConfig()))
    # Item 0 was clicked after one spelling: label 4 in all. Item 3, of the feed, is in the pool of all.
    told = {g.request_id: (g.query, dict(zip(g.item_id.tolist(), g.label.tolist(), strict=True))) for g in groups}
    assert told == {
        "a": ("iPhone Case", {0: 4, 3: 4}),
        "b": ("iPhone Case", {3: 4, 1: 3}),
        "c": ("iphone  case", {0: 4, 3: 4, 2: 2}),
    }
    with write_folder(logs / "records", kind="records") as out:
        write_records(groups, read_items(logs), out, RecordsConfig(shards=1, validation_share=0), 0)
    records = RecordsReader(logs / "records").read(range(3))
    assert len({r.query_key for r in records}) == 1 and {r.query for r in records} == {"iPhone Case", "iphone  case"}


def test_equal_counts_take_the_smallest_spelling(tmp_path):
    write(tmp_path / "items.parquet", "items", [item(0, "t")])
    searches = [search("a", 1, "b C", T0), search("b", 2, "B c", T0 + 1)]
    write_day(tmp_path, "train", searches, [candidate("a", 0), candidate("b", 0)], [feed(3, 0, T0)])
    assert {(r["query"], r["typed"]) for r in mined(tmp_path)} == {("B c", None), ("B c", "b C")}


def test_logs_of_one_spelling_a_query_have_no_further_column(tmp_path):
    logs = two_spellings(tmp_path)
    searches = pq.read_table(logs / "train/searches.parquet").to_pylist()
    write(logs / "train/searches.parquet", "searches", [r | {"query": "iPhone Case"} for r in searches])
    assert "typed" not in mined(logs)[0]


def test_test_sets_know_the_spellings(tmp_path):
    logs = two_spellings(tmp_path)
    late = T0 + 2 * DAY
    searches = [search("t1", 1, "IPHONE\u3000CASE", late), search("t2", 1, "iphone case 4", late + 10)]
    searches += [search(f"t{user}", user, "iphone  case", late + 20) for user in (3, 4)]  # saw nothing
    shown = [candidate("t1", 1, clicked=True), candidate("t2", 4, clicked=True)]
    write_day(logs, "test", searches, shown, [feed(1, 4, late)])
    judged = [{"query": "iphone case", "item_id": i, "grade": 3.0} for i in range(6)]
    write(logs / "judgments.parquet", "judgments", judged)
    found = everything(logs, theta=Always)
    for name in ("ct", "ranked", "shown"):
        assert [(r["event_id"], r["query"], r["item_id"]) for r in found[name]] == [
            ("t1", "IPHONE\u3000CASE", 1), ("t2", "iphone case 4", 4)
        ]  # fmt: skip
    assert [(r["event_id"], r["query"], r["item_id"]) for r in found["qr"]] == [("t1", "IPHONE\u3000CASE", 4)]
    # Items 0 (train day) and 1 (both days) were shown for the query in some spelling; 2 was only ranked.
    assert [r["item_id"] for r in found["unexposed"]] == [2, 3, 4, 5]
    assert {r["query"] for r in found["unexposed"]} == {"iphone  case"}  # the day's commonest


@pytest.mark.parametrize("blank", ["\u3000", "\u00a0\u2003", "\u200b", "\ufeff\u180e", "\u00ad\u200d", "\u3164"])
def test_what_is_blank_is_no_text(tmp_path, blank):
    write(tmp_path / "items.parquet", "items", [item(0, "t"), item(1, blank) | {"keyword": blank * 2}])
    for day, start in (("train", T0), ("test", T0 + DAY)):
        ids = [f"{day}{i}" for i in range(3)]
        queries = ("t", "t x", blank)
        searches = [search(r, 1, query, start + i) for i, (r, query) in enumerate(zip(ids, queries, strict=True))]
        shown = [candidate(r, 0, clicked=True) for r in ids] + [candidate(ids[0], 1, position=2, clicked=True)]
        write_day(tmp_path, day, searches, shown, [feed(2, 0, start)])
    rejects = check_logs(tmp_path, "train").rejects
    assert (rejects["query_empty"].count, rejects["item_without_text"].count) == (1, 1)
    assert {(r["request_id"], r["item_id"]) for r in mined(tmp_path) if r["request_id"]} == {
        ("train0", 0),
        ("train1", 0),
    }
    found = everything(tmp_path)
    assert {r["event_id"] for r in found["ct"]} == {"test0", "test1"}
    assert found["corpus"] == [(0, "t")]
