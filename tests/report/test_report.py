"""Evaluation of a retriever whose answers are known, and the tables made from it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from crops_jax.artifacts.manifest import verify
from crops_jax.errors import InputError
from crops_jax.logs.tables import write_table
from crops_jax.report.tables import Table, long_tables, report_markdown, short_table, table_notes, write_report
from crops_jax.retrieval.config import EvaluateConfig
from crops_jax.retrieval.ranking import top_k
from crops_jax.retrieval.testset_metrics import evaluate, read_grades

EVENTS = pa.schema([("event_id", pa.string()), ("query", pa.string()), ("item_id", pa.int64())])
PAIRS = pa.schema([("query", pa.string()), ("item_id", pa.int64())])
JUDGMENTS = pa.table({"query": ["a", "a", "a", "c"], "item_id": [1, 2, 9, 3], "grade": [1.0, 3.0, 2.0, 0.0]})
FEW = "CT has 3 events: its recall says little.\n\nQR has 1 event: its recall says little."
SCORES = {"a": [4, 3, 2, 1, 0], "b": [0, 1, 2, 3, 4], "c": [0, 0, 0, 0, 0]}  # of the items 0..4


@pytest.mark.parametrize("cutoffs", [(), (0, 10), (10, 100, 10)])
def test_cutoffs_are_above_zero_and_none_is_there_twice(cutoffs):
    """Twice in the table of values, the events of a cutoff would count twice."""
    with pytest.raises(InputError, match="evaluate config"):
        EvaluateConfig(cutoffs=cutoffs)


class KnownSearcher:
    ids = np.arange(5)

    def __init__(self):
        self.searched = []

    def search(self, queries, k):
        self.searched += queries
        return top_k(np.array([SCORES[q] for q in queries], float), self.ids, k)

    def score(self, queries, item_ids):
        return [np.array([SCORES[q][i] if i < 5 else -np.inf for i in ids]) for q, ids in
                zip(queries, item_ids, strict=True)]  # fmt: skip


def write_sets(folder, bad=0):
    write_table(EVENTS, {"event_id": ["e1", "e1", "e2", "e3", "e3"], "query": ["a", "a", "a", "b", "b"],
                         "item_id": [0, 3, 1, 4, 77]}, folder / "ct.parquet")  # fmt: skip
    write_table(EVENTS, {"event_id": ["f1"], "query": ["b"], "item_id": [0]}, folder / "qr.parquet")
    write_table(PAIRS, {"query": ["c", "c"], "item_id": [1 - bad, 4]}, folder / "unexposed.parquet")
    for name, items in {"ranked": [0, 1, 2, 4], "shown": [4]}.items():
        columns = {"event_id": ["e1"] * len(items), "query": ["a"] * len(items), "item_id": items}
        write_table(EVENTS, columns, folder / f"{name}.parquet")
    return folder


CONFIG = EvaluateConfig(cutoffs=(2, 4), ndcg_at=4)


def results(folder, arm="CroPS", searcher=None):
    return evaluate(searcher or KnownSearcher(), write_sets(folder), JUDGMENTS, ["a"], CONFIG, arm)


def test_known_answers(tmp_path):
    searcher = KnownSearcher()
    done = results(tmp_path, searcher=searcher)
    assert searcher.searched == ["a", "b", "c"], "each query string once"
    recall = done.results["recall"]
    # @2: e1 finds 0 of {0, 3}, e2 finds 1, e3 finds 4 of {4, 77}; @4: e1 finds both.
    assert recall["CT"]["all"]["2"] == {"value": pytest.approx((1 / 2 + 1 + 1 / 2) / 3), "counted": 3, "dropped": 0}
    assert recall["CT"]["seen"]["4"] == {"value": 1.0, "counted": 2, "dropped": 0}
    assert recall["CT"]["unseen"]["4"]["value"] == 0.5
    assert recall["QR"]["all"]["4"]["value"] == 0 and recall["QR"]["seen"]["4"]["value"] is None
    assert recall["unexposed"]["all"]["2"]["value"] == 0.5, "ties by smaller id: items 0 and 1"
    assert recall["ranked"]["all"]["2"]["value"] == 0.5 and recall["ranked"]["all"]["4"]["value"] == 0.75
    assert recall["shown"]["all"]["4"]["value"] == 0 and recall["shown"]["seen"]["4"]["counted"] == 1
    # Judged order of a: item 1 (grade 1), 2 (grade 3), then 9, which the corpus lacks; c has an ideal of 0.
    ideal = 7 + 3 / np.log2(3) + 1 / 2
    judged = done.results["ndcg"]["judged"]["all"]
    assert judged == {"value": pytest.approx((1 + 7 / np.log2(3) + 3 / 2) / ideal), "counted": 1, "dropped": 1}
    full = done.results["ndcg"]["full"]["all"]["value"]
    assert full == pytest.approx((1 / np.log2(3) + 7 / 2) / ideal), "the list of a is 0, 1, 2, 3"
    assert done.results["judged_at"]["all"]["value"] == 0.5
    assert done.results["judged_documents_outside_corpus"] == 1
    assert done.results["relevant_outside_corpus"] == {"CT": 1, "QR": 0, "unexposed": 0, "ranked": 0, "shown": 0}
    rows = done.per_query.to_pylist()
    assert {"set": "CT", "metric": "recall@2", "event_id": "e3", "query": "b", "seen": False, "value": 0.5} in rows
    assert sum(r["value"] is None for r in rows) == 3, "c in both protocols and in judged@4"


def test_a_query_is_seen_and_judged_in_whatever_spelling(tmp_path):
    done = evaluate(KnownSearcher(), write_sets(tmp_path), JUDGMENTS, ["\u3000A ", "B"], CONFIG, "x").results
    assert done["queries_seen"] == 2 and done["recall"]["CT"]["unseen"]["2"]["counted"] == 0
    spelled = pa.table(
        {"query": ["a", "A", "ａ", "C", "c"], "item_id": [1, 2, 9, 3, 3], "grade": [1.0, 3.0, 2.0, 0.0, 0.0]}
    )
    assert read_grades(spelled) == {"A": {1: 1.0, 2: 3.0, 9: 2.0}, "C": {3: 0.0}}
    with pytest.raises(InputError, match=r"\('A', 1\) has the grades 1.0 and 2.0"):
        read_grades(pa.table({"query": ["a", "A"], "item_id": [1, 1], "grade": [1.0, 2.0]}))


def test_an_empty_set_has_no_value(tmp_path):
    write_sets(tmp_path)
    write_table(PAIRS, {"query": [], "item_id": []}, tmp_path / "unexposed.parquet")
    done = evaluate(KnownSearcher(), tmp_path, JUDGMENTS, ["a"], CONFIG, "x").results
    assert done["recall"]["unexposed"]["all"]["2"] == {"value": None, "counted": 0, "dropped": 0}
    unjudged = evaluate(KnownSearcher(), tmp_path, JUDGMENTS.slice(0, 0), ["a"], CONFIG, "x").results
    assert unjudged["ndcg"]["full"]["seen"] == {"value": None, "counted": 0, "dropped": 0}
    assert short_table([unjudged]).rows[0][1:] == ["83.33", "0.00", "-"]
    (tmp_path / "qr.parquet").unlink()
    with pytest.raises(InputError, match=r"qr.parquet: no such file"):
        evaluate(KnownSearcher(), tmp_path, JUDGMENTS, ["a"], CONFIG, "x")


def test_written_documents_are_refused_everywhere(tmp_path):
    with pytest.raises(InputError, match="such as -1: they are no truth"):
        evaluate(KnownSearcher(), write_sets(tmp_path, bad=2), JUDGMENTS, [], CONFIG, "x")
    indexed = KnownSearcher()
    indexed.ids = np.arange(-1, 4)
    with pytest.raises(InputError, match="corpus of x: 1 negative ids"):
        evaluate(indexed, write_sets(tmp_path), JUDGMENTS, [], CONFIG, "x")


def test_bad_judgments_name_every_pair(tmp_path):
    twice = pa.table({"query": ["a", "a", "b", "b"], "item_id": [1, 1, 2, 2], "grade": [1.0, 2.0, 0.0, 3.0]})
    with pytest.raises(InputError, match=r"2 problems(.|\n)*'a', 1\)(.|\n)*'b', 2\)"):
        evaluate(KnownSearcher(), write_sets(tmp_path), twice, [], CONFIG, "x")
    nan = pa.table({"query": ["a"], "item_id": [1], "grade": [float("nan")]})
    with pytest.raises(InputError, match="1 grades are negative or NaN"):
        evaluate(KnownSearcher(), write_sets(tmp_path), nan, [], CONFIG, "x")


def test_tables(tmp_path):
    arms = [results(tmp_path, arm).results for arm in ("BM25", "log-only baseline", "CroPS")]
    arms[2]["scann"] = {"recall_against_exact": 0.98765, "scann_queries_per_s": 9876.5, "exact_queries_per_s": 1300.0}
    short = short_table(arms)
    assert short.markdown().splitlines() == [
        "|  | Recall@4 CT | Recall@4 QR | NDCG@4 |",
        "| :--- | ---: | ---: | ---: |",
        "| BM25 | 83.33 | 0.00 | 73.64 |",
        "| log-only baseline | 83.33 | 0.00 | 73.64 |",
        "| CroPS | 83.33 | 0.00 | 73.64 |",
    ]
    odd = Table("", ["a", "b"], [["P1 | P2\nand more", "1"]])
    assert odd.markdown().splitlines()[2] == "| P1 \\| P2 and more | 1 |"
    assert short.text().splitlines()[2].split() == ["BM25", "83.33", "0.00", "73.64"]
    assert len({len(line) for line in short.text().splitlines()}) == 1, "aligned"
    by_title = {table.title: table for table in long_tables(arms)}
    assert by_title["Recall on QR, percent"].rows[0][1:] == ["0.00", "0.00", "-", "-", "0.00", "0.00"]
    assert by_title["Search"].rows[2] == ["CroPS", "5", "98.77", "9876", "1300"]
    assert by_title["Search"].rows[0][2:] == ["-", "-", "-"]
    assert "1 (+0" not in report_markdown(arms, "x") and "0 (+1 without truth)" in report_markdown(arms, "x")
    write_report(tmp_path / "report", arms, "Demo")
    assert verify(tmp_path / "report")["counts"] == {"arms": ["BM25", "log-only baseline", "CroPS"]}
    assert json.loads((tmp_path / "report/results.json").read_text())[2] == arms[2]
    assert (tmp_path / "report/report.md").read_text().startswith(f"# Demo\n\n{FEW}\n\n## Held-out test day")


def test_few_events_and_a_cutoff_that_the_whole_corpus_lies_within_are_told_once(tmp_path):
    arms = [results(tmp_path, arm).results for arm in ("BM25", "CroPS")]
    assert table_notes(arms) == FEW.split("\n\n")  # 5 documents, cutoffs 2 and 4
    few = [r | {"corpus": 4} for r in arms]
    said, *others = table_notes(few)
    assert said.startswith("The corpus has 4 documents, which in any order all count for Recall@4: take")
    assert others == FEW.split("\n\n")
    assert report_markdown(few, "x").startswith(f"# x\n\n{said}\n\n{FEW}\n\n## Held-out test day")


def test_different_cutoffs_do_not_share_a_table(tmp_path):
    one = results(tmp_path).results
    with pytest.raises(InputError, match="different cutoffs"):
        short_table([one, one | {"cutoffs": [10]}])


def test_the_short_table_shows_the_largest_k_in_whatever_order_they_were_asked_for(tmp_path):
    done = results(tmp_path).results | {"cutoffs": [4, 2]}
    assert short_table([done]).columns[1] == "Recall@4 CT"
    assert long_tables([done])[0].columns[1:3] == ["@2 all", "@4 all"]


def test_counts_have_a_row_for_each_retriever_where_they_differ_anywhere(tmp_path):
    one, other = (results(tmp_path, arm).results for arm in ("BM25", "CroPS"))
    assert len(long_tables([one, other])[-1].rows) == 1
    other["recall"]["CT"]["seen"]["4"] |= {"counted": 7}
    rows = long_tables([one, other])[-1].rows
    assert [row[:2] for row in rows] == [["BM25", "2"], ["CroPS", "7"]]
