"""Ids that stand for many people, and users who search too much to be one, are left out of what reads one mind."""

import dataclasses
import json

import pyarrow as pa
import pytest
from hand_logs import T0, Always, candidate, feed, item, recast, search, small_world, write, write_day
from whole_reading import CONFIG, everything, rows

from crops_jax.artifacts.folders import write_folder
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs
from crops_jax.mining.config import MiningConfig
from crops_jax.mining.train_day import mine


def mined(logs, **settings):
    with write_folder(logs / "mined", kind="mined") as out:
        mine(logs, out, Always(), dataclasses.replace(CONFIG, **settings))
    found = rows(logs / "mined/candidates.parquet")
    of = {source: sorted(r["item_id"] for r in found if r["source"] == source) for source in ("P0", "P1", "P2", "X3")}
    return of, json.loads((logs / "mined/rejects.json").read_text()).get("users", {})


def world(logs):
    """User 0 is whoever is not logged in: "one" and "two" are strangers' queries. User 7 asked and asked again."""
    write(logs / "items.parquet", "items", [item(i, f"t{i}") for i in range(6)])
    searches = [search("a", 0, "one", T0), search("b", 0, "two", T0 + 1_000)]
    searches += [search("c", 7, "three", T0 + 5), search("d", 7, "four", T0 + 1_005)]
    shown = [candidate("a", 0), candidate("b", 1, clicked=True), candidate("c", 2), candidate("d", 3, clicked=True)]
    write_day(logs, "train", searches, shown, [feed(0, 4, T0), feed(0, 4, T0 + 9), feed(7, 5, T0)])
    return logs


LOGGED_IN = {"P0": [1, 3], "P1": [3], "P2": [5, 5], "X3": [0, 2]}
LEFT_OUT = {"users": 1, "searches": 2, "feed": 2}


def test_without_a_name_for_it_strangers_are_taken_for_one(tmp_path):
    assert mined(world(tmp_path)) == ({"P0": [1, 3], "P1": [1, 3], "P2": [4, 4, 5, 5], "X3": [0, 2]}, {})


@pytest.mark.parametrize("written", [0, "0"])
def test_anonymous_users_can_be_named(tmp_path, written, capsys):
    of, users = mined(world(tmp_path), anonymous_users=(written, 99))
    assert of == LOGGED_IN and users == {"anonymous": LEFT_OUT | {"examples": [0]}}
    assert "warning: anonymous_users: 99: day 'train' has no search" in capsys.readouterr().err


def test_a_number_beyond_64_bits_that_stands_for_nobody_can_be_named(tmp_path):
    world(tmp_path)
    nobody = 2**64 - 1
    for table in ("searches", "feed"):
        named = {0: nobody, 7: 7}
        recast(tmp_path, table, user_id=lambda c, named=named: pa.array([named[u] for u in c.to_pylist()], pa.uint64()))
    Experiment(mining=MiningConfig(anonymous_users=(nobody,)))
    of, users = mined(tmp_path, anonymous_users=(nobody,))
    assert of == LOGGED_IN and users == {"anonymous": LEFT_OUT | {"examples": [str(nobody)]}}


def test_anonymous_users_are_named_as_the_platform_writes_them(tmp_path, capsys):
    world(tmp_path)
    for table in ("searches", "feed"):
        named = {0: "guest", 7: "u7"}
        recast(tmp_path, table, user_id=lambda c, named=named: pa.array([named[u] for u in c.to_pylist()]))
    of, users = mined(tmp_path, anonymous_users=("guest",))
    assert of == LOGGED_IN and users == {"anonymous": LEFT_OUT | {"examples": ["guest"]}}
    assert "anonymous_users" not in capsys.readouterr().err
    of, users = mined(tmp_path, anonymous_users=("Guest",))  # hashed ids take any name
    assert of != LOGGED_IN and users == {}
    assert "warning: anonymous_users: 'Guest': day 'train' has no search" in capsys.readouterr().err


def test_a_name_that_no_user_can_have_is_told(tmp_path):
    with pytest.raises(InputError, match=r"anonymous_users: 'guest': the users of these logs are numbers"):
        mined(world(tmp_path), anonymous_users=(0, "guest"))


@pytest.mark.parametrize("null", [None, float("nan")])
def test_a_null_user_is_nobody(tmp_path, null):
    recast(world(tmp_path), "searches", user_id=lambda c: pa.array([u or null for u in c.to_pylist()], pa.float64()))
    recast(tmp_path, "feed", user_id=lambda c: pa.array([u or null for u in c.to_pylist()], pa.float64()))
    assert mined(tmp_path) == (LOGGED_IN, {})
    rejects = check_logs(tmp_path, "train").rejects
    assert (rejects["search_without_user"].count, rejects["feed_without_user"].count) == (2, 2)


def test_a_user_with_too_many_searches_is_left_out_and_counted(tmp_path):
    write_more = [search(f"m{i}", 0, "  ", T0 + 2 + i) for i in range(3)]  # blank ones count too
    searches = [search("a", 0, "one", T0), search("b", 0, "two", T0 + 1_000), *write_more]
    searches += [search("c", 7, "three", T0 + 5), search("d", 7, "four", T0 + 1_005)]
    world(tmp_path)
    write(tmp_path / "train/searches.parquet", "searches", searches)
    of, users = mined(tmp_path, max_searches_per_user=4)
    assert of == LOGGED_IN
    assert users == {"too_many_searches": {"users": 1, "searches": 5, "feed": 2, "examples": [0]}}
    assert mined(tmp_path, max_searches_per_user=5)[1] == {}
    assert MiningConfig().max_searches_per_user == 1_000
    with pytest.raises(InputError, match="max_searches_per_user: 0 is not above zero"):
        MiningConfig(max_searches_per_user=0)


def test_qr_leaves_them_out_and_ct_does_not(tmp_path):
    small_world(tmp_path)
    found = everything(tmp_path)
    with pytest.raises(InputError, match="no event for QR"):
        everything(tmp_path, dataclasses.replace(CONFIG, anonymous_users=(1,)))
    assert {r["event_id"] for r in found["qr"]} == {"t1"}
    assert found["ct"] == rows(tmp_path / "testsets/ct.parquet")
