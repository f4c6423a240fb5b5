"""The recipe for one's own click-stream: one event a row, sessions and requests found where they are not told."""

import csv
import gzip
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click_streams import facts_of, parquet, rows
from foreign_sets import DAYS, EACH_DAY, ITEMS_A_TOPIC, TOPICS, USERS, clicks, moment, ms, topic_of
from hand_logs import recast
from recipes import load_recipe

from crops_jax import mine, write_records
from crops_jax.artifacts.manifest import verify
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.logs.foreign import Found
from crops_jax.logs.importing import Split
from crops_jax.mining.config import MiningConfig, WorldKnowledgeConfig
from crops_jax.models.config import ThetaConfig

NO_TIME = "events: no time that can be read, from 2000 to 2100"


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("clickstream")


def text_file(path: Path, rows: list[dict], names: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [names.get(name, name) for name in rows[0]])
        writer.writeheader()
        writer.writerows({names.get(name, name): value for name, value in row.items()} for row in rows)
    return path


def test_events_become_searches_results_and_feed(recipe, tmp_path):
    facts = recipe.convert(*parquet(tmp_path / "in", *clicks()), tmp_path / "logs")
    assert facts["rejects"] == {} and facts["rows"]["items"] == ITEMS_A_TOPIC * TOPICS
    for day, days in {"train": DAYS - 2, "validation": 1, "test": 1}.items():
        assert facts["rows"][day] == {table: days * n for table, n in EACH_DAY.items()}
    verify(tmp_path / "logs")
    found, topic, at = facts_of(tmp_path / "logs"), topic_of(5, 3), moment(5, 3)
    asked = [row for row in found["searches"] if row[0] == "u5"]
    assert asked == [("u5", f"topic{topic} how", ms(at)), ("u5", f"topic{topic} how now", ms(at) + 60_000)]
    assert [row[3:] for row in found["shown"] if row[:2] == asked[0][:2]] == [
        (f"v_{topic}_{p}", "exposed", p + 1, p == 0, False, 12_500 if p == 0 else 0) for p in range(3)
    ]
    watched = [row for row in found["feed"] if row[0] == "u5"]
    assert watched == [("u5", f"v_{topic}_1", ms(at) + 3_600_000, False, True, 0, 31_500)]
    item = next(row for row in rows(tmp_path / "logs", "items") if row["item_id"] == "v_2_3")
    assert (item["ocr_cover"], item["keyword"], item["play_cnt"]) == ("topic2 how now 3", "topic2|how", 30)


@pytest.mark.slow
def test_other_names_text_files_and_offsets_give_the_same_logs(recipe, tmp_path):
    events, items = clicks()
    recipe.convert(*parquet(tmp_path / "in", events, items), tmp_path / "one")
    words = {"search": "query_submit", "impression": "view", "click": "tap", "like": "heart", "watch": "play"}
    told = [{**row, "time": (row["time"] + timedelta(hours=8)).strftime("%Y-%m-%dT%H:%M:%S.%f+08:00"),
             "event": words[row["event"]]} for row in events]  # fmt: skip
    names = {"time": 'at "UTC"', "item": "sku", "user": 'u"id', "tags": 'the "tags"', "title": '"'}
    lists = [{**row, "tags": "|".join(row["tags"])} for row in items]
    kinds = {name: (word, f"{word} again") for name, word in words.items()}
    recipe.convert(text_file(tmp_path / "e.csv", told, names), text_file(tmp_path / "i.csv", lists, names),
                   tmp_path / "two", columns=names, kinds=kinds)  # fmt: skip
    numbers = [{**row, "time": row["time"].timestamp(), "surface": f"{row['surface'].upper()} "} for row in events]
    recipe.convert(*parquet(tmp_path / "n", numbers, items), tmp_path / "three", time_unit="s")
    known = [{**row, "session": f"s{row['user']}{row['time'].day}", "request": None} for row in events]
    recipe.convert(*parquet(tmp_path / "s", known, items), tmp_path / "four")
    first = facts_of(tmp_path / "one")
    for other in ("two", "three", "four"):
        assert facts_of(tmp_path / other) == first


