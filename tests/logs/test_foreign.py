"""Files of other people's data sets: whole or not, of which types, and by which names they are known."""

import gzip
import hashlib
from pathlib import Path

import pytest
from foreign_sets import clicks
from recipes import load_recipe

from crops_jax.errors import InputError
from crops_jax.logs import foreign

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
