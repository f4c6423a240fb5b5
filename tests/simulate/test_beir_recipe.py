"""The recipe for the beir layout: exact tables, every bad line named or counted, samples, a world that simulates."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from recipes import load_recipe

from crops_jax.artifacts.manifest import read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.logs.tables import read_table
from crops_jax.simulate.judged import JudgedWorldConfig
from crops_jax.simulate.platform import PlatformConfig
from crops_jax.simulate.sessions import SessionsConfig
from crops_jax.simulate.simulator import SimulateConfig, build_world, simulate
from crops_jax.simulate.users import UsersConfig

RECIPE = ROOT / "data" / "beir" / "recipe.py"
HEADER = "query-id\tcorpus-id\tscore"
DOCUMENTS = [  # invented
    {"_id": "d9", "title": "Oak  doors", "text": "How oak\n doors are hung."},
    {"_id": "d10", "title": "", "text": "Pine needs paint."},
    {"_id": "d2", "title": "Hinges", "text": "Three hinges carry a heavy door.", "metadata": {"url": ""}},
    {"_id": "d3", "text": "Glass panes."},
]
QUERIES = [
    {"_id": "q2", "text": "hang a  door"}, {"_id": "q1", "text": "paint for pine", "metadata": {}},
    {"_id": "q3", "text": "nobody judged this"},
]  # fmt: skip
QRELS = [("q1", "d10", "2"), ("q2", "d9", "1"), ("q2", "d2", "1"), ("q2", "d10", "0")]


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("beir")


def jsonl(rows) -> str:
    return "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


def tsv(rows, header=HEADER) -> str:
    return "".join("\t".join(row) + "\n" for row in [(header,), *rows])


def files(
    folder: Path, *, documents=DOCUMENTS, queries=QUERIES, qrels: str | None = None, name="test", packed=False
) -> Path:
    texts = {
        "corpus.jsonl": jsonl(documents), "queries.jsonl": jsonl(queries),
        f"qrels/{name}.tsv": tsv(QRELS) if qrels is None else qrels,
    }  # fmt: skip
    for file, text in texts.items():
        path = folder / (f"{file}.gz" if packed else file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return folder


@pytest.fixture
def convert(recipe, tmp_path):
    def run(source: Path, out="out", qrels="test", max_documents=None, seed=0):
        counts = recipe.convert(source, tmp_path / out, qrels=qrels, max_documents=max_documents, seed=seed)
        assert read_manifest(tmp_path / out, "collection")["counts"] == counts
        return counts

    return run


def tables(folder: Path):
    """Items by id, judgments and the id map as plain values."""
    items = {row["item_id"]: row for row in read_table(folder / "items.parquet", "items").to_pylist()}
    judged = read_table(folder / "judgments.parquet", "judgments").to_pylist()
    ids = read_table(folder / "id_map.parquet").to_pylist()
    texts = {i: (row["ocr_cover"], row["photo_caption"]) for i, row in items.items()}
    return texts, [tuple(row.values()) for row in judged], {row["item_id"]: row["doc_id"] for row in ids}


WANTED = (
    {
        0: (None, "Pine needs paint."), 1: ("Hinges", "Three hinges carry a heavy door."), 2: (None, "Glass panes."),
        3: ("Oak doors", "How oak doors are hung."),
    },
    [("hang a door", 0, 0.0), ("hang a door", 1, 1.0), ("hang a door", 3, 1.0), ("paint for pine", 0, 2.0)],
    {0: "d10", 1: "d2", 2: "d3", 3: "d9"},
)  # fmt: skip


def test_titles_texts_and_scores_become_tables_and_ids_lead_back(convert, tmp_path):
    counts = convert(files(tmp_path / "in"))
    assert tables(tmp_path / "out") == WANTED
    assert counts == {
        "documents": 4, "items": 4, "judged documents": 3, "documents left out by --max-documents": 0,
        "documents without a title": 2, "judgments": 4, "queries": 2, "pairs judged more than once (mean taken)": 0,
        "pairs judged more than once with different grades": 0,
        "queries without a usable judgment (left out)": 1,
        "query ids with the text of another one (taken as one query)": 0,
        "queries that share a document of a score above 0": 0,
        "judgments of each grade": {"0": 1, "1": 2, "2": 1}, "rejects": {}, "first rejected": {},
    }  # fmt: skip
    others = read_table(tmp_path / "out" / "items.parquet", "items").drop_columns(
        ["item_id", "ocr_cover", "photo_caption"]
    )
    assert all(column.null_count == 4 for column in others.columns)
    verify(tmp_path / "out")


def test_batches_smaller_than_the_corpus_give_the_same_tables(recipe, convert, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "_BATCH", 3)
    convert(files(tmp_path / "in"))
    assert tables(tmp_path / "out") == WANTED


def test_packed_files_marks_line_ends_blank_lines_and_number_ids_make_no_difference(convert, tmp_path):
    convert(files(tmp_path / "gz", packed=True))
    assert tables(tmp_path / "out") == WANTED
    odd = files(tmp_path / "odd")
    rows = [f"{d}\t{s}\t{q}\tx" for q, d, s in QRELS]
    (odd / "qrels" / "test.tsv").write_text("\n\n".join(["corpus-id\tscore\tquery-id\tnote", *rows]))
    for path in (odd / "corpus.jsonl", odd / "queries.jsonl", odd / "qrels" / "test.tsv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \r\n")
    convert(odd, "odd_out")
    assert tables(tmp_path / "odd_out") == WANTED
    numbered = [{"_id": 30, "text": "a"}, {"_id": "4", "title": None, "text": "b"}]
    convert(files(tmp_path / "n", documents=numbered, qrels=tsv([("q1", "4", "1.0")]), name="dev"), "n_out", "dev")
    assert tables(tmp_path / "n_out")[2] == {0: "30", 1: "4"}
    assert tables(tmp_path / "n_out")[1] == [("paint for pine", 1, 1.0)]


def test_what_cannot_be_used_is_counted_with_its_first_place(convert, tmp_path):
    documents = [*DOCUMENTS, {"_id": "e", "title": " ", "text": "\u200b"}, DOCUMENTS[0], {"_id": "e2", "text": None}]
    queries = [*QUERIES, QUERIES[0], QUERIES[2], {"_id": "q4", "text": ""}, {"_id": "q5", "text": "x" * 2000}]
    rows = [
        *QRELS, ("q9", "d2", "1"), ("q4", "d2", "1"), ("q1", "d77", "1"), ("q1", "e", "1"), ("q1", "d2", "good"),
        ("q1", "d2", "nan"), ("q1", "d2", "-1"), ("q1", "d2", "51"), ("q2", "d9", "0"), ("q2", "d2", "1"),
        ("q1", "d2", "1_0"), ("q5", "d2", "1"),
    ]  # fmt: skip
    counts = convert(files(tmp_path / "in", documents=documents, queries=queries, qrels=tsv(rows)))
    assert counts["rejects"] == {
        "document listed again with the same text": 1,
        "document without title and text": 2,
        "judged query of 2000 characters or more": 1,
        "judged query without text": 1,
        "judgment of a document that is not there, or has no text": 2,
        "judgment of a query that is not there, or was left out": 3,
        "query listed again with the same text": 1,
        "score is negative or above 50": 2,
        "score is not a number": 3,
    }
    assert counts["first rejected"]["judgment of a document that is not there, or has no text"] == (
        "test.tsv line 8: d77"
    )
    assert counts["first rejected"]["document without title and text"] == "corpus.jsonl line 5"
    assert counts["first rejected"]["score is not a number"] == "test.tsv line 10: 'good'"
    assert counts["pairs judged more than once (mean taken)"] == 2
    assert counts["pairs judged more than once with different grades"] == 1
    texts, judged, ids = tables(tmp_path / "out")
    assert (texts, ids) == (WANTED[0], WANTED[2])
    assert ("hang a door", 3, 0.5) in judged and ("hang a door", 1, 1.0) in judged


def test_queries_of_one_text_are_one_query_in_the_first_ids_spelling(convert, tmp_path):
    queries = [{"_id": "b", "text": "OAK door"}, {"_id": "a", "text": "oak  Door"}]
    rows = [("a", "d9", "1"), ("b", "d9", "2"), ("b", "d2", "1")]
    counts = convert(files(tmp_path / "in", queries=queries, qrels=tsv(rows)))
    assert tables(tmp_path / "out")[1] == [("oak Door", 1, 1.0), ("oak Door", 3, 1.5)]
    assert counts["query ids with the text of another one (taken as one query)"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"documents": [*DOCUMENTS, '{"_id": "d7", "te\n']}, r"corpus\.jsonl: line 5: is not JSON \(.*\); mend it"),
        ({"documents": ["[1]\n"]}, r"line 1: is not a JSON object but list"),
        ({"documents": [{"id": "d1", "contents": "x"}]}, r"has no _id and no text, it has id, contents; name them so"),
        ({"documents": [{"_id": "d1", "text": ["x"]}]}, r"line 1: text must be text; write a string"),
        ({"documents": [{"_id": True, "text": "x"}]}, r"line 1: _id must be text"),
        ({"documents": [{"_id": " ", "text": "x"}]}, r"line 1: _id is empty"),
        ({"documents": ['{"_id": "d1", "text": "\\ud800"}\n']}, r"line 1: holds half a character"),
        ({"documents": [*DOCUMENTS, {"_id": "d2", "text": "other"}]},
         r"line 5: _id 'd2' has another text in line 3, .*; remove one"),
        ({"documents": [*DOCUMENTS, {"_id": "d2", "title": "", "text": ""}]},
         r"corpus\.jsonl: line 5: _id 'd2' has another text in line 3"),
        ({"documents": []}, r"corpus\.jsonl: holds no document with text"),
        ({"queries": [*QUERIES, {"_id": "q1", "text": "other"}]}, r"queries\.jsonl: line 4: _id 'q1' has another text"),
        ({"queries": [{"_id": "q1"}]}, r"queries\.jsonl: line 1: has no text"),
        ({"qrels": ""}, r"qrels/test\.tsv: line 1: the file is empty; its first line must be query-id<tab>"),
        ({"qrels": tsv(QRELS).split("\n", 1)[1]}, r"line 1: is a judgment, the header is missing; put query-id<tab>"),
        ({"qrels": "q1 0 d10 1\n"}, r"the header is missing; .*and drop the second column of a TREC file"),
        ({"qrels": tsv(QRELS).replace("\n", "\r")}, r"test\.tsv: line 1: holds carriage returns: end every line"),
        ({"qrels": tsv(QRELS).replace("\t", " ")}, r"line 1: the header's columns are separated by spaces or commas"),
        ({"qrels": tsv([(*row, "0") for row in QRELS], f"{HEADER}\tscore")}, r"line 1: the header names score twice"),
        ({"qrels": tsv(QRELS, "qid\tdid\trel")}, r"the header names qid, did, rel; it must name query-id, corpus-id"),
        ({"qrels": tsv([*QRELS, ("q1 d2 1",)])}, r"line 6: has 1 columns, the header has 3; put one tab"),
        ({"qrels": tsv([("q1", "d10", "0"), ("q1", "gone", "1")])},
         r"no usable judgment has a score above 0, .*'judgment of a document that is not there, or has no text': 1"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_refused_by_line(convert, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        convert(files(tmp_path / "in", **change))
    assert not (tmp_path / "out").exists()


def test_a_query_whose_judged_documents_are_not_there_is_counted(convert, tmp_path):
    rows = [*QUERIES, {"_id": "q4", "text": "windows"}]
    counts = convert(files(tmp_path / "in", queries=rows, qrels=tsv([*QRELS, ("q4", "gone", "1")])))
    assert counts["queries"] == 2 and counts["queries without a usable judgment (left out)"] == 2  # and q3


def test_many_bad_lines_are_one_error_that_counts_them(convert, tmp_path):
    with pytest.raises(InputError) as caught:
        convert(files(tmp_path / "in", documents=["{\n"] * 25))
    assert len(caught.value.problems) == 11 and caught.value.problems[-1] == "and 15 more lines"


def test_missing_doubled_damaged_and_foreign_files(convert, tmp_path):
    source = files(tmp_path / "in")
    with pytest.raises(InputError, match=r"qrels/dev\.tsv: no such file.*holds test\.tsv; name one with --qrels"):
        convert(source, qrels="dev")
    with pytest.raises(InputError, match=r"holds corpus\.jsonl, qrels, queries\.jsonl; give the folder|no such file"):
        convert(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        convert(tmp_path / "nowhere")
    for seed in (-1, 1 << 32):
        with pytest.raises(InputError, match=f"--seed {seed}: must be from 0 to 4294967295"):
            convert(source, seed=seed)
    (source / "corpus.jsonl").write_bytes("\ufeffé".encode("utf-16"))
    with pytest.raises(InputError, match=r"corpus\.jsonl: line 1: is not UTF-8; save the file as UTF-8"):
        convert(source)
    packed = files(tmp_path / "gz", packed=True)
    path = packed / "corpus.jsonl.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"no gzip", whole[:30] + bytes(8) + whole[38:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"corpus\.jsonl\.gz: cannot be unpacked"):
            convert(packed)
    (packed / "queries.jsonl").write_text("")
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"holds both queries\.jsonl and queries\.jsonl\.gz"):
        convert(packed)


def many(folder: Path) -> Path:
    """60 documents on three subjects; the first ten of each are judged for two queries."""
    subjects = ("oak door", "garden hose", "steel rake")
    documents = [
        {"_id": f"{subject}-{n}", "title": f"{subject} {n}", "text": f"All about the {subject}, part {n}."}
        for n in range(20) for subject in subjects
    ]  # fmt: skip
    queries = [{"_id": f"{kind} {s}", "text": f"{kind} {s}"} for s in subjects for kind in ("buy", "buy a good")]
    qrels = [(q["_id"], f"{s}-{n}", "1") for s in subjects for q in queries if s in q["_id"] for n in range(10)]
    return files(folder, documents=documents, queries=queries, qrels=tsv(qrels))


def test_a_sample_keeps_every_judged_document_and_does_not_depend_on_order(convert, tmp_path):
    source = many(tmp_path / "in")
    with (source / "qrels" / "test.tsv").open("a") as more:  # a query that is not there protects no document
        more.write("gone\toak door-19\t1\n")
    counts = convert(source, "some", max_documents=40, seed=3)
    assert (counts["documents"], counts["items"], counts["judged documents"]) == (60, 40, 30)
    assert counts["documents left out by --max-documents"] == 20 and counts["judgments"] == 60
    assert counts["queries that share a document of a score above 0"] == 6
    some = tables(tmp_path / "some")
    assert {f"{s}-{n}" for s in ("oak door", "garden hose") for n in range(10)} < {*some[2].values()}
    assert list(some[2].values()) == sorted(some[2].values()) and sorted(some[0]) == list(range(40))
    rows = (source / "corpus.jsonl").read_text().splitlines(keepends=True)
    (source / "corpus.jsonl").write_text("".join(reversed(rows)))
    convert(source, "again", max_documents=40, seed=3)
    assert tables(tmp_path / "again") == some
    convert(source, "other", max_documents=40, seed=4)
    assert tables(tmp_path / "other")[2] != some[2]
    assert convert(source, "all", max_documents=60)["documents left out by --max-documents"] == 0
    for most, said in ((29, "30 documents are judged, and all of them are kept: give at least"), (0, "is below 1")):
        with pytest.raises(InputError, match=said):
            convert(source, max_documents=most)


def test_the_collection_is_a_world_that_simulates(convert, tmp_path):
    convert(many(tmp_path / "in"))
    world = build_world(JudgedWorldConfig(str(tmp_path / "out"), relevant_grade=1.0))
    assert len(world.queries) == 6 and world.counts["queries with a sibling"] == 6
    config = SimulateConfig(
        users=UsersConfig(n_users=30), sessions=SessionsConfig(train_sessions=200, test_sessions=50),
        platform=PlatformConfig(dense_width=4, dense_features=500),
    )  # fmt: skip
    counts = simulate(world, config, tmp_path / "logs")
    assert counts["train"]["clicks"] > 0


def test_the_command_prints_counts_and_ends_with_2_on_a_bad_file(tmp_path):
    source = files(tmp_path / "in", qrels=tsv([*QRELS, ("q1", "d2", "x")]))
    command = [sys.executable, str(RECIPE), str(source), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "warning: no two queries share a relevant document" in done.stderr
    assert "items: 4\n" in done.stdout and f"wrote {tmp_path / 'out'}" in done.stdout
    assert "rejected: 1 x score is not a number (the first: test.tsv line 6: 'x')\n" in done.stdout
    done = subprocess.run([*command, "--qrels", "dev"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