def test_without_a_surface_the_session_tells_what_was_searched(recipe, tmp_path):
    events, items = clicks()
    for row in events:
        del row["surface"]
    scrolls = {"user": "scroller", "item": "v_0_0", "query": None, "seconds": None, "event": "impression"}
    events += [scrolls | {"time": moment(0, day)} for day in range(DAYS)]
    recipe.convert(*parquet(tmp_path / "in", events, items), tmp_path / "logs")
    found = facts_of(tmp_path / "logs")  # the feed comes 59 minutes after the search: another session
    assert len(found["feed"]) == USERS + 1 and len(found["shown"]) == 4 * USERS
    recipe.convert(*parquet(tmp_path / "in", events, items), tmp_path / "long", session_gap_s=7200)
    with_feed = rows(tmp_path / "long", "test/candidates")
    assert len(with_feed) == 5 * USERS
    assert [row["user_id"] for row in rows(tmp_path / "long", "test/feed")] == ["scroller"]


def test_what_cannot_be_used_is_counted_by_reason(recipe, tmp_path):
    events, items = clicks()
    at = moment(0, 3, 7200)
    row = {"time": at, "user": "new", "surface": "search", "item": "v_0_0", "query": None, "seconds": None}
    events += [
        row | {"event": "click"}, row | {"event": "impression", "surface": "home", "item": None},
        row | {"event": "click", "surface": "home", "user": " "}, row | {"event": "purchase"},
        row | {"event": "click", "surface": "home", "item": "gone"},
        row | {"event": "click", "surface": "home", "time": moment(0, 40_000)},
        *[row | {"event": "watch", "surface": "home", "seconds": 1.0}] * 2,
    ]  # fmt: skip
    items += [items[0] | {"title": "A first by its letters", "description": None}, items[0] | {"item": None}]
    facts = recipe.convert(*parquet(tmp_path / "in", events, items), tmp_path / "logs")
    assert {reason: reject["rows"] for reason, reject in facts["rejects"].items()} == {
        "events: clicked, liked or watched without an impression (taken as shown)": 2,
        "events: event that was sent again": 1,
        "events: neither user nor session": 1,
        "events: no item": 1,
        NO_TIME: 1,
        "events: of items that the catalogue lacks": 1,
        "events: of the kind purchase": 1,
        "events: results without a search": 1,
        "items: item listed again (the first is taken)": 1,
        "items: no id": 1,
    }
    assert items[0]["title"] in {row["ocr_cover"] for row in rows(tmp_path / "logs", "items")}
    (watched,) = [row for row in rows(tmp_path / "logs", "test/feed") if row["user_id"] == "new"]
    assert (watched["item_id"], watched["watch_ms"]) == ("v_0_0", 1000)


@pytest.mark.parametrize("odd", ["inf", "1e30", "nan", "-1e300", "1.68475E+09"])
def test_one_time_that_is_none_is_counted(recipe, tmp_path, odd):
    events, items = clicks()
    seconds = [row | {"time": float(odd) if n == 3 else row["time"].timestamp()} for n, row in enumerate(events)]
    texts = [row | {"time": odd if n == 3 else row["time"].isoformat()} for n, row in enumerate(events)]
    told = seconds if odd in ("inf", "nan") else texts
    facts = recipe.convert(*parquet(tmp_path / "in", told, items), tmp_path / "logs", time_unit="s")
    assert {r: n["rows"] for r, n in facts["rejects"].items()} == {NO_TIME: 1}
    (left_out,) = facts["rejects"].values()
    assert re.fullmatch(r"row \d+: -?(inf|nan|1e\+?30|1e300|1\.68475E\+09)", left_out["example"])


@pytest.mark.parametrize("zone", ["+08:00", "+0800", "+08", " +0800", " +08:00", " Asia/Shanghai"])
def test_a_time_of_another_zone_is_read_in_each_of_its_forms(recipe, tmp_path, zone):
    events, items = clicks()
    there = [row | {"time": f"{row['time'] + timedelta(hours=8):%Y-%m-%d %H:%M:%S}{zone}"} for row in events]
    assert recipe.convert(*parquet(tmp_path / "in", there, items), tmp_path / "logs")["rejects"] == {}
    asked = {row["ts"] for row in rows(tmp_path / "logs", "train/searches")}
    assert {ms(moment(5, 0)), ms(moment(5, 0, 60))} <= asked


