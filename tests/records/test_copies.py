"""Documents of one text under several ids are one document to labels, groups and keys."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hand_logs import item

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest
from crops_jax.labels import Group, LabelsConfig, source_bits
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.normal_text import normal_form
from crops_jax.records import Items, RecordsConfig, RecordsReader, write_records
from crops_jax.records.assemble import assemble
from crops_jax.stable_hash import text_keys
from crops_jax.text.tokenizer import document_text

TITLES = {
    0: "iPhone Case",
    1: "iphone\u3000case",
    2: "ＩＰＨＯＮＥ case",
    3: "iphone case blue",
    4: None,
    5: " ",
    7: "drill",
}
WRITTEN = {-8: "drill", -9: "iPhone case", -10: "a lamp", -11: "A LAMP"}  # by a language model


def items(**more):
    rows = [item(i, title) | more.get(f"of_{i}", {}) for i, title in (TITLES | WRITTEN).items()]
    return Items({"items": pa.Table.from_pylist(rows)})


def same(ids, found=None, fields=TEXT_FIELDS):
    """For every id the place of the first one with its key."""
    keys = (found or items()).keys(fields)(np.array(ids, np.int64)).tolist()
    assert all(0 <= key < 2**63 for key in keys)
    return [keys.index(key) for key in keys]


def test_documents_of_one_text_have_one_key():
    assert same([0, 1, 2, 3, -9, 7, -8]) == [0, 0, 0, 3, 0, 5, 5]
    assert same([-10, -11]) == [0, 0]
    assert same([4, 5, 99, 98]) == [0, 1, 2, 3]  # documents without text are not one; an unknown id is its own
    assert same([]) == []


def test_a_key_is_that_of_the_text_that_the_model_reads():
    """Fields joined as `document_text` joins them, blanks and what is invisible in every place."""
    values = ["", " ", "\u200b", "a|b", "A\u3000b ", "|", "\u00ad", "ﬁne \u0301x", "b"]
    draw = np.random.default_rng(0)
    rows = [item(i, None) | dict(zip(TEXT_FIELDS, draw.choice(values, 4).tolist(), strict=True)) for i in range(400)]
    keys = Items({"items": pa.Table.from_pylist(rows)}).keys()(np.arange(400)).tolist()
    forms = [normal_form(document_text(*(row[name] for name in TEXT_FIELDS))) for row in rows]
    wanted = text_keys(forms).tolist()
    assert [k == w for k, w in zip(keys, wanted, strict=True)] == [form != "" for form in forms]
    assert 50 < len(set(keys)) < 400


def test_a_key_is_that_of_the_text_wherever_it_stands():
    alone = Items({"other": pa.Table.from_pylist([item(70, "IPHONE case")])})
    assert alone.keys()(np.array([70])) == items().keys()(np.array([0]))
    assert alone.keys(("keyword", "ocr_cover"))(np.array([70])) == alone.keys(("ocr_cover", "keyword"))(np.array([70]))


def test_only_what_the_model_reads_tells_documents_apart():
    found = items(of_1={"click_query": "case for a phone"})
    assert same([0, 1, 2], found) == [0, 1, 0]
    assert same([0, 1, 2], found, ("ocr_cover", "keyword")) == [0, 0, 0]


def candidates(*rows):
    ordered = sorted(rows, key=lambda r: (r[0], r[1] is not None, r[1] or "", r[3], r[2]))
    columns = ("query", "request_id", "user_id", "item_id", "source")
    rows = [dict(zip(columns, (q, r, r and 7, i, s), strict=True)) for q, r, i, s in ordered]
    return pa.Table.from_pylist(rows, schema=CANDIDATES_SCHEMA)


def told(groups):
    return {g.request_id: dict(zip(g.item_id.tolist(), g.label.tolist(), strict=True)) for g in groups}


def test_copies_share_the_highest_label_and_stand_once_in_a_group():
    rows = candidates(("q", "a", 1, "P0"), ("q", "b", 2, "U2"), ("q", "b", 0, "X3"), ("q", "b", 3, "P0"))
    counts = Counter()
    groups = assemble(rows, LabelsConfig(), counts, items().keys())
    # Clicked as 1 in a: label 4 in b too, where it was shown as 0 and ranked as 2.
    assert told(groups) == {"a": {1: 4}, "b": {0: 4, 3: 4}}
    assert groups[1].source.tolist() == [source_bits("P0", "X3", "U2"), source_bits("P0")]
    assert counts["rows_of_copies"] == 2
    assert told(assemble(rows, LabelsConfig()))["b"] == {3: 4, 0: 3, 2: 2}  # what the ids alone would say


def test_a_copy_in_the_pool_is_the_events_own():
    rows = candidates(("q", "a", 2, "U2"), ("q", "a", 3, "P0"), ("q", None, 1, "P1"), ("q", None, -9, "P3"))
    (group,) = assemble(rows, LabelsConfig(), Counter(), items().keys())
    assert told([group]) == {"a": {2: 5, 3: 4}}
    pool = candidates(("q", "a", 3, "P0"), ("q", None, 2, "P1"), ("q", None, -9, "P3"))
    assert told(assemble(pool, LabelsConfig(), Counter(), items().keys())) == {"a": {2: 5, 3: 4}}


def test_without_copies_nothing_changes():
    rows = candidates(*[("q", f"r{i}", i, s) for i, s in enumerate(("P0", "X3", "U2", "F1"))], ("q", None, 3, "P1"))
    counts = Counter(), Counter()
    plain = assemble(rows, LabelsConfig(), counts[0])
    same = assemble(rows, LabelsConfig(), counts[1], lambda ids: ids)
    assert told(plain) == told(same) and counts[0] == counts[1]


def group(request_id, query, ids, labels):
    return Group(request_id, 1, query, np.array(ids), np.array(labels, np.int32), np.ones(len(ids), np.int32))


@pytest.fixture
def records(tmp_path):
    groups = [
        group("a", "iphone case", [0, 1, 3], [4, 2, 1]),  # 1 is a copy of 0 with a lower label
        group("b", "IPHONE\u00a0Case", [2, 7], [3, 5]),
        group("c", "phone", [-9, 2, 3], [3, 3, 4]),
    ]
    with write_folder(tmp_path / "r", kind="records") as out:
        write_records(groups, items(), out, RecordsConfig(shards=1, validation_share=0), 0)
    reader = RecordsReader(tmp_path / "r")
    return {r.request_id: r for r in reader.read(range(len(reader)))}, read_manifest(tmp_path / "r")["counts"]


def test_copies_have_one_key_and_stand_once_in_a_record(records):
    by_request, counts = records
    assert {k: r.item_id.tolist() for k, r in by_request.items()} == {"a": [0, 3], "b": [2, 7], "c": [-9, 3]}
    assert {k: r.label.tolist() for k, r in by_request.items()} == {"a": [4, 1], "b": [3, 5], "c": [3, 4]}
    text = {k: r.doc_key.tolist() for k, r in by_request.items()}
    assert text["a"] == text["c"] and text["b"][0] == text["a"][0] and len({k for ks in text.values() for k in ks}) == 3
    query = {k: r.query_key for k, r in by_request.items()}
    assert query["a"] == query["b"] != query["c"]
    assert counts["distinct_documents"] == 3 and counts["rejects"]["copy_in_group"] == 2
    assert by_request["b"].ocr_cover == ["ＩＰＨＯＮＥ case", "drill"]  # each keeps its own text
