"""What a bundle says of queries and documents, against the nine rows that were mined."""

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from bundles import REWORDED, write_logs, write_mined

from crops_jax.artifacts.folders import Folder
from crops_jax.handover.evidence import write_evidence
from crops_jax.labels import LOG_ONLY, PAPER, levels
from crops_jax.mining.config import MiningConfig
from crops_jax.serving.evidence import Evidence, PairFacts, QueryFacts, label, words


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    out = Folder(folder / "out")
    write_evidence(write_logs(folder), write_mined(folder), out, MiningConfig())
    assert out.counts["evidence"] == {"queries": 2, "pairs": 7, "grades": 1, "graded_by": "judgments"}
    return Evidence(folder / "out" / "evidence", "judgments")


def test_a_query_is_known_in_every_spelling(evidence):
    for spelling in ("transformer", "TRANSFORMER\u3000", "ｔransformer"):
        assert evidence.query(spelling) == QueryFacts(3, 1, "Written <i>by</i> a model", 0)
    assert evidence.query(REWORDED) == QueryFacts(1, 0, None, None), "nothing was written, so nothing was shown"
    assert evidence.query("transformers") is None


def test_every_source_says_what_stands_behind_it(evidence):
    query, items = evidence.query("transformer"), [0, 1, 3, 8, 5, 4, 2]
    pairs = evidence.pairs("Transformer", items)
    assert pairs == [
        PairFacts(("P0", "X3"), shown=2, clicked=1), PairFacts(("X3",), shown=1), PairFacts(("U2",)),
        PairFacts(("F1",)), PairFacts(("P1",), reworded=REWORDED), PairFacts(("P2",), feeds=2), PairFacts(),
    ]  # fmt: skip
    told = [words(pair, query, item, PAPER) for item, pair in zip(items, pairs, strict=True)]
    assert all(unused == [] for _, unused in told)
    assert [learnt for learnt, _ in told] == [
        ["P0: clicked for this query in 1 search",
         "P3: a language model was shown it, and wrote “Written <i>by</i> a model” for this query",
         "X3: shown in 1 search, not clicked"],
        ["X3: shown in 1 search, not clicked"],
        ["U2: ranked, not shown"],
        ["F1: filtered out before ranking"],
        [f"P1: consumed after this query was reworded to “{REWORDED}”"],
        ["P2: watched in the feed by 2 users who asked this"],
        [],
    ]  # fmt: skip
    assert [label(pair, PAPER, levels()) for pair in pairs] == [4, 3, 2, 1, 5, 4, None]


def test_a_source_without_words_of_its_own_is_told_by_its_meaning():
    told = ["N1: near the query for a ranker, and no known positive of it"]
    assert words(PairFacts(("N1",)), None, 5, ("N1",)) == (told, [])
    assert words(PairFacts(("P3",)), None, 5, PAPER) == ([], []), "what the model wrote is in no index"


def test_what_theta_left_out_of_the_funnel_was_shown_all_the_same(tmp_path):
    logs, mined, out = write_logs(tmp_path), write_mined(tmp_path), Folder(tmp_path / "out")
    table = pq.read_table(mined / "candidates.parquet")
    pq.write_table(table.filter(pc.not_equal(table["source"], "X3")), mined / "candidates.parquet")
    write_evidence(logs, mined, out, MiningConfig())
    pairs = Evidence(out.path / "evidence", "judgments").pairs("transformer", [0, 1])
    assert pairs == [PairFacts(("P0",), shown=2, clicked=1), PairFacts()]


def test_a_method_is_not_credited_with_what_it_does_not_train_on(evidence):
    (pair,) = evidence.pairs("transformer", [4])
    assert words(pair, None, 4, LOG_ONLY) == ([], ["P2: watched in the feed by 2 users who asked this"])
    assert label(pair, LOG_ONLY, levels()) is None


def test_grades_are_those_that_were_given(evidence):
    assert evidence.grades("transformer", [4, 0]) == [2.0, None]
    truth = Evidence.__new__(Evidence)
    truth.__dict__ |= evidence.__dict__ | {"_unlisted": 0.0}
    assert truth.grades("transformer", [4, 0]) == [2.0, 0.0]
