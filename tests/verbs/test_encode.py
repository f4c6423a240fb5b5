"""Parts of a corpus: which rows of the items they are, what a kill leaves of them, and who writes them."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import item, write
from places import ROOT
from shop import manifest

from crops_jax import encode
from crops_jax.artifacts.folders import alone, write_folder
from crops_jax.artifacts.manifest import fingerprint, seal
from crops_jax.config import to_json
from crops_jax.errors import InputError
from crops_jax.retrieval.corpus import corpus_parts, read_corpus
from crops_jax.retrieval.vectors import open_embeddings


def _logs(folder: Path, ids: list[int]) -> Path:
    """Items in two files, in this order, in row groups of four; every fifth has no text."""
    write(folder / "whole.parquet", "items", [item(i, "" if i % 5 == 0 else f"text {i}") for i in ids])
    table = pq.read_table(folder / "whole.parquet")
    (folder / "whole.parquet").unlink()
    (folder / "items.parquet").mkdir()
    for number, rows in enumerate((table.slice(0, 13), table.slice(13))):
        pq.write_table(rows, folder / f"items.parquet/{number}.parquet", row_group_size=4)
    return folder


@pytest.mark.parametrize("size", [1, 3, 4, 10, 13, 30])
def test_parts_together_are_the_corpus_whatever_their_size(size, tmp_path):
    ids = np.random.default_rng(0).permutation(30).tolist()
    logs = _logs(tmp_path, ids)
    whole, parts = read_corpus(logs), [part.read() for part in corpus_parts(logs, size)]
    assert [len(part) + part.without_text for part in parts] == [min(size, 30 - s) for s in range(0, 30, size)]
    assert all((np.diff(part.item_ids) > 0).all() for part in parts)
    for number, part in enumerate(parts):
        wanted = sorted(i for i in ids[number * size : (number + 1) * size] if i % 5)
        assert part.item_ids.tolist() == wanted and part.texts == [f"text {i}" for i in wanted]
    assert sorted(i for part in parts for i in part.item_ids.tolist()) == whole.item_ids.tolist()
    assert sum(part.without_text for part in parts) == whole.without_text == 6


def test_rows_of_a_table_are_read_from_the_row_groups_that_hold_them(tmp_path, monkeypatch):
    logs, asked = _logs(tmp_path, list(range(30))), []
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *args, **told: asked.append(told["row_groups"]) or whole(*args, **told)
    )
    assert [part.read().item_ids.tolist() for part in corpus_parts(logs, 15)] == [
        [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14], [16, 17, 18, 19, 21, 22, 23, 24, 26, 27, 28, 29]
    ]  # fmt: skip
    assert asked[-3:] == [[0, 1, 2, 3], [0], [0, 1, 2, 3, 4]]


@pytest.mark.slow
def test_a_second_command_neither_takes_the_parts_of_the_first_nor_replaces_what_it_made(own_shop):
    encode.run(own_shop)
    whole = fingerprint(own_shop.arm_folder("embeddings"))
    root = own_shop.arm_folder("embeddings").with_name(".embeddings.parts")
    with alone(root), pytest.raises(InputError, match="parts: another command makes it now"):
        encode.run(own_shop)
    assert fingerprint(own_shop.arm_folder("embeddings")) == whole
    (root / "part-00009").mkdir(parents=True)  # of a corpus that had more
    encode.run(replace(own_shop, encode=replace(own_shop.encode, part=7)))
    assert fingerprint(own_shop.arm_folder("embeddings")) != whole and not root.exists()


@pytest.mark.slow
def test_a_part_without_text_is_left_out_and_a_corpus_without_any_is_refused(own_shop):
    place = own_shop.folder("logs") / "items.parquet"
    table = pq.read_table(place)
    blank = {name: pa.array([None if 10 <= i < 20 else v for i, v in enumerate(table[name].to_pylist())], pa.string())
             for name in ("ocr_cover", "photo_caption", "keyword", "click_query")}  # fmt: skip
    for name, column in blank.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, place)
    (own_shop.folder("logs") / "manifest.json").unlink()
    _seal(own_shop)
    encode.run(own_shop)
    made = manifest(own_shop.arm_folder("embeddings"))["counts"]
    assert (made["items"], made["items_without_text"], made["parts"]) == (17, 11, 2)
    assert not {*range(10, 20)} & {*open_embeddings(own_shop.arm_folder("embeddings")).ids().tolist()}
    for name in blank:
        table = table.set_column(table.column_names.index(name), name, pa.nulls(len(table), pa.string()))
    pq.write_table(table, place)
    _seal(own_shop)
    with pytest.raises(InputError, match="no item has text"):
        encode.run(own_shop)


def _seal(e):
    seal(
        e.folder("logs"),
        kind="logs",
        config=None,
        inputs={},
        counts={"items": np.random.default_rng().integers(1 << 40).item()},
    )


def test_a_part_that_was_being_written_when_the_run_was_killed_is_none(own_shop, monkeypatch):
    before = open_embeddings(own_shop.arm_folder("embeddings")).read()
    whole, saved = np.save, []

    def killed(file, array):
        saved.append(file)
        if len(saved) == 4:
            Path(file).write_bytes(array.tobytes()[:5])
            raise KeyboardInterrupt
        whole(file, array)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", killed)
        encode.run(own_shop)
    root = own_shop.arm_folder("embeddings").with_name(".embeddings.parts")
    assert [path.name for path in sorted(root.glob("part-*"))] == ["part-00000"]
    encode.run(replace(own_shop))
    after = open_embeddings(own_shop.arm_folder("embeddings")).read()
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert not root.exists()


@pytest.mark.slow
def test_of_the_parts_that_a_kill_left_those_that_are_whole_and_of_this_version_are_kept(tmp_path):
    root, made_from = tmp_path / ".embeddings.parts", {"train": "a", "code": "1"}
    assert encode._left(root, made_from, 4) == [0, 1, 2, 3]
    for number in range(4):
        with write_folder(encode._folder(root, number), kind="embeddings_part") as out:
            (out / "vectors.npy").write_bytes(b"12")
    (encode._folder(root, 1) / "manifest.json").write_text("{}")
    (encode._folder(root, 3) / "vectors.npy").write_bytes(b"1")
    assert encode._left(root, made_from, 4) == [1, 3]
    assert not encode._folder(root, 1).exists()
    assert encode._left(root, made_from | {"code": "2"}, 4) == [0, 1, 2, 3]


def test_two_processes_write_each_its_own_parts(own_shop):
    folder = own_shop.arm_folder("embeddings")
    before, path = open_embeddings(folder).read(), Path(own_shop.workdir) / "config.py"
    shutil.rmtree(folder)
    path.write_text(f"from crops_jax.config import from_json\n\nEXPERIMENT = from_json({to_json(own_shop)!r})\n")
    verb = [sys.executable, "-m", "crops_jax.encode", "--config", str(path)]
    two = [sys.executable, "launch/local_multiprocess.py", "--processes=2", "--devices=2", "--", *verb]
    done = subprocess.run(two, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[0] encoded:" in done.stdout and "[1] encoded:" not in done.stdout
    after = open_embeddings(folder).read()
    np.testing.assert_array_equal(after.ids, before.ids)
    np.testing.assert_allclose(after.vectors, before.vectors, atol=1e-6)
    assert manifest(folder)["counts"]["parts"] == 3
