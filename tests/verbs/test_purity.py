"""How relevant each rung's documents are, on the shop whose judgments are known."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hand_logs import WordOverlap
from shop import ASK_AGAIN, KITS, command, seal_again, words_for_theta
from tiny import WORDS

from crops_jax import purity
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.labels import LabelsConfig, levels
from crops_jax.models import theta

N = len(WORDS)


def rungs_of(e):
    with words_for_theta():
        found, corpus = purity.run(e, theta.load(e.theta))
    return {rung.source: rung for rung in found}, corpus


def test_each_pair_counts_once_under_the_source_of_its_label(shop_logs):
    """Six words are judged: their first item 3, the second 2, the third 1, the next word's first 0; 2 is relevant."""
    found, corpus = rungs_of(shop_logs[0])
    told = {s: (r.label, r.pairs, r.judged, r.relevant) for s, r in found.items()}
    assert told == {
        "P1": (5, N, 6, 1.0),
        "P0": (4, 2 * N, 6, 1.0),
        "P2": (4, N, 6, 0.0),
        "P3": (4, N + KITS, 0, None),
        "X3": (3, 3 * N, 6, 0.0),
        "F1": (1, N, 0, None),
    }, "what was ranked is P1's as well, and counts there"
    assert (found["P1"].above, found["P0"].above, found["F1"].above) == (1.0, 0.5, 0.0)
    assert corpus.pairs == 10 * purity.PAIRS and 0 < corpus.judged < corpus.pairs and corpus.above < 0.5


def test_documents_of_equal_text_are_one_under_the_highest_of_their_labels():
    rows = [("q", 20, "U2"), ("q", 5, "P0"), ("q", -9, "P3"), ("q", 7, "U2"), ("p", 20, "U2")]
    table = pa.table(dict(zip(("query", "item_id", "source"), map(list, zip(*rows, strict=True)), strict=True)))
    same = {20: 1, 5: 1, -9: 2, 7: 2}
    found = purity._pairs(table, Experiment(), lambda ids: np.array([same[i] for i in ids.tolist()]))
    assert [*zip(*(column.tolist() for column in found), strict=True)] == [
        ("p", 20, "U2"), ("q", 5, "P0"), ("q", 7, "P3"),
    ]  # fmt: skip


def test_nan_of_theta_is_an_error_and_no_low_value(shop_logs, monkeypatch):
    class Broken(WordOverlap):
        def scores(self, queries, texts):
            return np.where(np.arange(len(queries)) == 1, np.nan, super().scores(queries, texts))

    with pytest.raises(InputError, match=r"relevance.scores: gave NaN for 1 of [0-9]+ pairs, the first .* number 1"):
        purity.run(shop_logs[0], Broken())


def test_what_the_test_day_asks_for_is_held_by_one_source_or_none(shop_logs, tmp_path):
    """Of the test day's N + ASK_AGAIN clicks the later ones are of what nobody took before."""
    found, corpus = rungs_of(shop_logs[0])
    held = {(s, name): share for s, r in found.items() for name, share in r.holds.items() if share}
    assert held == {("P0", "CT"): pytest.approx(N / (N + ASK_AGAIN)), ("P2", "QR"): 1.0, ("P1", "unexposed"): 1.0}
    none = purity.table([*found.values()], corpus).rows[-1]
    assert none[0] == "in none" and none[-3:] == ["38.5", "0.0", "0.0"]
    without = replace(shop_logs[0], workdir=str(tmp_path))
    for kind in ("logs", "mined"):
        (tmp_path / kind).symlink_to(shop_logs[0].folder(kind))
    assert purity.table([*rungs_of(without)[0].values()], corpus).columns[-1] == "theta > alpha %"


def test_the_truth_knows_that_what_it_does_not_list_is_irrelevant(own_logs):
    logs = own_logs.folder("logs")
    (logs / "truth").mkdir()
    (logs / "truth/relevance.parquet").write_bytes((logs / "judgments.parquet").read_bytes())
    seal_again(logs)
    seal_again(own_logs.folder("mined"), logs=logs)
    shutil.rmtree(own_logs.folder("testsets"))
    found, corpus = rungs_of(own_logs)
    assert (found["F1"].judged, found["F1"].relevant) == (N, 0.0)
    assert found["P1"].relevant == 6 / N and corpus.judged == corpus.pairs


def test_labels_and_sources_are_those_of_the_arm(shop_logs):
    e = replace(shop_logs[0], labels=LabelsConfig(sources=("P0", "U2"), levels=levels(U2=3)))
    found, _ = rungs_of(e)
    assert {s: (r.label, r.pairs) for s, r in found.items()} == {"P0": (4, 2 * N), "U2": (3, N)}
    with pytest.raises(InputError, match="no document of the sources"):
        rungs_of(replace(e, labels=LabelsConfig(sources=("N1",))))


def test_rungs_that_are_mostly_irrelevant_are_named(shop_logs, capsys, monkeypatch):
    monkeypatch.setattr(purity, "FEW", N)
    with words_for_theta():
        command(purity, shop_logs[0])
    out = capsys.readouterr().out
    assert "corpus" in out and "label 3: 0 % relevant" in out
    assert "label 1: 0 % above theta's threshold" in out, "nobody judged these"
    assert "label 4" not in out and "loss.rung_weights" in out
    monkeypatch.setattr(purity, "FEW", 3 * N + 1)
    with words_for_theta():
        command(purity, shop_logs[0])
    assert "loss.rung_weights" not in capsys.readouterr().out, "too few pairs for advice"