def test_a_name_of_a_zone_that_may_be_two_zones_is_counted(recipe, tmp_path):
    events, items = clicks()
    told = [
        row | {"time": f"{row['time']:%Y-%m-%d %H:%M:%S}{' CST' if n == 3 else ' UTC'}"} for n, row in enumerate(events)
    ]
    facts = recipe.convert(*parquet(tmp_path / "in", told, items), tmp_path / "logs")
    assert {r: n["rows"] for r, n in facts["rejects"].items()} == {NO_TIME: 1}


def test_texts_that_are_stored_as_bytes_are_texts(recipe, tmp_path):
    events, items = ([{**row, name: row[name] and row[name].replace("topic", "话题")} for row in rows_of]
                     for rows_of, name in zip(clicks(), ("query", "title"), strict=True))  # fmt: skip
    for row in events:
        row["user"] = "é" + row["user"][1:].zfill(2)  # of one length, as hashes are
    places = parquet(tmp_path / "in", events, items)
    recipe.convert(*places, tmp_path / "text")
    recast(places[0], "part-1", query=pa.binary())
    recast(places[0], "part-2", query=lambda texts: texts.cast(pa.binary()).cast(pa.binary_view()))
    recast(places[0], "part-0", user=lambda texts: texts.cast(pa.binary()).cast(pa.binary(4)))
    recast(tmp_path / "in", "items", title=pa.large_binary())
    recipe.convert(*places, tmp_path / "bytes")
    for name in ("train/searches", "items"):
        assert rows(tmp_path / "bytes", name) == rows(tmp_path / "text", name)
    assert rows(tmp_path / "bytes", "train/searches")[0]["query"].startswith("话题")


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.string()])
def test_ids_that_a_float_has_rounded_are_refused(recipe, tmp_path, kind):
    events, items = clicks()
    told_so = "is an id that a float has rounded: write ids as whole numbers or texts"
    least = 2**24 if kind == pa.float32() else 2**53

    def written(users):
        return pa.array([f"{user:.1f}" for user in users.to_pylist()])

    for more, fits in ((0, False), (-1000, True)):
        told = [row | {"user": float(least + more + int(row["user"][1:]))} for row in events]
        folder = tmp_path / str(more)
        events_at, items_at = parquet(folder, told, items)
        for part in range(3):
            recast(events_at, f"part-{part}", user=written if kind == pa.string() else kind)
        if fits:
            assert recipe.convert(events_at, items_at, folder / "logs")["rejects"] == {}
            assert len({row["user_id"] for row in rows(folder / "logs", "train/searches")}) == USERS
        else:
            with pytest.raises(InputError, match=told_so):
                recipe.convert(events_at, items_at, folder / "logs")


def test_types_that_would_be_read_as_others_are_refused(recipe, tmp_path):
    events, items = clicks()
    given = {
        "seconds": [row | {"seconds": timedelta(seconds=12.5)} for row in events],
        "query": [row | {"query": [row["query"]]} for row in events],
    }
    tags = [row | {"tags": [{"n": tag} for tag in row["tags"]]} for row in items]
    with pytest.raises(InputError, match=r"column tags is list.*struct.*; write it as text or as a number"):
        recipe.convert(*parquet(tmp_path / "tags", events, tags), tmp_path / "logs")
    for name, told in given.items():
        with pytest.raises(InputError, match=f"column {name} is (duration|list).*; write it as text or as a number"):
            recipe.convert(*parquet(tmp_path / name, told, items), tmp_path / "logs")
    events_at, items_at = parquet(tmp_path / "in", [row | {"time": row["time"].timestamp()} for row in events], items)
    for part in range(3):
        recast(events_at, f"part-{part}", time=pa.float32())
    with pytest.raises(InputError, match="column time is float, which tells no two minutes apart"):
        recipe.convert(events_at, items_at, tmp_path / "logs", time_unit="s")


def test_what_somebody_put_beside_the_logs_is_not_removed(recipe, tmp_path):
    places, logs = parquet(tmp_path / "in", *clicks()), tmp_path / "logs"
    recipe.convert(*places, logs)
    recipe.convert(*places, logs)
    (logs / "judgments.parquet").write_bytes(b"of somebody")
    with pytest.raises(InputError, match=r"holds judgments\.parquet, which no import wrote and this one would remove"):
        recipe.convert(*places, logs)
    assert (logs / "judgments.parquet").read_bytes() == b"of somebody"


