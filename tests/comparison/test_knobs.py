"""The simulator's knobs at half and at double."""

from dataclasses import replace

import pytest

from crops_jax.command_line import load_file
from crops_jax.comparison.config import Comparison
from crops_jax.comparison.knobs import FACTORS, KNOBS, gone, sensitivity, sensitivity_table, turned
from crops_jax.config import flat
from crops_jax.errors import InputError

DEMO = load_file("configs/bench_demo.py", "COMPARISON", Comparison)
# What each turns, and its value at half and at double.
TURNED = {
    "noise": {"simulate.users.click_accident": (0.005, 0.02), "simulate.users.click_partial": (0.025, 0.1),
              "simulate.platform.noise": (0.075, 0.3)},
    "exploration": {"simulate.feed.interest_share": (0.725, 0.5)},
    "model": {"simulated_llm.irrelevant_rate": (0.02, 0.08), "simulated_llm.malformed_rate": (0.01, 0.04)},
    "leaving": {"simulate.sessions.persistence": (0.925, 0.7)},
    "judged": {"simulate.annotation.pooled": (10, 40)},
    "theta": {"mining.threshold.alpha": (0.45, 0.25), "mining.threshold.precision": (None, None),
              "mining.threshold.recall": (None, None)},
}  # fmt: skip


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_turns_what_it_says_and_nothing_else(name):
    before = flat(DEMO.dense)
    for place, by in enumerate(FACTORS):
        other = turned(DEMO, name, by)
        after = flat(other.dense)
        changed = {key for key, value in before.items() if after[key] != value}
        assert changed == {"workdir", *TURNED[name]} and after["workdir"] == f"runs/bench/demo_{name}_x{by:g}"
        for key, values in TURNED[name].items():
            assert after[key] == (None if values[place] is None else pytest.approx(values[place]))


def test_a_knob_that_the_world_has_not_is_not_turned():
    of_grades = load_file("configs/bench_beir.py", "COMPARISON", Comparison)
    assert {name for name, _, _ in sensitivity(of_grades, list(KNOBS))} == {*KNOBS} - {"judged"}
    assert {name for name, _, _ in sensitivity(DEMO, list(KNOBS))} == {*KNOBS}
    silent = replace(DEMO.dense.mining, world_knowledge=replace(DEMO.dense.mining.world_knowledge, enabled=False))
    unasked = replace(DEMO, dense=replace(DEMO.dense, mining=silent))
    assert {name for name, _, _ in sensitivity(unasked, list(KNOBS))} == {*KNOBS} - {"model"}, "no model is asked"
    with pytest.raises(InputError, match="own logs have no knobs"):
        sensitivity(replace(DEMO, dense=replace(DEMO.dense, world=None)), ["noise"])
    with pytest.raises(InputError, match="the sparse model is not trained again with a knob turned: name another"):
        sensitivity(replace(DEMO, methods=("sparse_log", "sparse_crops")), ["noise"])
    assert len(sensitivity(replace(DEMO, methods=("sparse_log", "crops")), ["noise"])) == 2


def world(**recall):
    rows = [{"title": title, "metrics": {"CT@100": {"all": {"value": ct}}, "QR@100": {"all": {"value": qr}}}}
            for title, (ct, qr) in recall.items()]  # fmt: skip
    return {"headline": ["CT@100", "QR@100"], "rows": rows}


def test_a_column_that_a_world_has_no_value_for_is_left_out():
    base, empty = world(a=(0.9, 0.5), b=(0.8, 0.6)), world(a=(0.9, 0.5), b=(0.8, 0.6))
    for row in empty["rows"]:
        row["metrics"]["QR@100"]["all"] = None
    table = sensitivity_table(base, [("noise", 2.0, empty)])
    assert table.title.startswith("CT@100 with") and [row[1:] for row in table.rows] == [["90.0", "80.0", "none"]] * 2


def test_a_method_that_one_world_lost_has_no_column_and_a_sentence():
    base, other = world(a=(0.9, 0.5), b=(0.8, 0.6)), world(a=(0.9, 0.5))
    found = [("noise", 2.0, other | {"left_out": ["b is left out: training diverges."]}),
             ("theta", 0.5, base | {"left_out": []})]  # fmt: skip
    assert sensitivity_table(base, found).columns[1:-1] == ["a"]
    assert gone(found) == ["noise of clicks and of production's scores x 2: b is left out: training diverges."]


def test_the_table_says_where_the_order_changes():
    base = world(a=(0.9, 0.5), b=(0.8, 0.6))
    other = world(b=(0.85, 0.6), a=(0.8, 0.5))
    table = sensitivity_table(base, [("noise", 0.5, other), ("theta", 2.0, base)])
    assert table.columns == ["", "a", "b", "another order of methods in"]
    assert [row[1:] for row in table.rows] == [
        ["90.0 / 50.0", "80.0 / 60.0", "none"], ["80.0 / 50.0", "85.0 / 60.0", "CT@100"],
        ["90.0 / 50.0", "80.0 / 60.0", "none"],
    ]  # fmt: skip
    base = world(a=(0.9, 0.5), b=(0.8, 0.6), sparse=(0.85, 0.55))  # no other world trains the sparse model
    table = sensitivity_table(base, [("noise", 0.5, other), ("theta", 2.0, other)])
    assert table.columns[1:-1] == ["a", "b"] and [row[-1] for row in table.rows] == ["none", "CT@100", "CT@100"]
    told = [row[0] for row in table.rows]
    assert told == ["as it is", "noise of clicks and of production's scores x 0.5", "theta's threshold alpha - 0.1"]
