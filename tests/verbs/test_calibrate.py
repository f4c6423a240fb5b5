"""calibrate: judged pairs above each threshold; and where all verbs keep theta's values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hand_logs import WordOverlap, write
from shop import command, judgments, words_for_theta

from crops_jax import audit, calibrate, check_logs, purity
from crops_jax.mining.work import theta_cache
from crops_jax.models import theta
from crops_jax.models.config import ThetaConfig


def test_calibrate_counts_judged_pairs_above_each_alpha(own_logs, capsys):
    """theta is 1 for the first three items of a word and 0 for the next word's: 18 and 6 judged pairs."""
    with words_for_theta() as asked:
        table, lowest = calibrate.run(replace(own_logs, theta=ThetaConfig(source="other words")), 0.6)
        assert [config.source for config in asked] == ["other words"]
        command(calibrate, own_logs)
    assert table.columns == ["alpha", "pairs kept", "precision", "recall"]
    assert [row[0] for row in table.rows] == [f"{a:.2f}" for a in np.arange(0.2, 0.75, 0.05)]
    # graded 2 or more: two of three
    assert {tuple(row[1:]) for row in table.rows} == {("18", f"{12 / 18:.3f}", "1.000")}
    assert lowest == "the lowest alpha with a precision of 0.6: alpha=0.5, precision=0.667, recall=1.000"
    strict, lowest = calibrate.run(replace(own_logs, held_out=replace(own_logs.held_out, min_grade=3.0)))
    assert lowest == "no threshold reaches a precision of 0.9: the best is 0.333, keeping 18 of 24 pairs"
    assert strict.rows[0][1:] == ["18", f"{6 / 18:.3f}", "1.000"]
    assert "24 judged pairs, 50.0%" in capsys.readouterr().out


def test_calibrate_leaves_out_what_has_no_text(own_logs):
    logs = own_logs.folder("logs")
    write(logs / "judgments.parquet", "judgments", [*judgments(), {"query": "oak", "item_id": 24, "grade": 3.0}])
    check_logs.run(logs)
    assert calibrate.run(own_logs)[0].title.startswith("24 judged pairs, 50.0%")


def test_all_verbs_that_ask_theta_keep_its_values_in_one_place(own_logs, monkeypatch):
    asked = []
    with words_for_theta():
        monkeypatch.setattr(theta, "load", lambda config, cache=None: asked.append(cache) or WordOverlap())
        for verb in (calibrate, purity, audit):
            command(verb, own_logs)
    assert asked == [theta_cache(Path(own_logs.workdir))] * 3