def test_a_csv_with_the_index_that_pandas_writes_is_read(recipe, tmp_path):
    events, items = clicks()
    told = [{"": n} | row | {"time": row["time"].isoformat()} for n, row in enumerate(events)]
    listed = [row | {"tags": "|".join(row["tags"])} for row in items]
    places = text_file(tmp_path / "events.csv", told, {}), text_file(tmp_path / "items.csv", listed, {})
    facts = recipe.convert(*places, tmp_path / "logs")
    assert facts["rejects"] == {} and facts["rows"]["train"]["searches"] == (DAYS - 2) * EACH_DAY["searches"]


def test_a_column_that_is_there_twice_is_refused(recipe, tmp_path):
    events_at, items_at = parquet(tmp_path / "in", *clicks())
    file = events_at / "part-0.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column("query", table["query"]), file)
    with pytest.raises(InputError, match="query: columns that are there twice; leave one of each"):
        recipe.convert(events_at, items_at, tmp_path / "logs")


def test_numbers_that_are_none_are_counted_and_left_empty(recipe, tmp_path):
    events, items = clicks()
    told = [row | {"seconds": str(row["seconds"] or ""), "position": ""} for row in events]
    for n, odd in enumerate(("-1", "inf", "soon", "nan")):  # the last is how pandas writes none
        told[n] |= {"seconds": odd, "position": odd}
    items[0] |= {"views": -5}
    facts = recipe.convert(text_file(tmp_path / "e.csv", told, {}), parquet(tmp_path / "in", events, items)[1],
                           tmp_path / "logs")  # fmt: skip
    assert {reason: reject["rows"] for reason, reject in facts["rejects"].items()} == {
        "events: position that is no number (left empty; rows kept)": 2,
        "events: seconds that are no number from 0 (left empty; rows kept)": 3,
        "items: views, likes or duration_s that is no number from 0 (left empty; rows kept)": 1,
    }


def test_why_rows_were_left_out_is_told_where_the_import_fails(recipe, tmp_path, capsys):
    events, items = clicks()
    with pytest.raises(InputError) as error:
        recipe.convert(*parquet(tmp_path / "in", [row | {"event": "tap"} for row in events], items), tmp_path / "logs")
    (problem,) = error.value.problems  # notes are none
    assert [line.partition(" (")[0] for line in problem.split("\n  ")] == [
        "no usable row is left; look at the files, and at what was left out",
        f"left out: {len(events)} x events: of the kind tap",
    ]
    strange = [row | {"item": f"id-{row['item']}"} for row in items]
    with pytest.raises(InputError, match="candidates: an empty log"):
        recipe.convert(*parquet(tmp_path / "in", events, strange), tmp_path / "logs")
    acts = sum(row["item"] is not None for row in events)
    assert f"left out: {acts} x events: of items that the catalogue lacks" in capsys.readouterr().out


def test_a_session_without_a_user_is_somebody(recipe, tmp_path):
    events, items = clicks()
    for row in events:
        row["session"] = f"{row['user']}-{row['time']:%d}"
        row["user"] = None if row["user"] == "u7" else row["user"]
    recipe.convert(*parquet(tmp_path / "in", events, items), tmp_path / "logs")
    users = {row["user_id"] for row in rows(tmp_path / "logs", "test/searches")}
    assert users == {f"u{n}" for n in range(USERS) if n != 7} | {f"session u7-{moment(7, 3):%d}"}


