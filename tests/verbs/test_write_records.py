"""write_records on a shop in small: its shards, against what a loop over the candidates gives."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from shop import ITEMS, KITS, MINED, candidates_of, flip, manifest, texts
from tiny import WORDS

from crops_jax import write_records
from crops_jax.artifacts.manifest import fingerprint
from crops_jax.errors import InputError
from crops_jax.labels import LETTERS, LabelsConfig, caps, levels, source_bits
from crops_jax.records import RecordsConfig, RecordsReader
from crops_jax.records.write import held_out
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.text.tokenizer import train_tokenizer

N = len(WORDS)


def graded(e, rows):
    """request -> {item: (label, sources)}: Table 1 by one loop over the candidates, without caps."""
    of_pair, events = {}, {}
    for row in rows:
        if row["source"] in e.labels.sources:
            of_pair.setdefault((row["query"], row["item_id"]), set()).add(row["source"])
        if row["request_id"] is not None:
            events[row["request_id"]] = row["query"]
    pooled = [(q, i) for (q, i), sources in of_pair.items() if sources & {"P1", "P2", "P3"}]
    groups = {}
    for request, query in events.items():
        own = [(r["query"], r["item_id"]) for r in rows if r["request_id"] == request]
        found = {pair for pair in own + [p for p in pooled if p[0] == query] if pair in of_pair}
        groups[request] = {
            item: (max(e.labels.levels[s] for s in of_pair[q, item]), source_bits(*of_pair[q, item]))
            for q, item in found
        }
    return {request: docs for request, docs in groups.items() if any(label >= 4 for label, _ in docs.values())}


def read_all(e):
    records = {}
    for split in ("train", "validation"):
        reader = RecordsReader(e.arm_folder("records"), split)
        records[split] = reader.read(range(len(reader)))
    return records


def test_write_records_grades_by_table_1_and_holds_queries_out(shop_logs):
    e, _ = shop_logs
    records = read_all(e)
    every = [record for part in records.values() for record in part]
    found = {r.request_id: {i: (label, source) for i, label, source in zip(r.item_id.tolist(), r.label.tolist(),
             r.source.tolist(), strict=True)} for r in every}  # fmt: skip
    assert found == graded(e, candidates_of(e.folder("mined"))) and len(found) == 2 * N
    for split, part in records.items():
        assert {held_out(r.query, 0.3) for r in part} == {split == "validation"}
    of_item = {row["item_id"]: row for row in pq.read_table(e.folder("logs") / "items.parquet").to_pylist()}
    for record in every:
        real = [k for k, i in enumerate(record.item_id.tolist()) if i >= 0]
        assert [record.keyword[k] for k in real] == [of_item[int(record.item_id[k])]["keyword"] for k in real]
        assert all(record.ocr_cover[k].startswith("hidden") for k in range(len(record)) if k not in real)
    made = manifest(e.arm_folder("records"))
    assert made["config"] == json.loads(json.dumps(write_records.settings(e)))
    assert {k: v["sha256"] for k, v in made["inputs"].items()} == {
        k: fingerprint(e.folder(k)) for k in ("mined", "logs")
    }
    assert len(made["counts"]["splits"]["train"]["shard_lengths"]) == e.records.shards == 2
    assert made["counts"]["assembly"]["groups"] == 2 * N and made["counts"]["token_ids"] is None


def test_the_tokeniser_learns_from_documents_and_train_queries(shop_logs, tmp_path):
    e, _ = shop_logs
    queries = [query for word in WORDS for query in (word, f"{word} kit")]
    train_tokenizer([*texts().values(), *queries], e.vocabulary, tmp_path / "own.json")
    assert (e.folder("tokenizer") / "tokenizer.json").read_bytes() == (tmp_path / "own.json").read_bytes()
    made = manifest(e.folder("tokenizer"))
    assert made["config"] == {"vocabulary": 270, "vocabulary_of": "pieces"} and made["inputs"]["logs"][
        "sha256"
    ] == fingerprint(e.folder("logs"))
    assert len(texts()) == ITEMS - 1


@pytest.mark.parametrize("file", ["logs/items.parquet", *(f"mined/{name}" for name in MINED)])
def test_a_flipped_bit_in_what_shards_are_made_of_stops_them(own_logs, file):
    before = fingerprint(own_logs.arm_folder("records"))
    path = Path(own_logs.workdir) / file
    flip(path, 0.99)  # in the footer of a Parquet file, which no checksum of its own covers
    with pytest.raises(InputError, match=rf"{path.name}: its bytes have changed"):
        write_records.run(own_logs)
    if file.startswith("logs/"):
        with pytest.raises(InputError, match="bytes have changed"):
            write_records.run_tokenizer(own_logs)
    assert before == fingerprint(own_logs.arm_folder("records"))
    flip(path, 0.99)
    flip(own_logs.folder("logs") / "test/feed.parquet")  # another command's
    write_records.run(own_logs)


def test_the_settings_of_records_and_labels_reach_the_shards(own_logs):
    first = manifest(own_logs.arm_folder("records"))["files"]

    def written(**changed):
        e = replace(own_logs, **changed)
        write_records.run(e)
        return e, [r for part in read_all(e).values() for r in part]

    labels = LabelsConfig(levels=levels(P1=4), sources=("P0", "P1", "X3"), caps=caps(X3=0))
    e, records = written(labels=labels)
    assert {label for r in records for label in r.label.tolist()} == {4}
    assert not {s for r in records for s in r.source.tolist()} & {source_bits(x) for x in LETTERS if x not in "P0P1"}
    e, records = written(records=RecordsConfig(shards=3, validation_share=0.3, tokenize=True))
    counts = manifest(e.arm_folder("records"))["counts"]
    assert len(counts["splits"]["train"]["shard_lengths"]) == 3
    tokenizer, of_text = featurizer_of(e), texts(e.text.field_order)
    for record in records:
        rows = tokenizer.encode_queries([record.query])
        assert record.tokens.query.tolist() == rows.ids[0, : rows.length[0]].tolist()
        for item, ids in zip(record.item_id.tolist(), np.split(record.tokens.docs, record.tokens.length.cumsum()[:-1]),
                             strict=True):  # fmt: skip
            if item >= 0:
                rows = tokenizer.encode_documents([of_text[item]])
                assert ids.tolist() == rows.ids[0, : rows.length[0]].tolist()
    made = manifest(e.arm_folder("records"))["inputs"]
    assert made["tokenizer"]["sha256"] == fingerprint(e.folder("tokenizer"))
    write_records.run(own_logs)
    assert manifest(own_logs.arm_folder("records"))["files"] == first
    write_records.run(replace(own_logs, seed=4))
    assert manifest(own_logs.arm_folder("records"))["files"] != first


def test_the_coverage_says_what_a_log_of_exposures_hides(shop_logs):
    """Of P1, P2 and P3 nothing was shown for the query; what was ranked (U2) is P1's as well."""
    e, _ = shop_logs
    found = json.loads((e.arm_folder("records") / "coverage.json").read_text())
    assert (found["arm"], found["queries"], found["positives"]) == ("arm", 2 * N, 5 * N + KITS)
    assert found["positives_never_exposed"] == 3 * N + KITS and found["conflicts"] == {"5 over 2": N}
    told = {s: (n["queries"], n["pairs"], n["positives_never_exposed"]) for s, n in found["sources"].items()}
    assert told == {
        "P0": (2 * N, 2 * N, 0), "P1": (N, N, N), "P2": (N, N, N), "P3": (N + KITS, N + KITS, N + KITS),
        "X3": (2 * N, 3 * N, 0), "U2": (N, N, N), "F1": (N, N, 0),
    }  # fmt: skip
    assert found["left_out"]["mining"] == json.loads((e.folder("mined") / "rejects.json").read_text())
    assert found["left_out"]["records"] == manifest(e.arm_folder("records"))["counts"]["rejects"]
    page = (e.arm_folder("records") / "coverage.html").read_text()
    assert f"<strong>{3 * N + KITS} of these were never exposed" in page and page.count("<table>") == 5
    assert "http" not in page.replace("http-equiv", "")


def test_an_arm_may_read_the_shards_of_another_with_fewer_sources(shop_logs):
    e = shop_logs[0]
    fewer = replace(e, name="fewer", input=replace(e.input, records_of="arm", sources=("P0", "X3")))
    assert fewer.ready("records") == e.arm_folder("records")
    reader = RecordsReader(fewer.ready("records"), sources=fewer.input.sources)
    records = {r.request_id: r for r in reader.read(range(len(reader)))}
    for request, documents in graded(replace(e, labels=LabelsConfig(sources=("P0", "X3"))),
                                     candidates_of(e.folder("mined"))).items():  # fmt: skip
        if request in records:
            record = records[request]
            assert dict(zip(record.item_id.tolist(), record.label.tolist(), strict=True)) == {
                i: label for i, (label, _) in documents.items()
            }
    assert len(records) == len(RecordsReader(e.arm_folder("records"))) > 0  # every search has a click
    with pytest.raises(InputError, match="those of 'arm': write them with its config"):
        write_records.run(fewer)
