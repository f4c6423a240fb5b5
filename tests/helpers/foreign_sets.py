"""Tiny data sets with the schemas of public ones: their file names, columns, types and oddities. All rows are invented.

Topic k of `TOPICS` has the tokens 10k to 10k + 2 and four items. On each of four days every user asks for a topic with
two tokens, is shown items 0 to 2 of it and clicks the first, asks again with a third token 60 s later and clicks item
3, and watches item 1 in the feed. The user's topic moves on by one a day.
"""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TOPICS, USERS, DAYS, ITEMS_A_TOPIC = 12, 24, 4, 4
EACH_DAY = {"searches": 2 * USERS, "candidates": 4 * USERS, "feed": USERS}  # rows of the logs
BEIJING = timedelta(hours=8)
FIRST = datetime(2023, 5, 22, 10, 0, 0, tzinfo=UTC)  # 18:00 in Beijing


def topic_of(user: int, day: int) -> int:
    return (user + day) % TOPICS


def item_of(topic: int, place: int) -> int:
    """Item ids are as large as KuaiSAR's own."""
    return 103_656_000_000 + ITEMS_A_TOPIC * topic + place


def moment(user: int, day: int, seconds: int = 0) -> datetime:
    return FIRST + timedelta(days=day, minutes=user, seconds=seconds)


def clock(when: datetime) -> str:
    return (when + BEIJING).strftime("%Y-%m-%d %H:%M:%S")


def ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)


KUAISAR = {
    "src_inter": ["user_id", "search_session_id", "search_session_time", "search_session_timestamp", "keyword",
                  "search_source", "item_id", "click_cnt", "item_type"],
    "rec_inter": ["user_id", "item_id", "playing_time", "duration_ms", "time", "timestamp", "click", "forward", "like",
                  "follow", "search", "search_item_related"],
    "item_features": ["item_id", "caption", "author_id", "item_type", "upload_time", "upload_type",
                      *(f"{level}_level_category_{part}" for level in ("first", "second", "third", "fourth")
                        for part in ("id", "name", "name_en"))],
}  # fmt: skip


def kuaisar(folder: Path) -> dict[str, list[list]]:
    """The rows of KuaiSAR's three files that are read, as lists in the order of their columns."""
    search, feed = [], []
    for day in range(DAYS):
        for user in range(USERS):
            topic, session = topic_of(user, day), 2 * (day * USERS + user)
            tokens = [10 * topic, 10 * topic + 1, 10 * topic + 2]
            for again, shown in enumerate(((0, 1, 2), (3,))):
                when = moment(user, day, 60 * again)
                for place in shown:
                    asked = [user, session + again, clock(when), float(ms(when)), tokens[: 2 + again], "USER_INPUT"]
                    search.append([*asked, item_of(topic, place), int(place in (0, 3)), "VIDEO"])
            when = moment(user, day, 1800)
            feed.append([user, item_of(topic, 1), 15_000.0, 30_000.0, clock(when), float(ms(when)), 1, 0, 0, 0, 0, 0])
    items = [
        [item_of(topic, place), [10 * topic, 10 * topic + 1, 10 * topic + 2, 5000 + place], 7, "NORMAL", "2023-04-22",
         "LongImport", 9, "搞笑", "Funny", 136, "搞笑段子", "Funny joke", 0, "空", "empty", 0, "空", "empty"]
        for topic in range(TOPICS) for place in range(ITEMS_A_TOPIC)
    ]  # fmt: skip
    rows = {"src_inter": search, "rec_inter": feed, "item_features": items}
    write_kuaisar(folder, rows)
    return rows