def test_wrong_columns_events_and_files_are_clear_errors(recipe, tmp_path):
    files = parquet(tmp_path / "in", *clicks())
    for change, said in (
        ({"columns": {"time": "when"}}, "no column when; there is time, user"),
        ({"columns": {"session": "s"}}, r"no column s \(named for session\)"),
        ({"columns": {"tiem": "when"}}, "--column tiem: there is no such column; they are description,"),
        ({"kinds": {"tap": ("x",)}}, "--event tap: is none of search, impression"),
        ({"kinds": {"click": ("impression",)}}, "--event: 'impression' stands for two events"),
        ({"session_gap_s": 0.0}, "--session-gap 0.0: is not above zero"),
        ({"session_gap_s": float("inf")}, "--session-gap inf: is not above zero, or endless"),
        ({"kinds": {"search": ("none",)}}, "no usable row is left"),
        ({"split": Split(1, 0, 1, utc_offset_h=99.0)}, "--utc-offset 99: is not between -14 and 14 hours"),
    ):
        with pytest.raises(InputError, match=said):
            recipe.convert(*files, tmp_path / "logs", **change)
    with pytest.raises(InputError, match="no such file"):
        recipe.convert(tmp_path / "none", files[1], tmp_path / "logs")
    (tmp_path / "twice.csv").write_bytes(b"time,user,event,item,query\r\r\n1,u,click,1,a\r\r\n")
    with pytest.raises(InputError, match="lines end in two carriage returns and a line feed"):
        recipe.convert(tmp_path / "twice.csv", files[1], tmp_path / "logs")


@pytest.mark.parametrize(("change", "said"), [
    (lambda data: data.replace(b"\n", b"\r\n", 5), r"events\.csv: its lines do not all end alike"),
    (lambda data: data.replace(b",topic", b',"topic', 1), r"line 2: a quotation mark there takes other lines"),
    (lambda data: gzip.compress(data), r"events\.csv: is packed by gzip: its name has to end in \.csv\.gz"),
    (lambda data: b"\n" + data, r"events\.csv: its first line is blank, where the names of the columns have to stand"),
    (lambda data: b"", r"events\.csv: is empty"),
    (lambda data: gzip.compress(data) + bytes(512), r"events\.csv\.gz: holds more than gzip's own bytes"),
    (lambda data: re.sub(rb" \d\d:[0-9:.]+", b"", data), NO_TIME + r" .*row 1: 2023-05-22"),
], ids=["line ends", "quote", "packed", "blank", "empty", "padded", "dates"])  # fmt: skip
def test_a_csv_that_cannot_be_read_is_told_with_its_name(recipe, tmp_path, change, said):
    events, items = clicks()
    for row in events:
        row["time"] = str(row["time"])
    data = text_file(tmp_path / "told.csv", events, {}).read_bytes().replace(b"\r\n", b"\n")
    path = tmp_path / ("events.csv.gz" if change(data).endswith(bytes(512)) else "events.csv")
    path.write_bytes(change(data))
    with pytest.raises(InputError, match=said):
        recipe.convert(path, parquet(tmp_path / "in", events, items)[1], tmp_path / "logs")


def test_blank_lines_of_windows_are_no_events(recipe, tmp_path):
    events, items = clicks()
    for row in events:
        row["time"] = str(row["time"])
    path, places = text_file(tmp_path / "events.csv", events, {}), parquet(tmp_path / "in", events, items)
    whole = recipe.convert(path, places[1], tmp_path / "one")
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\r\n\r\n", 3))
    assert recipe.convert(path, places[1], tmp_path / "two")["rows"] == whole["rows"]


@pytest.mark.parametrize("kind", [pa.date32(), pa.time64("us")])
def test_a_column_that_holds_no_moments_is_refused(recipe, tmp_path, kind):
    places = parquet(tmp_path / "in", *clicks())
    for part in (1, 2):
        recast(places[0], f"part-{part}", time=kind)
    with pytest.raises(InputError, match=r"column time is .*, a date or a time of day alone; write timestamps"):
        recipe.convert(*places, tmp_path / "logs")


@pytest.mark.parametrize("none", [r"\N", "NULL", "null", "None", "nan", "NaN", "<NA>"])
def test_what_databases_and_pandas_write_for_nothing_is_nobody(recipe, tmp_path, none):
    events, items = clicks()
    mine = [row for row in events if row["user"] != "u7"]
    facts = recipe.convert(*parquet(tmp_path / "in", mine, items), tmp_path / "one")
    for row in events:
        row["user"] = none if row["user"] == "u7" else row["user"]
        row["session"] = None
    found = recipe.convert(*parquet(tmp_path / "in", events, items), tmp_path / "two")
    assert found["rejects"]["events: neither user nor session"]["rows"] == len(events) - len(mine)
    assert found["rows"] == facts["rows"]


