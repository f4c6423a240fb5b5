"""Mined candidates to shards: the same bytes from any number of workers and any cut, what a kill leaves, memory."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hand_logs import item, write
from killed import killed

from crops_jax.artifacts import folders
from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import file_facts
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.labels import LabelsConfig
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.tables import write_table
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.mining.knowledge import KNOWLEDGE_SCHEMA
from crops_jax.records import (
    Items,
    RecordsConfig,
    RecordsReader,
    candidates,
    executors,
    parts,
    read_items,
    workers,
    write_records,
)
from crops_jax.records.assemble import assemble
from crops_jax.records.candidates import cut
from crops_jax.records.parts import PartSettings
from crops_jax.records.provenance import provenance_path
from crops_jax.records.workers import Mined, write_mined

QUERIES, EVENTS = 24, 300
CONFIG = RecordsConfig(shards=3, validation_share=0.2, workers=1)
SETTINGS = PartSettings(LabelsConfig(), 0.2, TEXT_FIELDS)


def rows():
    """Events with their documents, a pool a query; items 40 to 43 have no text, 50 is unknown, 30 copies 0."""
    draw, found = np.random.default_rng(1), []
    for e in range(EVENTS):
        query = f"query {e % QUERIES:02d}"
        for source, n in (("P0", 1), ("X3", 2), ("U2", 5), ("F1", 4)):
            found += [(query, f"r{e:04d}", i, source) for i in draw.choice(51, n, replace=False).tolist()]
    for q in range(QUERIES):
        pool = [(i, s) for s in ("P1", "P2") for i in draw.choice(40, 5, replace=False).tolist()] + [(-1 - q % 3, "P3")]
        found += [(f"query {q:02d}", None, i, source) for i, source in pool]
    ordered = sorted(set(found), key=lambda r: (r[0], r[1] or "", r[3], r[2]))
    names = ("query", "request_id", "item_id", "source")
    return pa.Table.from_pylist(
        [dict(zip(names, r, strict=True)) | {"user_id": 7 if r[1] else None} for r in ordered], schema=CANDIDATES_SCHEMA
    )


@pytest.fixture
def mined(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "_ROWS", 600)
    titles = {i: f"item {i}" for i in range(50)} | {30: "ITEM 0"} | dict.fromkeys(range(40, 44), " ")
    with write_folder(tmp_path / "logs", kind="logs") as out:
        write(out / "items.parquet", "items", [item(i, title) for i, title in titles.items()])
    written = [{"query": q, **item(i, f"written {i}")} for i in (-1, -2, -3) for q in ("query 00", "query 01")]
    with write_folder(tmp_path / "mined", kind="mined") as out:
        pq.write_table(rows(), out / "candidates.parquet", row_group_size=250)
        columns = {name: [row[name] for row in written] for name in KNOWLEDGE_SCHEMA.names}
        write_table(KNOWLEDGE_SCHEMA, columns, out / "knowledge.parquet")
    inputs = {name: tmp_path / name for name in ("mined", "logs")}
    return Mined(inputs["mined"] / "candidates.parquet", inputs["mined"] / "knowledge.parquet", inputs["logs"], inputs)


def made(mined, folder, config=CONFIG, settings=SETTINGS):
    """(name -> bytes of all that was written but the manifest, counts, coverage)."""
    with write_folder(folder, kind="records") as out:
        scratch = folder.with_name(f"{folder.name}.parts")
        coverage = write_mined(mined, out, config, settings, 3, EngineConfig(), scratch)
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    return files, out.counts, coverage.report(settings.labels)


def test_any_number_of_workers_and_any_cut_give_the_same_bytes(mined, tmp_path, monkeypatch):
    one = made(mined, tmp_path / "one")
    assert len(cut(mined.candidates)) == 6 and one[1]["splits"]["train"]["groups"] > 150
    assert made(mined, tmp_path / "two", replace(CONFIG, workers=2)) == one
    monkeypatch.setattr(candidates, "_ROWS", 1 << 18)
    assert len(cut(mined.candidates)) == 1
    assert made(mined, tmp_path / "whole") == one
    table, folder = pq.read_table(mined.candidates), tmp_path / "candidates.parquet"
    folder.mkdir()
    first = pc.less(table["query"], "query 11")
    pq.write_table(table.filter(first), folder / "part-0.parquet")
    pq.write_table(table.filter(pc.invert(first)), folder / "part-1.parquet")
    assert made(replace(mined, candidates=folder), tmp_path / "folder") == one


def test_executors_write_the_same_bytes_part_by_part_and_shard_by_shard(mined, tmp_path, monkeypatch):
    """As a cluster does it, here one task after the other: every shard is written on its own, from all parts."""
    wanted, hashed = made(mined, tmp_path / "one"), []
    monkeypatch.setattr(folders, "file_facts", lambda p, root: hashed.append(p.name) or file_facts(p, root))
    monkeypatch.setattr(executors, "_COUNTED", 4)
    monkeypatch.setattr(
        workers, "_write_shards",
        lambda *args: executors.write_shards(*args, EngineConfig(), tmp_path / "executors.parts/shards"),
    )  # fmt: skip
    assert made(mined, tmp_path / "executors") == wanted
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("executors", "one")]
    assert manifests[0] == manifests[1]
    assert hashed.count("crops-train.tfrecord-00001-of-00003") == 1, "its executor did, and nobody else"
    path = provenance_path(tmp_path / "executors.parts/00002/train")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    shutil.rmtree(tmp_path / "executors")
    monkeypatch.setattr(workers.Job, "is_made", lambda job: True)
    with pytest.raises(InputError, match=r"train\.sources\.npy: is missing, or its bytes have changed"):
        made(mined, tmp_path / "executors")


def test_the_groups_are_those_of_one_process_with_all_items_in_memory(mined, tmp_path):
    files, counts, _ = made(mined, tmp_path / "parts")
    items = read_items(mined.logs, mined.knowledge)
    groups = assemble(rows(), LabelsConfig(), keys=items.keys())
    with write_folder(tmp_path / "memory", kind="records") as out:
        write_records(groups, items, out, CONFIG, 3)
    assert {p.name: p.read_bytes() for p in (tmp_path / "memory").iterdir() if p.name != "manifest.json"} == files
    told = {name: counts[name] for name in out.counts if name != "labels"}
    assert told == {name: n for name, n in out.counts.items() if name != "labels"}
    assert counts["rejects"]["unknown_item"] > 0 < counts["rejects"]["item_without_text"]
    assert counts["assembly"]["rows_of_copies"] > 0


def test_a_killed_run_leaves_no_half_shard_and_its_finished_parts_are_kept(mined, tmp_path, monkeypatch):
    wanted = made(mined, tmp_path / "wanted")
    target, make, ran = tmp_path / "records", workers.make_part, []

    def killed_in_the_third(job):
        ran.append(job.folder.name)
        if len(ran) == 3:
            raise KeyboardInterrupt
        make(job)

    monkeypatch.setattr(workers, "make_part", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        made(mined, target)
    assert not target.exists() and [p.name for p in tmp_path.glob(".records*")] == []
    assert made(mined, target) == wanted
    assert ran == ["00000", "00001", "00002", "00002", "00003", "00004", "00005"]
    made(mined, target, settings=replace(SETTINGS, labels=LabelsConfig(seed=1)))
    assert len(ran) == 7 + 6  # nothing of other settings is kept


def test_a_kept_part_that_was_damaged_is_made_again(mined, tmp_path):
    wanted = made(mined, tmp_path / "one")
    path = tmp_path / "one.parts/00003/train"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert made(mined, tmp_path / "one") == wanted


def test_a_worker_s_error_comes_out_as_it_is_and_a_killed_one_is_told(mined, tmp_path, monkeypatch):
    bad = pq.read_table(mined.candidates)
    source = pa.array(["Z9" if i == len(bad) - 1 else s for i, s in enumerate(bad["source"].to_pylist())])
    pq.write_table(bad.set_column(bad.column_names.index("source"), "source", source), tmp_path / "bad.parquet",
                   row_group_size=250)  # fmt: skip
    with pytest.raises(InputError, match=r"unknown sources \['Z9'\]"):
        made(replace(mined, candidates=tmp_path / "bad.parquet"), tmp_path / "bad", replace(CONFIG, workers=2))
    monkeypatch.setattr(workers, "make_part", killed)
    with pytest.raises(InputError, match=r"a worker process was ended from outside; .* fewer --records.workers"):
        made(mined, tmp_path / "dead", replace(CONFIG, workers=2))


def test_no_table_of_all_items_is_read_by_the_groups(mined, tmp_path, monkeypatch):
    """Each part sees the documents that its own candidates name, and no other."""
    seen = []
    monkeypatch.setattr(parts, "Items", lambda tables, shown: seen.append(tables["documents"]) or Items(tables))
    made(mined, tmp_path / "r")
    for table, part in zip(seen, cut(mined.candidates), strict=True):
        named = set(candidates.read_part(part)["item_id"].to_pylist())
        assert set(table["item_id"].to_pylist()) == named - {50}


def test_coverage_by_hand(mined, tmp_path):
    """Two queries: one with a click, a rewording and a feed document of it; one with a click that was shown twice."""
    table = [
        ("a", None, 1, "P1"), ("a", None, 2, "P1"), ("a", None, 3, "P2"), ("a", "r1", 0, "P0"), ("a", "r1", 1, "U2"),
        ("a", "r1", 3, "X3"), ("a", "r2", 1, "F1"), ("b", "r3", 0, "P0"), ("b", "r4", 0, "X3"), ("b", "r4", 5, "F1"),
    ]  # fmt: skip
    names = ("query", "request_id", "item_id", "source")
    columns = [dict(zip(names, r, strict=True)) | {"user_id": 1 if r[1] else None} for r in table]
    pq.write_table(pa.Table.from_pylist(columns, schema=CANDIDATES_SCHEMA), tmp_path / "c.parquet", row_group_size=3)
    settings = replace(SETTINGS, validation_share=0)
    config = replace(CONFIG, validation_share=0)
    _, _, coverage = made(replace(mined, candidates=tmp_path / "c.parquet"), tmp_path / "r", config, settings)
    assert json.loads(json.dumps(coverage)) == coverage
    assert (coverage["queries"], coverage["pairs"]) == (2, 6)
    assert coverage["labels"] == {"5": 2, "4": 3, "3": 0, "2": 0, "1": 1}
    assert (coverage["positives"], coverage["positives_never_exposed"]) == (5, 2), "1 and 2 of a; 3 was shown"
    told = {s: tuple(found.values()) for s, found in coverage["sources"].items()}
    assert told == {
        "P0": (2, 2, 0), "P1": (1, 2, 2), "P2": (1, 1, 0), "P3": (0, 0, 0), "X3": (2, 2, 0), "U2": (1, 1, 1),
        "F1": (2, 2, 1),
    }  # fmt: skip
    assert {n: q for n, q in coverage["queries_by_positives"].items() if q} == {"1": 1, "3 to 4": 1}
    assert {n: q for n, q in coverage["queries_by_positives_never_exposed"].items() if q} == {"0": 1, "2": 1}
    assert coverage["conflicts"] == {"5 over 2 1": 1, "4 over 3": 2}
    assert RecordsReader(tmp_path / "r").max_docs_per_query == 4
    settings = replace(settings, labels=replace(settings.labels, min_positive=5))
    _, counts, coverage = made(replace(mined, candidates=tmp_path / "c.parquet"), tmp_path / "five", config, settings)
    assert (coverage["positives"], coverage["positives_never_exposed"]) == (2, 2)
    assert counts["splits"]["train"]["groups"] == 2, "the searches of a"


@pytest.mark.parametrize("min_anchor", [1, 4])
def test_every_graded_document_from_a_label_up_is_the_anchor_of_an_example(mined, tmp_path, min_anchor):
    def read(labels):
        folder = tmp_path / str(labels.one_anchor)
        made(mined, folder, replace(CONFIG, validation_share=0.0), replace(SETTINGS, labels=labels, validation_share=0))
        reader = RecordsReader(folder)
        return [(record.request_id, record.label) for record in reader.read(range(len(reader)))]

    whole, cut_up = read(LabelsConfig()), read(LabelsConfig(one_anchor=True, min_anchor=min_anchor))
    of_whole = {request for request, _ in whole}  # others lost their positives, which have no text
    anchors = Counter((request, int(label[0])) for request, label in cut_up if request in of_whole)
    assert anchors == Counter((r, label) for r, group in whole for label in group.tolist() if label >= min_anchor)
    assert all((label[1:] < label[0]).all() for _, label in cut_up)