def write_kuaisar(folder: Path, rows: dict[str, list[list]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in rows.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(KUAISAR[name])
            writer.writerows(table)


def _results(stamp: str) -> pa.DataType:
    acts = [(name, pa.int64()) for name in ("click", "like", "collect", "comment", "share")]
    return pa.list_(pa.struct([("note_idx", pa.int64()), ("position", pa.int64()), *acts, ("page_time", pa.float64()),
                               (stamp, pa.int64())]))  # fmt: skip


def shown(note: int, position: int, stamp: int, stamp_name: str = "search_timestamp", **acts) -> dict:
    """One entry of Qilin's lists of results."""
    none = dict.fromkeys(("click", "like", "collect", "comment", "share"), 0)
    return {"note_idx": note, "position": position, **none, "page_time": -1.0, stamp_name: stamp} | acts


def qilin(folder: Path, feed_stamp: str = "request_timestamp") -> dict[str, list[dict]]:
    """The rows of Qilin's tables that are read. Its own test split holds the searches of every fifth user."""
    rows: dict[str, list[dict]] = {
        f"{kind}_{part}": [] for kind in ("search", "recommendation") for part in ("train", "test")
    }
    for day in range(DAYS):
        for user in range(USERS):
            topic, part = topic_of(user, day), "train" if user % 5 else "test"
            for again, places in enumerate(((0, 1, 2), (3,))):
                stamp = ms(moment(user, day, 60 * again)) // 1000
                found = [shown(ITEMS_A_TOPIC * topic + p, p, stamp) for p in places]
                found[0] |= {"click": 1, "page_time": 12.5}
                rows[f"search_{part}"].append({
                    "search_idx": 2 * (day * USERS + user) + again, "session_idx": day * USERS + user, "user_idx": user,
                    "query": f"{NAMES[topic]}{'怎么做' if again else ''}", "query_from_type": 1,
                    "recent_clicked_note_idxs": [1, 2], "search_result_details_with_idx": found,
                })  # fmt: skip
            stamp = ms(moment(user, day, 1800)) // 1000
            entry = shown(ITEMS_A_TOPIC * topic + 1, 0, stamp, feed_stamp, collect=1, page_time=float("nan"))
            rows[f"recommendation_{part}"].append({
                "request_idx": day * USERS + user, "session_idx": day * USERS + user, "user_idx": user, "query": "",
                "rec_result_details_with_idx": [entry],
            })  # fmt: skip
    rows["notes"] = [
        {"note_idx": ITEMS_A_TOPIC * topic + place, "note_title": f"{NAMES[topic]}怎么做 {place}",
         "note_content": f"今天说说{NAMES[topic]}", "note_type": place % 2 + 1, "video_duration": 31.5, "image_num": 3,
         "taxonomy1_id": str(topic)}
        for topic in range(TOPICS) for place in range(ITEMS_A_TOPIC)
    ]  # fmt: skip
    write_qilin(folder, rows, feed_stamp)
    return rows


NAMES = ["红烧肉", "披萨", "跑鞋", "口红", "露营", "吉他", "盆栽", "自行车", "数独", "拉花", "风筝", "陶艺"]


def write_qilin(folder: Path, rows: dict[str, list[dict]], feed_stamp: str = "request_timestamp") -> None:
    """As the hub has them: a folder of parts a table, notes one file."""
    kinds = {"search_result_details_with_idx": _results("search_timestamp"),
             "rec_result_details_with_idx": _results(feed_stamp)}  # fmt: skip
    for name, table in rows.items():
        guess = pa.Table.from_pylist(table).schema
        schema = pa.schema([pa.field(f.name, kinds.get(f.name, f.type)) for f in guess])
        whole = pa.Table.from_pylist(table, schema)
        if name == "notes":
            pq.write_table(whole, folder / "notes.parquet")
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            part = whole.slice(number * (len(whole) // 2), len(whole) // 2 if number == 0 else None)
            pq.write_table(part, folder / name / f"{name.split('_')[1]}-0000{number}-of-00002.parquet")


def clicks() -> tuple[list[dict], list[dict]]:
    """(events, items) of a click-stream that tells neither sessions nor requests; the feed is another surface."""
    events = []
    for day in range(DAYS):
        for user in range(USERS):
            topic = topic_of(user, day)
            for again, places in enumerate(((0, 1, 2), (3,))):
                when = moment(user, day, 60 * again)
                row = {
                    "time": when,
                    "user": f"u{user}",
                    "surface": "search",
                    "item": None,
                    "query": None,
                    "seconds": None,
                }
                query = f"topic{topic} how{' now' * again}"
                events.append(row | {"event": "search", "query": query})
                for place in places:
                    shown = row | {"event": "impression", "item": f"v_{topic}_{place}"}
                    events.append(shown | {"time": when + timedelta(milliseconds=200 + place)})
                clicked = row | {"item": f"v_{topic}_{places[0]}", "time": when + timedelta(seconds=5)}
                events += [clicked | {"event": "click"}, clicked | {"event": "watch", "seconds": 12.5}]
            later = {"user": f"u{user}", "surface": "home", "item": f"v_{topic}_1", "query": None, "seconds": None}
            events.append(later | {"time": moment(user, day, 3600), "event": "impression"})
            events.append(later | {"time": moment(user, day, 3601), "event": "like"})
    items = [
        {"item": f"v_{topic}_{place}", "title": f"topic{topic} how now {place}", "description": None,
         "tags": [f"topic{topic}", "how"], "views": 10 * place, "duration_s": 31.5}
        for topic in range(TOPICS) for place in range(ITEMS_A_TOPIC)
    ]  # fmt: skip
    return events, items