def experiment_in(workdir: Path) -> Experiment:
    mining = MiningConfig(world_knowledge=WorldKnowledgeConfig(enabled=False))
    return replace(Experiment(), workdir=str(workdir), world=None, mining=mining,
                   theta=ThetaConfig(source="word_overlap"))  # fmt: skip


def test_the_logs_are_mined(recipe, tmp_path):
    recipe.convert(*parquet(tmp_path / "in", *clicks()), tmp_path / "work" / "logs")
    experiment = experiment_in(tmp_path / "work")
    found = pq.read_table(mine.run(experiment) / "candidates.parquet").to_pylist()
    topic = topic_of(0, 0)
    of_query = {(r["source"], r["platform_item_id"]) for r in found if r["query"] == f"topic{topic} how"}
    assert of_query == {("P0", f"v_{topic}_0"), ("X3", f"v_{topic}_1"), ("X3", f"v_{topic}_2"), ("P1", f"v_{topic}_3"),
                        ("P2", f"v_{topic}_1")}  # fmt: skip


def test_a_shop_without_a_feed_has_no_p2_and_all_else(recipe, tmp_path, capsys):
    events, items = clicks()
    searched = [row for row in events if row["surface"] == "search"]
    facts = recipe.convert(*parquet(tmp_path / "in", searched, items), tmp_path / "work" / "logs")
    assert facts["rows"]["train"] == {"searches": 96, "candidates": 192, "feed": 0}
    assert capsys.readouterr().out.count("the feed is empty, so there will be no P2\n") == 3  # a day
    experiment = experiment_in(tmp_path / "work")
    mined = mine.run(experiment)
    assert set(pq.read_table(mined / "candidates.parquet")["source"].to_pylist()) == {"P0", "X3", "P1"}
    mine.run_testsets(experiment)
    verify(write_records.run(experiment))


def test_floats_that_stand_for_texts_have_no_nan_and_no_point(recipe, tmp_path):
    events, items = clicks()
    for row in events:  # as pandas writes numbers beside nothing
        row["query"] = 5.0 if row["event"] == "search" else float("nan")
    for number, row in enumerate(items):
        row |= {"title": float(number), "description": float("nan")}
    recipe.convert(*parquet(tmp_path / "in", events, items), tmp_path / "logs")
    assert {row["query"] for row in rows(tmp_path / "logs", "train/searches")} == {"5"}
    told = rows(tmp_path / "logs", "items")
    assert {row["photo_caption"] for row in told} == {None}
    assert {row["ocr_cover"] for row in told} == {str(number) for number in range(len(items))}


@pytest.mark.parametrize(("text", "hour"), [
    ("2023-05-22T18:00+08:00", 10), ("2023-05-22T18:00:00+08:00:00", 10), ("2023-05-22 10:00:00,250", 10),
    ("2023-05-22 10:00", 10), ("2023-05-22T10:00Z", 10), ("2023-05-22 18:00:00,250 +0800", 10),
])  # fmt: skip
def test_times_without_seconds_with_a_comma_or_an_offset_of_seconds_are_read(recipe, text, hour):
    import duckdb

    table = Found("events", Path(), (), {"time": pa.string()}, ({"time": pa.string()},))
    sql = f"SELECT {recipe._moment(table, 'time', (1, 1))} FROM (SELECT ? AS time)"
    (found,) = duckdb.connect().execute("SET TimeZone='UTC'; " + sql, [text]).fetchone()
    assert found // 1000 == datetime(2023, 5, 22, hour, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(("told", "unit", "ms"), [
    (1_749_722_400_000_999_999, "ns", 1_749_722_400_000), ("1749722400000999999", "ns", 1_749_722_400_000),
    (1_749_722_400, "s", 1_749_722_400_000), ("1749722400.25", "s", 1_749_722_400_250),
    (1_749_722_400_000_999, "us", 1_749_722_400_000), ("1.7497224001235E+12", "ms", 1_749_722_400_123),
    ("1.74972E+12", "ms", None), ("1.74972E+09", "s", None), ("1.749722400E+09", "s", 1_749_722_400_000),
    ("1.74972241e+18", "ns", 1_749_722_410_000), ("9" * 38, "s", None), (2**62, "s", None),
])  # fmt: skip
def test_a_time_in_numbers_is_read_to_the_millisecond_or_not_at_all(recipe, told, unit, ms):
    import duckdb

    kind = pa.string() if isinstance(told, str) else pa.int64()
    table = Found("events", Path(), (), {"time": kind}, ({"time": kind},))
    sql = f"SELECT {recipe._moment(table, 'time', recipe.UNITS[unit])} FROM (SELECT ? AS time)"
    assert duckdb.connect().execute("SET TimeZone='UTC'; " + sql, [told]).fetchone() == (ms,)


