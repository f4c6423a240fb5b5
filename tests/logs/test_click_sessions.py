"""Whose an event of a click-stream is, and on which day: sessions and requests that share an id mix neither."""

from datetime import timedelta

import pytest
from click_streams import facts_of, parquet, rows
from foreign_sets import DAYS, clicks, moment, ms
from recipes import load_recipe

from crops_jax.logs.importing import Split

LAST = moment(0, DAYS - 1, 3 * 3600)  # when users of `clicks` are done, on the test day


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("clickstream")


NONE = dict.fromkeys(("surface", "item", "query", "seconds", "session", "request"))


def event(kind: str, user: str | None, at=LAST, **told) -> dict:
    return NONE | {"time": at, "event": kind, "user": user} | told


def told(events: list[dict]) -> list[dict]:
    return [NONE | row for row in events]


@pytest.fixture(scope="module")
def untold(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untold")
    recipe.convert(*parquet(folder, *clicks()), folder / "logs")
    return facts_of(folder / "logs")


def test_sessions_that_count_each_users_visits_are_each_users(recipe, tmp_path, untold):
    events, items = clicks()
    events = [row | {"session": "1"} for row in told(events)]
    facts = recipe.convert(*parquet(tmp_path, events, items), tmp_path / "logs")
    assert facts_of(tmp_path / "logs") == untold
    assert {reason: n["rows"] for reason, n in facts["rejects"].items()} == {
        "events: session that several users have (each has one of their own; rows kept)": 1
    }


def test_requests_that_count_each_users_searches_are_each_users(recipe, tmp_path, untold):
    events, items = clicks()
    events = told(sorted(events, key=lambda row: row["time"]))
    asked: dict[tuple, int] = {}
    for row in events:
        if row["surface"] == "search":
            key = row["user"], row["time"].day
            asked[key] = asked.get(key, 0) + (row["event"] == "search")
            row["request"] = str(asked[key])
    facts = recipe.convert(*parquet(tmp_path, events, items), tmp_path / "logs")
    assert facts_of(tmp_path / "logs") == untold
    assert list(facts["rejects"]) == [
        "events: request that another user or an earlier day has too (taken as another one; rows kept)"
    ]


def test_an_event_without_a_user_is_of_the_only_user_it_can_be_of(recipe, tmp_path):
    events, items = clicks()
    later = LAST + timedelta(seconds=9)
    events = [
        *told(events),
        event("search", "alice", session="a", query="red shoes"),
        event("click", None, later, session="a", item="v_0_0"),  # her session alone
        event("search", "alice", session="both", query="blue shoes"),
        event("search", "bob", session="both", query="pizza oven"),
        event("click", None, later, session="both", item="v_0_1"),  # nobody can say whose
        event("search", None, session="guest", query="oak door"),
        event("click", None, later, session="guest", item="v_0_2"),
        event("search", "carol", request="r", query="tent"),  # as a server writes it,
        event("click", None, later, session="c", request="r", item="v_0_3"),  # and as an app does
    ]
    facts = recipe.convert(*parquet(tmp_path, events, items), tmp_path / "logs")
    new = [row for row in facts_of(tmp_path / "logs")["shown"] if row[2] == ms(LAST)]
    assert sorted(row[:2] + row[3:4] for row in new) == [
        ("alice", "red shoes", "v_0_0"), ("carol", "tent", "v_0_3"), ("session guest", "oak door", "v_0_2")
    ]  # fmt: skip
    assert facts["rejects"]["events: without a user, of a session that several users have"]["rows"] == 1


def test_a_told_session_ends_after_the_gap_too(recipe, tmp_path):
    events, items = clicks()
    events = [
        *told(events),
        event("search", "alice", session="a", query="red shoes"),
        event("click", "alice", LAST + timedelta(minutes=29), session="a", item="v_0_0"),
        event("click", "alice", LAST + timedelta(minutes=60), session="a", item="v_0_1"),
    ]
    recipe.convert(*parquet(tmp_path, events, items), tmp_path / "logs")
    found = facts_of(tmp_path / "logs")
    assert [row[3] for row in found["shown"] if row[0] == "alice"] == ["v_0_0"]
    assert [row[1] for row in found["feed"] if row[0] == "alice"] == ["v_0_1"]


def test_the_last_day_changes_nothing_before_it(recipe, tmp_path):
    events, items = clicks()
    night = moment(0, DAYS - 2, (24 - 18) * 3600 - 120)  # two minutes before midnight, where 18:00 is `moment`'s hour
    morning = night + timedelta(minutes=4)
    before = [
        *told(events),
        event("impression", None, night, session="cookie", surface="home", item="v_0_0"),
        event("search", None, night, session="cookie", query="red shoes"),
        event("search", "bob", night, request="7", query="blue shoes"),
        event("impression", "bob", night, request="7", item="v_1_0"),
        event("search", "eve", night, session="e", query="tent"),
    ]
    after = [
        event("like", None, morning, session="cookie", surface="home", item="v_0_0"),
        event("search", "dave", morning, session="cookie", query="logged in"),
        event("click", "bob", morning, request="7", item="v_1_0"),
        event("search", "bob", morning, request="8", query="later"),
        event("search", "zoe", morning, request="7", query="the same id"),
        event("click", "eve", morning, session="e", item="v_2_0"),  # of the search before midnight
    ]
    split = Split(2, 1, 1, utc_offset_h=8)
    recipe.convert(*parquet(tmp_path / "a", before, items), tmp_path / "without", split=split)
    facts = recipe.convert(*parquet(tmp_path / "b", before + after, items), tmp_path / "with", split=split)
    for day in ("train", "validation"):
        for table in ("searches", "candidates", "feed"):
            assert rows(tmp_path / "with", f"{day}/{table}") == rows(tmp_path / "without", f"{day}/{table}")
    assert facts["rejects"]["events: results of a search of an earlier day"]["rows"] == 2
    found = facts_of(tmp_path / "with")
    liked = [row for row in found["feed"] if row[2] == ms(morning)]
    assert [(row[0], row[1], row[4]) for row in liked] == [("dave", "v_0_0", True)]
