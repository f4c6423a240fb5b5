"""Types: what loses nothing is taken, what would lose is told."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hand_logs import Always, recast, small_world
from whole_reading import CONFIG, everything, rows

from crops_jax import check_logs as command
from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs
from crops_jax.mining.train_day import mine

pytestmark = pytest.mark.slow  # many small compilations or files; `make test-all` runs them


def nulls(column):
    return pa.nulls(len(column), pa.null())


def as_float(column):
    return pa.array(np.array([np.nan if v is None else v for v in column.to_pylist()]))


def as_decimal(column):
    return pa.array([None if v is None else Decimal(v) for v in column.to_pylist()], pa.decimal128(30, 2))


LOSSLESS = {
    "nulls of no type": ("items", {"click_query": nulls, "keyword": nulls, "like_cnt": nulls}),
    "nulls as floats": ("items", {"click_query": lambda c: pa.array(np.full(len(c), np.nan)), "play_cnt": as_float}),
    "small integers": ("items", {"item_id": pa.int8(), "play_cnt": pa.uint16(), "like_cnt": pa.int32()}),
    "unsigned ids": ("feed", {"item_id": pa.uint64(), "user_id": pa.uint32(), "watch_ms": pa.uint64()}),
    "ids as floats": ("candidates", {"item_id": pa.float64(), "position": pa.float32()}),
    "ids as decimals": ("feed", {"user_id": as_decimal, "item_id": as_decimal, "duration_ms": as_decimal}),
    "a wide position": ("candidates", {"position": pa.int64(), "watch_ms": pa.int32()}),
    "flags as numbers": ("candidates", {"clicked": pa.int8(), "liked": pa.float64()}),
    "flags as text": ("feed", {"clicked": pa.string(), "liked": pa.string()}),
    "numbers as text": ("candidates", {"position": pa.string(), "watch_ms": pa.large_string()}),
    "whole grades": ("judgments", {"grade": pa.int64()}),
    "short grades": ("judgments", {"grade": pa.float32()}),
    "grades as decimals": ("judgments", {"grade": as_decimal}),
    "dictionaries": (
        "searches",
        {"query": lambda c: c.dictionary_encode(), "user_id": lambda c: c.dictionary_encode()},
    ),
    "large strings": ("searches", {"query": pa.large_string(), "request_id": pa.large_string()}),
    "string views": ("candidates", {"stage": pa.string_view(), "request_id": pa.string_view()}),
    "bytes": ("searches", {"query": pa.binary(), "request_id": pa.large_binary()}),
    "times of seconds": ("searches", {"ts": lambda c: c.cast(pa.timestamp("ms"))}),
    "times of nanoseconds with a zone": ("feed", {"ts": lambda c: c.cast(pa.timestamp("ms", "Asia/Shanghai"))}),
    "times of microseconds": ("searches", {"ts": lambda c: c.cast(pa.timestamp("ms")).cast(pa.timestamp("us"))}),
    "times as floats": ("searches", {"ts": pa.float64()}),
    "durations": ("feed", {"watch_ms": lambda c: c.cast(pa.duration("ms")), "duration_ms": pa.duration("ms")}),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_cast_that_loses_nothing_is_taken(tmp_path, plain, kind):
    table, columns = LOSSLESS[kind]
    recast(small_world(tmp_path), table, **columns)
    found = everything(tmp_path)
    assert found == plain
    command.run(tmp_path)
    assert read_manifest(tmp_path)["config"] == {"time_unit": "ms", "users": None, "items": None}


def test_request_ids_may_be_numbers(tmp_path):
    number = {name: i for i, name in enumerate(["r1", "r2", "r3", "r8", "r9", "t1", "t2", "t3", "t4"])}
    small_world(tmp_path)
    for table in ("searches", "candidates"):
        recast(tmp_path, table, request_id=lambda c: pa.array([number[v] for v in c.to_pylist()]))
    found = everything(tmp_path)
    assert [r["evidence"] for r in found["candidates"] if r["source"] == "P1"] == ["1"]  # r2
    assert {r["event_id"] for r in found["ct"]} == {"5", "6", "8"}


def put(first):
    """The column with another first value, in the type that Arrow finds for it."""
    return lambda column: pa.array([first, *column.to_pylist()[1:]])


def of(kind, first):
    """The column in a type, with another first value."""
    return lambda column: put(first)(column.cast(kind))


LOSES = "values cannot be {} without loss; mend them, or cast the column (the first, {}, is in row 0"
TEXT, WHOLE = pa.string(), pa.float64()
LOSSY = {
    "a fraction": ("candidates", "position", of(WHOLE, 1.5), "(double): 1 " + LOSES.format("int32", 1.5)),
    "too large": ("candidates", "position", put(2**40), "(int64): 1 " + LOSES.format("int32", 2**40)),
    "not a number": ("items", "play_cnt", of(TEXT, "many"), "(string): 1 " + LOSES.format("int64", "'many'")),
    "leading noughts": ("items", "play_cnt", of(TEXT, "007"), "(string): 1 " + LOSES.format("int64", "'007'")),
    "infinite": ("items", "like_cnt", of(WHOLE, float("inf")), "(double): 1 " + LOSES.format("int64", "inf")),
    "rounded ids": ("items", "item_id", of(WHOLE, 2.0**60), "(double): 1 " + LOSES.format("int64", 2.0**60)),
    "neither yes nor no": ("candidates", "clicked", of(pa.int8(), 2), "(int64): 1 " + LOSES.format("bool", 2)),
    "a grade in words": ("judgments", "grade", of(TEXT, "good"), "(string): 1 " + LOSES.format("double", "'good'")),
    "a list": (
        "searches", "query", lambda c: pa.array([[v] for v in c.to_pylist()]),
        "is list<element: string>, it must be string: cast it",
    ),
    "a struct": (
        "searches", "ts", lambda c: pa.array([{"s": v} for v in c.to_pylist()]),
        "is struct<s: int64>, it must be int64 or a timestamp: cast it",
    ),
    "a date": (
        "searches", "ts", lambda c: c.cast(pa.timestamp("ms")).cast(pa.date32()),
        "is date32[day], it must be int64 or a timestamp: cast it",
    ),
    "a moment for a span": ("feed", "watch_ms", pa.timestamp("ms"), "is timestamp[ms], it must be int64: cast it"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOSSY)
def test_what_would_lose_is_refused_with_file_column_and_first_value(tmp_path, kind):
    table, column, change, told = LOSSY[kind]
    recast(small_world(tmp_path), table, **{column: change})
    with pytest.raises(InputError) as error:
        check_logs(tmp_path, "train")
    place = f"{table}.parquet" if table in ("items", "judgments") else f"train/{table}.parquet"
    assert any(p.startswith(f"{place}: column {column} {told}") for p in error.value.problems)


def test_bytes_that_are_not_utf8_are_told_with_column_and_row(tmp_path):
    raw = pa.array([b"transformer", "café".encode("latin-1"), b"a\xed\xa0\x80", b"b", b"c"], pa.binary())
    for kind in (pa.string(), pa.binary()):
        made = pa.Array.from_buffers(kind, 5, raw.buffers())
        recast(small_world(tmp_path / str(kind)), "searches", query=lambda c, made=made: made.slice(0, len(c)))
        with pytest.raises(InputError) as error:
            check_logs(tmp_path / str(kind), "train")
        told = f"train/searches.parquet: column query ({kind}): 2 values are not UTF-8; read them as what they are "
        told += r"(latin-1?) and write it again (the first, b'caf\xe9', is in row 1, counted from 0)"
        assert error.value.problems == [told]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_bad_bytes_are_told_in_every_kind_of_string(tmp_path, kind):
    raw = pa.array([b"caf\xe9", b"b", b"c", b"d"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    bad = bad.dictionary_encode() if pa.types.is_dictionary(kind) else bad.cast(kind, safe=False)
    recast(small_world(tmp_path), "feed", user_id=lambda c: bad.slice(0, len(c)))
    with pytest.raises(
        InputError, match=r"train/feed\.parquet: column user_id .* are not UTF-8.* b'caf\\xe9', is in row 0"
    ):
        check_logs(tmp_path, "train")


def test_texts_of_every_script_and_control_characters_go_through(tmp_path):
    small_world(tmp_path)
    strange = ["a\0b", "\x1b[31m", "👩\u200d❤\ufe0f\u200d👨", "السلام", "𠀀𠀁"]
    recast(tmp_path, "searches", query=lambda c: pa.array((strange * 2)[: len(c)]))
    with write_folder(tmp_path / "mined", kind="mined") as out:
        mine(tmp_path, out, Always(), CONFIG)
    found = {r["query"] for r in rows(tmp_path / "mined/candidates.parquet")}
    assert {"a\0b", "\x1b[31m", "👩\u200d❤\ufe0f\u200d👨"} <= found
