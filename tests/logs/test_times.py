"""Times, grades, and the command that checks a folder."""

import json
import shutil

import pyarrow as pa
import pytest
from hand_logs import (
    DAY,
    T0,
    candidate,
    feed,
    item,
    recast,
    search,
    small_world,
    write,
    write_day,
)
from whole_reading import everything

from crops_jax import check_logs as command
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs

UNITS = {"s": 1000, "us": 1 / 1000, "ns": 1 / 10**6}
NAMES = {"s": "seconds", "us": "microseconds", "ns": "nanoseconds"}


def in_unit(logs, unit):
    def change(column):
        return pa.array([int(v // 1000) if unit == "s" else v * round(1 / UNITS[unit]) for v in column.to_pylist()])

    for table in ("searches", "feed"):
        recast(logs, table, ts=change)


@pytest.mark.parametrize("unit", UNITS)
def test_times_in_another_unit_are_refused_until_it_is_declared(tmp_path, plain, unit):
    in_unit(small_world(tmp_path), unit)
    with pytest.raises(InputError) as error:
        command.run(tmp_path)
    told = f"lie outside 2000 to 2100 as milliseconds since the epoch; they look like {NAMES[unit]}: declare it with "
    assert told + f"`check_logs DIR --time-unit {unit}`" in str(error.value)
    assert not (tmp_path / "manifest.json").exists()
    command.run(tmp_path, unit)
    found = everything(tmp_path)
    assert found == plain
    wrong = {"s": "ms", "us": "ns", "ns": "s"}[unit]
    with pytest.raises(InputError, match=f"look like {NAMES[unit]}"):
        command.run(tmp_path, wrong)


def test_seconds_with_a_fraction_keep_their_milliseconds(tmp_path, plain):
    logs = small_world(tmp_path)
    for table in ("searches", "feed"):
        recast(logs, table, ts=lambda c: pa.array([v / 1000 for v in c.to_pylist()]))
    command.run(logs, "s")
    assert everything(logs) == plain


def test_times_that_a_float_has_rounded_are_refused(tmp_path):
    logs = small_world(tmp_path)
    recast(logs, "searches", ts=lambda c: pa.array([v / 1000 for v in c.to_pylist()], pa.float32()))
    with pytest.raises(InputError, match=r"column ts \(float\): 5 values lie where float is rounded by seconds"):
        command.run(logs, "s")


@pytest.mark.parametrize(
    ("ts", "told"),
    [
        (0, "lie outside 2000 to 2100 as milliseconds"),
        (T0 + 3_000 * 365 * DAY, "lie outside 2000 to 2100 as milliseconds"),
        (-T0, "lie outside 2000 to 2100 as milliseconds"),
        (T0 + 400 * DAY, "column ts: the rows span 400 days, 2025-06-15 15:06:40+00:00 to 2026-07-20 15:06:40+00:00"),
    ],
)
def test_a_day_that_does_not_look_like_one(tmp_path, ts, told):
    small_world(tmp_path)
    shutil.rmtree(tmp_path / "test")
    recast(tmp_path, "searches", ts=lambda c: pa.array([*c.to_pylist()[:-1], ts]))
    with pytest.raises(InputError) as error:
        check_logs(tmp_path, "train")
    assert error.value.problems[0].startswith("train/searches.parquet: ") and told in error.value.problems[0]


def test_dates_for_times_are_told(tmp_path):
    write(tmp_path / "items.parquet", "items", [item(0, "a")])
    searches = [search(f"r{i}", i, "q", T0) for i in range(100)]
    write_day(tmp_path, "train", searches, [candidate("r1", 0)], [feed(1, 0, T0)])
    with pytest.raises(
        InputError,
        match=r"all 100 rows lie within a second of .*: that is a date, or no time at all; the moment of each row",
    ):
        check_logs(tmp_path, "train")


@pytest.mark.parametrize(
    ("grade", "told"),
    [
        (
            -2.0,
            "judgments.grade: 1 rows are below 0; give such pairs the grade 0, or leave them out, e.g. query=",
        ),
        (
            1500.0,
            "judgments.grade: 1 rows are above 50, and the gain is 2^grade; bring grades to 0, 1, 2, ..., e.g. query=",
        ),
    ],
)
def test_grades_that_ndcg_cannot_count_are_told_at_the_check(tmp_path, grade, told):
    recast(small_world(tmp_path), "judgments", grade=lambda c: pa.array([grade, *c.to_pylist()[1:]]))
    with pytest.raises(InputError) as error:
        command.run(tmp_path)
    assert any(p.startswith(told) for p in error.value.problems)
    with pytest.raises(InputError, match=r"judgments\.grade"):
        everything(tmp_path)


def test_a_pair_with_two_grades_under_two_spellings_is_told(tmp_path):
    small_world(tmp_path)
    rows = [("iPhone Case", 1, 3.0), ("iphone  case", 1, 2.0), ("iPhone Case", 2, 3.0), ("iphone  case", 2, 3.0)]
    write(
        tmp_path / "judgments.parquet",
        "judgments",
        [dict(zip(("query", "item_id", "grade"), r, strict=True)) for r in rows],
    )
    with pytest.raises(InputError) as error:
        check_logs(tmp_path, "train")
    assert error.value.problems == [
        "judgments.grade: 1 pairs have two grades under two spellings of one query, e.g. query='iPhone Case' "
        "other='iphone  case' item_id=1"
    ]


def test_problems_of_both_days_come_in_one_error(tmp_path):
    small_world(tmp_path)
    recast(tmp_path, "feed", watch_ms=lambda c: pa.array([-1] * len(c)))
    recast(tmp_path, "judgments", grade=lambda c: pa.array([-1.0, *c.to_pylist()[1:]]))
    with pytest.raises(InputError) as error:
        command.run(tmp_path)
    assert [p[:30] for p in error.value.problems] == [
        "judgments.grade: 1 rows are be", "train: feed.watch_ms: 4 rows a", "test: feed.watch_ms: 1 rows ar"
    ]  # fmt: skip


def test_the_command_line(tmp_path, capsys, monkeypatch):
    in_unit(small_world(tmp_path), "s")
    argv = ["check_logs", str(tmp_path), "--time-unit", "s", "--memory-limit", "400MB", "--threads", "1"]
    monkeypatch.setattr("sys.argv", argv)
    command.main()
    out = capsys.readouterr().out
    assert "train: 10 items, 5 searches, 11 candidates, 4 feed, 4 judgments" in out
    assert json.loads((tmp_path / "manifest.json").read_text())["config"]["time_unit"] == "s"
