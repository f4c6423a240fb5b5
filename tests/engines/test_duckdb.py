"""The engine: what goes wrong for a reason outside the program is told as such, and says what to do."""

import errno
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import item, write

from crops_jax.engines import files
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import PART, normalised, open_engine
from crops_jax.errors import InputError
from crops_jax.normal_text import normal_form

SMALL = EngineConfig(memory_limit="30MB", threads=1)


class Rows:
    """A stream of one batch, and then perhaps of an error."""

    schema = pa.schema([("x", pa.int64()), ("q", pa.string())])

    def __init__(self, error=None):
        self.error = error

    def batches(self):
        yield pa.record_batch({"x": [2, 1, 3], "q": ["Ａ\u3000b", None, "a B"]}, schema=self.schema)
        if self.error:
            raise self.error


def test_a_stream_is_read_as_often_as_it_is_asked_for():
    with open_engine(SMALL, []) as engine:
        table = engine.read(Rows())
        assert table.count().to_pyarrow().as_py() == 3
        both = table.join(table.select(y="x"), [table.x == table.select(y="x").y])
        assert sorted(both.to_pyarrow()["x"].to_pylist()) == [1, 2, 3]
        forms = table.mutate(form=normalised(table.q)).order_by("x").to_pyarrow()["form"].to_pylist()
        assert forms == [None, "a b", "a b"]


def test_normal_forms_in_sql_are_pythons_for_every_character():
    characters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    with open_engine(EngineConfig(memory_limit="500MB"), []) as engine:
        made = engine.connection.create_table("c", pa.table({"c": characters}))
        forms = made.select("c", form=normalised(made.c)).to_pyarrow()
    assert forms["form"].to_pylist() == [normal_form(c) for c in forms["c"].to_pylist()]
    assert sorted(forms["c"].to_pylist()) == characters


def test_memory_that_runs_out_names_the_limit():
    with (
        pytest.raises(
            InputError, match=r"memory_limit=30MB; raise it \(--mining\.engine\.memory_limit, --suggest_mining\.engine"
        ),
        open_engine(SMALL, []) as engine,
    ):
        engine.connection.raw_sql("select list(hash(range)::varchar) from range(3000000)").fetchall()


def test_disk_space_that_runs_out_names_its_limit(tmp_path):
    config = EngineConfig("30MB", str(tmp_path), "1MB", 1)
    told = (
        r"has spilled all of max_temp_directory_size=1MB; .*temp_directory.*--mining\.engine\.max_temp_directory_size"
    )
    with pytest.raises(InputError, match=told), open_engine(config, []) as engine:
        engine.connection.raw_sql("create temp table n as select range as a from range(1500)")
        numbers = engine.connection.table("n")
        pairs = numbers.cross_join(numbers.select(b="a"))
        text = pairs.a.hash().cast("string") + pairs.b.hash().cast("string")
        pairs.select(text=text).order_by("text").count().to_pyarrow()  # computed late
        pairs.select(text=text).order_by("text").to_pyarrow()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_stream_comes_out_as_it_was():
    told = InputError("feed.parquet", "column ts: a value")
    with pytest.raises(InputError) as error, open_engine(SMALL, []) as engine:
        engine.read(Rows(told)).count().to_pyarrow()
    assert error.value is told


def test_errors_of_the_system_and_errors_of_this_program():
    for number, words in ((errno.EMFILE, "too many open files"), (errno.EACCES, "may not read or write there")):
        with pytest.raises(InputError, match=words), open_engine(SMALL, []):
            raise OSError(number, "said", "/a/file")
    with pytest.raises(InputError, match="3000-00-00"), open_engine(SMALL, []) as engine:
        engine.connection.raw_sql("select '3000-00-00'::date").fetchall()
    with pytest.raises(Exception, match="nothing_like_it") as error, open_engine(SMALL, []) as engine:
        engine.connection.raw_sql("select * from nothing_like_it")
    assert not isinstance(error.value, InputError)  # a mistake in SQL is a bug, and shows its traceback
    nowhere = EngineConfig(temp_directory="/no_such_folder/x")
    with pytest.raises(InputError, match=r"no_such_folder.*name another folder"), open_engine(nowhere, []):
        pass


def test_tables_are_written_to_any_path(tmp_path):
    folder = tmp_path / 'query=zh [1] it\'s "x"'
    folder.mkdir()
    with open_engine(SMALL, [folder]) as engine:
        assert engine.write_sorted(engine.read(Rows()), folder / "t.parquet", files.Sorted(Rows.schema, ["x"])) == 3
    assert pq.read_table(folder / "t.parquet", partitioning=None)["x"].to_pylist() == [1, 2, 3]
    assert [p.name for p in folder.iterdir()] == ["t.parquet"]


def test_columns_of_a_folder_of_parts_and_the_part_of_each_row(tmp_path):
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string())])
    rows = {"0": [(1, "x")], "f": [(2, None), (3, "y")]}
    for part, values in rows.items():
        batch = pa.record_batch([list(column) for column in zip(*values, strict=True)], schema=schema)
        files.write([batch], files.part_path(tmp_path, part), schema)
    with open_engine(EngineConfig(), []) as engine:
        told = engine.read(files.files(tmp_path, (PART, "b"))).to_pyarrow().to_pylist()
        assert sorted(told, key=str) == [{"part": "0", "b": "x"}, {"part": "f", "b": "y"}, {"part": "f", "b": None}]
        assert engine.read(files.files(tmp_path, (PART,))).count().to_pyarrow().as_py() == 3
        assert engine.read(files.files(tmp_path)).columns == ("a", "b")


def test_what_is_materialised_in_a_scope_is_gone_after_it():
    with open_engine(SMALL, []) as engine:
        before = engine.materialise("before", engine.read(Rows()))
        with engine.scope():
            engine.materialise("inside", before.filter(before.x > 1))
            inside = engine.materialise("inside", before.filter(before.x > 2))  # in the place of the first
            assert engine.count(inside) == 1
        assert engine.count(before) == 3
        names = engine.connection.con.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        assert names == [("before",)]


MANY = """
import sys
from pathlib import Path

import ibis
import pyarrow as pa

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.engines.files import Files
from crops_jax.logs.tables import open_table
from crops_jax.logs.declared import AS_THEY_ARE

pa.set_io_thread_count(1)
folder = Path(sys.argv[1])
files = Files((folder / "items.parquet",), pa.schema([pa.field("item_id", pa.int64(), False)]))
with open_engine(EngineConfig(), [folder]) as engine:
    streams = files, open_table(folder / "items.parquet", "items", AS_THEY_ARE)
    read = [engine.read(stream).select("item_id") for stream in streams for _ in range(3)]
    print(ibis.union(*read, distinct=True).count().to_pyarrow())
"""


def test_a_query_over_more_tables_than_arrow_has_threads_for_reading_ends(tmp_path):
    write(tmp_path / "items.parquet", "items", [item(i, "a lamp") for i in range(5)])
    done = subprocess.run([sys.executable, "-c", MANY, tmp_path], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "5", done.stderr
