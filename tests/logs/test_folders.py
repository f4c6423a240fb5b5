"""Paths and folders of files: neither changes what is read."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import as_spark_writes, item, rewrite, small_world, write
from whole_reading import everything

from crops_jax import check_logs as command
from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import data_files, own_files, read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs
from crops_jax.logs.folder import open_logs
from crops_jax.logs.window import ensure_window

PATHS = [
    "query=zh", "ts=20251009", "clicked=true", "keyword=off/stage=exposed", "user_id=7/item_id=1",
    "run[1]", "run[!a]*", "a?b{c,d}", "back\\slash[x]*",
    'it\'s "quoted"', "sp ace\u3000", "100%", "$HOME", "s3:/x",
]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_a_path_never_changes_a_value(tmp_path, plain, name):
    for near in ("run1", "runa", "axbc"):  # what a pattern would find instead
        write(tmp_path / near / "items.parquet", "items", [item(0, "another world")])
    assert everything(small_world(tmp_path / name)) == plain
    assert set(command.run(tmp_path / name)) == {"train", "test"}


def test_a_relative_path_below_a_partition(tmp_path, plain, monkeypatch):
    small_world(tmp_path / "query=zh")
    monkeypatch.chdir(tmp_path)
    assert everything(type(tmp_path)("query=zh")) == plain


def test_folders_of_files(tmp_path, plain):
    logs = as_spark_writes(small_world(tmp_path))
    command.run(logs)
    verify(logs)
    sealed = [f["path"] for f in read_manifest(logs)["files"]]
    assert "train/feed.parquet/part-00001-c000.snappy.parquet" in sealed and "items.parquet/_SUCCESS" not in sealed
    assert everything(logs) == plain
    part = logs / "items.parquet/part-00000-c000.snappy.parquet"
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"items\.parquet/part-00000-c000\.snappy\.parquet: \d+ bytes"):
        verify(logs)


def test_the_truth_may_be_a_folder_too(tmp_path):
    small_world(tmp_path)
    (tmp_path / "truth").mkdir()
    truth = {"query": ["transformer"] * 2, "item_id": [7, 8], "grade": [3.0, 1.0]}
    pq.write_table(pa.table(truth), tmp_path / "truth/relevance.parquet")
    as_spark_writes(tmp_path)
    assert everything(tmp_path)["unexposed"] == [{"query": "transformer", "item_id": 7}]


def test_parts_of_other_types_empty_parts_and_folders_in_between(tmp_path, plain):
    logs = small_world(tmp_path)
    items = pq.read_table(logs / "items.parquet")
    (logs / "items.parquet").unlink()
    first = items.slice(0, 4).drop_columns(["download_cnt"])
    first = first.set_column(0, "item_id", first["item_id"].cast(pa.int16()))
    second = items.slice(4).set_column(1, "ocr_cover", items["ocr_cover"].slice(4).dictionary_encode())
    for place, table in {
        "keyword=off/a": first,
        "b.parquet": second,
        "z.parquet": pa.table({"x": pa.nulls(0)}),
    }.items():
        (logs / "items.parquet" / place).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, logs / "items.parquet" / place)
    assert everything(logs) == plain


def moved(path, there):
    """Puts what is at a path elsewhere, and a link in its place."""
    there.parent.mkdir(parents=True, exist_ok=True)
    path.rename(there)
    path.symlink_to(there.resolve())
    return there


def test_linked_days_tables_and_parts_are_read_sealed_and_checked_as_if_they_lay_there(tmp_path, plain):
    logs = as_spark_writes(small_world(tmp_path / "logs"))
    before = sorted(path.relative_to(logs).as_posix() for path in data_files(logs))
    feed = logs / "train/feed.parquet"
    (feed / "dt=2").mkdir()
    part = next(feed.glob("part-00001*"))
    part = part.rename(feed / "dt=2" / part.name)
    moved(feed / "dt=2", tmp_path / "disk/dt=2")
    moved(logs / "train/searches.parquet", tmp_path / "disk/searches")
    moved(logs / "train", tmp_path / "disk/day1")
    reports = command.run(logs)
    assert reports["train"]["rows"]["feed"] == pq.read_table(tmp_path / "disk/dt=2", partitioning=None).num_rows + 2
    sealed = {f["path"] for f in read_manifest(logs)["files"]}
    assert sealed - {*before} == {f"train/feed.parquet/dt=2/{part.name}"} and len(sealed) == len(before)
    window = tmp_path / "window"
    ensure_window(logs, window, {"train": "train", "test": "test"})
    assert {path.relative_to(window).as_posix() for path in data_files(window)} == {*sealed, "manifest.json"}
    assert everything(logs) == plain
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"dt=2/part-00001-c000\.snappy\.parquet: \d+ bytes"):
        verify(logs)


@pytest.mark.parametrize(
    ("link", "to", "told"),
    [
        ("train/feed.parquet/part-2.parquet", "gone", "is a link to what is not there; put it there"),
        ("train/feed.parquet/dt=2", "../..", "is a link to a folder that it lies in; take it away"),
        ("judgments.parquet", "gone", "is a link to what is not there; put it there"),
        ("validation", "gone", "is a link to what is not there; put it there"),
    ],
)
def test_a_link_that_leads_nowhere_or_back_is_told(tmp_path, link, to, told):
    logs = as_spark_writes(small_world(tmp_path))
    (logs / "judgments.parquet").exists() and (logs / "judgments.parquet").rename(tmp_path / "_judgments")
    (logs / "train/feed.parquet/.#part-2.parquet").symlink_to("an editor's lock")
    command.run(logs)
    (logs / link).symlink_to(to)
    for check in (verify, command.run):  # which takes the seal away
        with pytest.raises(InputError) as error:
            check(logs)
        assert error.value.problems[0].startswith(f"{link}: {told}")
    if "feed" in link or "judgments" in link:
        with pytest.raises(InputError, match=told.split(";")[0]):
            check_logs(logs, "train")


@pytest.mark.parametrize("at", ["judgments.parquet/part-{}.parquet", "train/feed.parquet/{}/part-0.parquet"])
def test_a_name_that_is_not_utf8_is_told(tmp_path, at):
    logs = as_spark_writes(small_world(tmp_path))
    path = logs / at.format(os.fsdecode(b"\xe9"))
    path.parent.mkdir(exist_ok=True)
    shutil.copy(next((logs / at.split("/{")[0].split("/part")[0]).glob("*.parquet")), path)
    with pytest.raises(InputError, match="has a name that is not UTF-8; rename it"):
        command.run(logs)


def test_a_table_that_would_not_be_sealed_is_refused(tmp_path):
    logs = small_world(tmp_path)
    (logs / "test/manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"test/feed\.parquet: cannot be sealed, for a manifest\.json above it"):
        command.run(logs)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (["_SUCCESS"], "items.parquet: is a folder without any Parquet file"),
        ([], "items.parquet: is a folder without any Parquet file"),
        (["_temporary/0/part-0.parquet"], "items.parquet: was not written to its end"),
        (["_delta_log/0.json", "a.parquet"], "items.parquet: is a Delta table"),
        (["metadata/v1.metadata.json", "data/a.parquet"], "items.parquet: is a Iceberg table"),
        (["part-0.parquet"], "items.parquet: part-0.parquet: is not a readable Parquet file"),
    ],
)
def test_folders_that_are_no_table(tmp_path, made, told):
    logs = small_world(tmp_path)
    (logs / "items.parquet").unlink()
    (logs / "items.parquet").mkdir()
    for name in made:
        (logs / "items.parquet" / name).parent.mkdir(parents=True, exist_ok=True)
        (logs / "items.parquet" / name).touch()
    with pytest.raises(InputError) as error:
        check_logs(logs, "train")
    assert error.value.problems[0].startswith(told)


def test_a_required_column_that_one_part_lacks_is_named(tmp_path):
    logs = as_spark_writes(small_world(tmp_path))
    part = logs / "train/feed.parquet/part-00001-c000.snappy.parquet"
    pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["ts"]), part)
    with pytest.raises(
        InputError, match=r"part-00001-c000\.snappy\.parquet: column ts is missing, other parts have it"
    ):
        check_logs(logs, "train")


def test_columns_that_the_contract_does_not_name_are_never_read(tmp_path, plain):
    def more(table):
        strange = pa.array([b"\xff"] * table.num_rows, pa.binary())
        bad = pa.Array.from_buffers(pa.string(), len(strange), strange.buffers())
        names = ["TS", "Query", "file_row_number", "filename", "item_id.x", "query.lang", "dt"]
        columns = [pa.array([{"a": 1}] * table.num_rows) if n == "dt" else bad for n in names]
        twice = pa.table([*columns, bad, bad], names=[*names, "same", "same"])
        schema = pa.schema([*twice.schema, *table.schema.remove_metadata()])
        return pa.Table.from_arrays([*twice.columns, *table.columns], schema=schema)

    small_world(tmp_path)
    for table in ("items", "judgments", "searches", "candidates", "feed"):
        rewrite(tmp_path, table, more)
    assert everything(tmp_path) == plain
    command.run(tmp_path)


def test_a_column_that_is_there_twice_or_only_in_another_case_is_told(tmp_path):
    small_world(tmp_path)
    rewrite(tmp_path, "searches", lambda t: t.append_column("ts", t["ts"]))
    rewrite(tmp_path, "feed", lambda t: t.rename_columns(["TS" if n == "ts" else n for n in t.column_names]))
    with pytest.raises(InputError) as error:
        check_logs(tmp_path, "train")
    assert error.value.problems == [
        "train/searches.parquet: column ts is there 2 times: keep one",
        "train/feed.parquet: column ts is missing (int64: when, ms since the epoch); "
        "there is TS: upper and lower case differ",
    ]


def test_a_column_that_some_parts_have_in_another_case_is_told_though_it_may_be_null(tmp_path):
    logs = small_world(tmp_path)
    table = pq.read_table(logs / "items.parquet")
    (logs / "items.parquet").unlink()
    (logs / "items.parquet").mkdir()
    pq.write_table(table, logs / "items.parquet/a.parquet")
    other = table.rename_columns(["Keyword" if name == "keyword" else name for name in table.column_names])
    pq.write_table(other, logs / "items.parquet/b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: column keyword is missing; there is Keyword: upper and lower"):
        check_logs(logs, "train")
    pq.write_table(table.drop_columns(["keyword"]), logs / "items.parquet/b.parquet")
    with pytest.raises(InputError) as error:  # the rows are there twice, which is another matter
        check_logs(logs, "train")
    assert "keyword" not in str(error.value)


def test_a_column_that_only_a_folders_name_holds_is_told(tmp_path):
    logs = small_world(tmp_path)
    table = pq.read_table(logs / "train/candidates.parquet")
    (logs / "train/candidates.parquet").unlink()
    place = logs / "train/candidates.parquet/stage=exposed"
    place.mkdir(parents=True)
    pq.write_table(table.drop_columns(["stage"]), place / "part-0.parquet")
    with pytest.raises(InputError) as error:
        check_logs(logs, "train")
    (problem,) = error.value.problems
    assert problem.startswith("train/candidates.parquet: column stage is missing (string: ")
    assert problem.endswith("folders are named by it, but what they are called is not read: write it into the files")


def test_a_damaged_part_is_named_beside_all_other_problems(tmp_path):
    logs = as_spark_writes(small_world(tmp_path))
    part = logs / "train/feed.parquet/part-00001-c000.snappy.parquet"
    pq.write_table(pq.read_table(part, partitioning=None), part, write_page_checksum=True, compression="none")
    raw = bytearray(part.read_bytes())
    raw[60] ^= 1
    part.write_bytes(raw)
    items = next((logs / "items.parquet").glob("part-00000*"))
    read = pq.read_table(items, partitioning=None)
    counts = pa.array([-7, *read["play_cnt"].to_pylist()[1:]])
    pq.write_table(read.set_column(read.column_names.index("play_cnt"), "play_cnt", counts), items)
    with pytest.raises(InputError) as error:
        check_logs(logs, "train")
    damaged, negative = error.value.problems
    assert damaged.startswith(
        "train/feed.parquet: part-00001-c000.snappy.parquet: cannot be read as Parquet, it is cut"
    )
    assert negative.startswith("items.play_cnt: 1 rows are below 0")


def test_hidden_folders_are_no_days(tmp_path):
    logs = small_world(tmp_path)
    for name in ("_old", ".ipynb_checkpoints"):
        shutil.copytree(logs / "train", logs / name)
    assert {*command.run(logs)} == {*open_logs(logs).days()} == {"train", "test"}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("judgements.parquet", "is not read; if it is meant as judgments.parquet, write it there as Parquet"),
        ("judgments.csv", "is not read; if it is meant as judgments.parquet"),
        ("test/judgments.parquet", "is not read; if it is meant as judgments.parquet"),
        ("train/suggestion.parquet/part-0.parquet", "is not read; if it is meant as train/suggestions.parquet"),
        ("2025-06-12/candidates.parquet", "is no day, for it holds no searches.parquet"),
        ("Test/searches.parquet", "would be a day to mine; name it test"),
        ("test_set/searches.parquet", "would be a day to mine; name it test"),
        ("valid/searches.parquet", "would be a day to mine; name it validation"),
    ],
)
def test_misspelt_tables_and_days_are_told_before_one_does_without_them(tmp_path, entry, told):
    logs = small_world(tmp_path)
    (logs / "judgments.parquet").unlink(missing_ok=True)
    (logs / entry).parent.mkdir(parents=True, exist_ok=True)
    (logs / entry).touch()
    with pytest.raises(InputError) as error:
        command.run(logs)
    assert error.value.problems[0].split(": ", 1)[1].startswith(told)
    assert entry.startswith(error.value.problems[0].split(":")[0])


def test_what_else_lies_there_is_named_and_does_no_harm(tmp_path, monkeypatch, capsys):
    logs = small_world(tmp_path)
    for entry in ("README.md", "judgments.sql", "notes/a.txt", "train/feed_old.parquet", "_SUCCESS", "items.csv"):
        (logs / entry).parent.mkdir(exist_ok=True)
        (logs / entry).touch()
    monkeypatch.setattr("sys.argv", ["check_logs", str(logs)])
    command.main()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not read: ")]
    assert [line.split(": ")[1] for line in said] == [
        "README.md", "items.csv", "judgments.sql", "notes", "train/feed_old.parquet"
    ]  # fmt: skip


def test_a_window_takes_what_is_read_and_nothing_else(tmp_path):
    logs = small_world(tmp_path / "logs")
    with write_folder(logs / "mined", kind="mined") as out:
        (out / "rows").write_text("of another command")
    for entry in ("raw/events.csv", "notes.txt", "train/old/rows"):
        (logs / entry).parent.mkdir(exist_ok=True)
        (logs / entry).touch()
    command.run(logs)
    ensure_window(logs, tmp_path / "window", {"train": "train", "test": "test"})
    assert verify(tmp_path / "window")["kind"] == "logs"
    of_days = {f"{day}/{table}.parquet" for day in ("train", "test") for table in ("searches", "candidates", "feed")}
    found = {path.relative_to(tmp_path / "window").as_posix() for path in own_files(tmp_path / "window")}
    assert found == {"items.parquet", "judgments.parquet", "manifest.json", *of_days}


def test_a_day_that_came_in_after_the_seal_is_told(tmp_path):
    logs = small_world(tmp_path / "logs")
    command.run(logs)
    shutil.copytree(logs / "train", logs / "2025-06-12")
    with pytest.raises(InputError, match=r"(?s)the day 2025-06-12 is none of those that were sealed.*check_logs"):
        ensure_window(logs, tmp_path / "window", {"2025-06-12": "train", "test": "test"})


@pytest.mark.parametrize("current", [False, True])
def test_a_window_that_is_there_stops_where_its_days_have_changed_since_the_seal(tmp_path, current):
    logs, days = as_spark_writes(small_world(tmp_path / "logs")), {"train": "train", "test": "test"}
    shutil.copytree(logs / "train", logs / "2025-06-12")
    command.run(logs)
    ensure_window(logs, tmp_path / "window", days, current=current)
    shutil.copytree(logs / "train", logs / "2025-06-13")  # on its way: another day's matter
    (logs / "2025-06-13/searches.parquet/part-00000-c000.snappy.parquet").unlink()
    ensure_window(logs, tmp_path / "window", days, current=current)
    changed, late = (logs / f"train/feed.parquet/part-0000{n}-c000.snappy.parquet" for n in (0, 2))
    changed.unlink()  # the window has a link to what it was
    pq.write_table(pq.read_table(logs / "2025-06-12/feed.parquet"), changed)
    shutil.copy(changed, late)
    shutil.rmtree(logs / "2025-06-12")
    with pytest.raises(InputError) as error:
        ensure_window(logs, tmp_path / "window", days, current=current)
    assert error.value.problems == [
        "the day 2025-06-12 was sealed, and is not there",
        f"{changed.relative_to(logs)}: missing, or of another size",
        f"{late.relative_to(logs)}: came in after the folder was sealed",
        "seal the folder again: python -m crops_jax.check_logs DIR",
    ]
