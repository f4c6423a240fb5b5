"""Files of other people's data sets: whole or not, of which types, and by which names they are known."""

import gzip
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click_streams import facts_of
from foreign_sets import clicks
from recipes import load_recipe

from crops_jax.errors import InputError
from crops_jax.logs import foreign
from crops_jax.logs.folder import open_logs

ROWS = b"a,b\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(5000))


def packed(folder: Path, data: bytes) -> foreign.Found:
    (folder / "t.csv.gz").write_bytes(data)
    return foreign.look("t", folder / "t.csv.gz")


def test_a_packed_file_is_read_to_its_end_and_its_checksum(tmp_path):
    whole = gzip.compress(ROWS)
    two = gzip.compress(ROWS[:400]) + gzip.compress(ROWS[400:])  # as `cat a.gz b.gz` makes them
    for sound in (whole, two):
        assert foreign.fingerprints([packed(tmp_path, sound)]) == {"t: t.csv.gz": hashlib.sha256(sound).hexdigest()}
    flipped = bytearray(whole)
    flipped[-6] ^= 255  # of the checksum
    for bad in (whole[: len(whole) * 9 // 10], whole[:-4], bytes(flipped), two[:-8]):
        with pytest.raises(InputError, match=r"t\.csv\.gz: cannot be read .*it is cut or damaged: get it again"):
            foreign.fingerprints([packed(tmp_path, bad)])


def test_an_import_of_a_cut_file_writes_no_logs(tmp_path):
    events, items = clicks()
    for name, rows in {"e": events, "i": items}.items():
        names = [n for n in rows[0] if n != "tags"]
        lines = [",".join(names), *(",".join("" if row[n] is None else str(row[n]) for n in names) for row in rows)]
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    convert = load_recipe("clickstream").convert
    convert(tmp_path / "e.csv.gz", tmp_path / "i.csv.gz", tmp_path / "logs")
    whole = (tmp_path / "i.csv.gz").read_bytes()
    (tmp_path / "i.csv.gz").write_bytes(whole[:-12])
    with pytest.raises(InputError, match="cut or damaged"):
        convert(tmp_path / "e.csv.gz", tmp_path / "i.csv.gz", tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def numbered(kinds: list[pa.DataType]) -> tuple[list[pa.Table], pa.Table]:
    """(a table of events for each type of its ids, the catalogue); ids are numbers, one user is nobody."""
    events, items = clicks()
    number = {row["item"]: 1000 + n for n, row in enumerate(items)}
    ids = {"item": [number.get(row["item"]) for row in events], "user": [int(row["user"][1:]) for row in events]}
    ids["user"][0] = None
    plain = [row | {"session": f"{row['user']} {row['time']:%d}"} for row in events]
    whole = pa.Table.from_pylist(plain)
    parts = []
    for part, kind in enumerate(kinds):
        of_part = whole
        for name, values in ids.items():
            if pa.types.is_string(kind):
                column = pa.array([None if v is None else f"{v}.0" for v in values])
            else:
                column = pa.array(values, pa.int64()).cast(kind)
            of_part = of_part.set_column(of_part.column_names.index(name), name, column)
        parts.append(of_part.take(list(range(part, len(whole), len(kinds)))))
    return parts, pa.Table.from_pylist([row | {"item": number[row["item"]]} for row in items])


def test_an_id_is_one_id_in_whatever_type_a_file_holds_it(tmp_path):
    recipe = load_recipe("clickstream")
    found = []
    mixes = ["int64"], ["float64", "int64"], ["int64", "decimal128(30, 2)"], ["string"]
    for number, names in enumerate(mixes):
        kinds = [pa.decimal128(30, 2) if "decimal" in name else pa.type_for_alias(name) for name in names]
        folder = tmp_path / str(number)
        (folder / "events").mkdir(parents=True)
        parts, items = numbered(kinds)
        for part, table in enumerate(parts):
            pq.write_table(table, folder / "events" / f"{part}.parquet")
        pq.write_table(items, folder / "items.parquet")
        facts = recipe.convert(folder / "events", folder / "items.parquet", folder / "logs")
        assert facts["rejects"] == {}, names
        ids = open_logs(folder / "logs").declared.items
        assert (ids is None) == (names != ["string"])  # numbers stay numbers
        found.append({n: sorted(tuple(map(str, row)) for row in rows) for n, rows in facts_of(folder / "logs").items()})
    assert all(one == found[0] for one in found)


def test_a_column_has_the_type_that_all_files_can_be_read_in(tmp_path):
    columns = {
        "n": ([1], [2.5]), "t": ([1], ["a"]), "none": ([None], ["a"]), "list": ([[]], [["a"]]),
        "f": (pa.array([1.5], pa.float32()), pa.array([2.5], pa.float64())),
    }  # fmt: skip
    for part in range(2):
        pq.write_table(pa.table({n: pa.array(values[part]) for n, values in columns.items()}), tmp_path / f"{part}.pq")
    found = foreign.look("t", tmp_path)
    assert {n: str(kind) for n, kind in found.columns.items()} == {
        "n": "string", "t": "string", "none": "string", "list": "list<element: string>", "f": "float"
    }  # fmt: skip
    pq.write_table(pa.table({"list": ["a"]}), tmp_path / "2.pq")
    with pytest.raises(InputError, match=r"column list is .* and string in its files; write it as one of them"):
        foreign.look("t", tmp_path)


@pytest.mark.parametrize("name", ["e.csv.zst", "e.CSV", "e.tsv", "README.txt"])
def test_a_file_of_another_kind_is_told_the_endings(tmp_path, name):
    (tmp_path / "e.csv").write_bytes(ROWS)
    (tmp_path / name).write_bytes(ROWS)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=f"{name}: neither CSV nor Parquet; CSV files end in .csv or .csv.gz"):
            foreign.look("t", path)


def test_a_cut_parquet_file_is_a_cut_one_and_two_kinds_are_one_too_many(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part-0")  # without an ending
    assert list(foreign.look("t", tmp_path).columns) == ["a"]
    (tmp_path / "e.csv").write_bytes(ROWS)
    with pytest.raises(InputError, match="holds CSV and Parquet files; leave one of both"):
        foreign.look("t", tmp_path)
    (tmp_path / "cut.parquet").write_bytes(b"PA")
    with pytest.raises(InputError, match="cut or damaged"):
        foreign.look("t", tmp_path / "cut.parquet")


def test_columns_that_differ_in_case_alone_are_told_and_none_is_read_for_the_other(tmp_path):
    (tmp_path / "t.csv").write_text("Query,query\nno,yes\n")
    pq.write_table(pa.table({"Query": ["no"], "query": ["yes"]}), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(InputError, match="columns Query and query differ in case alone: leave one"):
            foreign.look("t", tmp_path / name)
    (tmp_path / "t.parquet").unlink()
    (tmp_path / "t.csv").write_text("id,Title\n1,a\n")
    with pytest.raises(InputError, match=r"t: no column title \(upper and lower case differ\); it has id, Title"):
        foreign.find(tmp_path, [foreign.Wanted("t", ("id",), ("title",))])
    load = load_recipe("clickstream")
    with pytest.raises(InputError, match=r"no column title \(upper and lower case differ\)"):
        load._wanted("catalogue", foreign.look("t", tmp_path / "t.csv"), {"item": "id"})