def test_decimals_that_do_not_fit_64_bits_are_ids_as_texts(recipe, tmp_path):
    events, items = clicks()
    number = {row["item"]: 2**64 - 1 - n for n, row in enumerate(items)}
    for row in (*events, *items):
        row["item"] = row["item"] and str(number[row["item"]])
    recipe.convert(*parquet(tmp_path / "text", events, items), tmp_path / "of_text")
    places = parquet(tmp_path / "in", events, items)
    for folder, stem in (*((places[0], f"part-{n}") for n in range(3)), (tmp_path / "in", "items")):
        recast(folder, stem, item=pa.decimal128(20, 0))
    assert recipe.convert(*places, tmp_path / "logs")["rejects"] == {}
    for name in ("items", "train/candidates"):
        assert rows(tmp_path / "logs", name) == rows(tmp_path / "of_text", name)


def test_bytes_that_are_no_text_are_refused_by_their_column(recipe, tmp_path):
    places = parquet(tmp_path / "in", *clicks())
    for part in range(3):
        recast(places[0], f"part-{part}", user=lambda users: pa.array([b"\xff" * 16] * len(users), pa.binary(16)))
    with pytest.raises(InputError, match=r"column user holds bytes that are not UTF-8: write it as text$"):
        recipe.convert(*places, tmp_path / "logs")


def test_a_split_into_endless_days_is_refused(recipe, tmp_path):
    with pytest.raises(InputError, match="needs 1, 0, 1 or more, and at most 10000 each"):
        recipe.convert(*parquet(tmp_path / "in", *clicks()), tmp_path / "logs", split=Split(train=10**9))


def test_files_of_one_name_are_told_apart(recipe, tmp_path):
    events, items = clicks()
    for row in events:
        row["time"] = str(row["time"])
    for day, broken in (("1", 1), ("2", 2)):
        (tmp_path / f"events/day={day}").mkdir(parents=True)
        path = text_file(tmp_path / f"events/day={day}/part-0.csv", events if day == "1" else events[:3], {})
        path.write_bytes(path.read_bytes() + b"1,2\r\n" * broken)
    facts = recipe.convert(tmp_path / "events", parquet(tmp_path / "in", events, items)[1], tmp_path / "logs")
    told = {name: left["rows"] for name, left in facts["rejects"].items() if "broken" in name}
    assert told == {f"events: day={n}/part-0.csv: the line is broken (missing columns)": n for n in (1, 2)}
    assert sum(name.startswith("events: ") for name in facts["files"]) == 2


def test_a_broken_line_that_holds_a_text_of_two_lines_is_counted(recipe, tmp_path):
    events, items = clicks()
    for row in items:
        row["description"] = "first line\nsecond line"
    path = text_file(tmp_path / "items.csv", [row | {"tags": "|".join(row["tags"])} for row in items], {})
    path.write_bytes(path.read_bytes() + b'x,"one\r\ntwo"\r\n')
    facts = recipe.convert(parquet(tmp_path / "in", events, items)[0], path, tmp_path / "logs")
    assert [left["rows"] for name, left in facts["rejects"].items() if "broken" in name] == [1]
    assert facts["rows"]["items"] == len(items)


def test_ids_that_a_spreadsheet_has_cut_are_refused(recipe, tmp_path):
    events, items = clicks()
    for row in events:
        row["user"] = "1.03656E+11"
    with pytest.raises(InputError, match=r"1\.03656E\+11 is an id that a float has rounded"):
        recipe.convert(*parquet(tmp_path / "in", events, items), tmp_path / "logs")
