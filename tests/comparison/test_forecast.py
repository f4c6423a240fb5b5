"""How long a benchmark will take, by what its runs took."""

import json
from dataclasses import replace

import pytest

from crops_jax.command_line import load_file
from crops_jax.comparison.forecast import forecast, note, took
from crops_jax.config import Experiment


@pytest.fixture
def run(tmp_path) -> Experiment:
    """A finished run of 40 steps of two seconds each."""
    e = replace(load_file("configs/demo.py"), workdir=str(tmp_path), name="crops/lr1_seed0")
    e.arm_folder("train").mkdir(parents=True)
    line = {"step": 40, "step_s": 2.0, "tau": 0.05, "count_label_4": 1}
    (e.arm_folder("train") / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return e


def test_a_run_takes_what_its_stages_took_and_not_its_steps_alone(run, monkeypatch):
    monkeypatch.setattr("crops_jax.comparison.results.read_manifest", lambda folder: {"code_version": "0"})
    assert took(run) == 120, "nobody timed it: half as long again as its steps"
    note(run, "encode", 30)
    assert took(run) == 120, "trained before stages were timed"
    for stage, seconds in [("train", 900), ("encode", 40), ("train", 1000)]:
        note(run, stage, seconds)
    assert took(run) == 1040, "of each stage the last time"
    note(run, "train", 60)
    assert took(run) == 120, "killed at step 10 and gone on: its steps took 80 s"
    note(run, "train", 1000)
    with (run.arm_folder("train").parent / ".took.jsonl").open("a") as file:
        file.write('{"stage": "tr')
    assert took(run) == 120, "a kill cut a line"


def test_a_method_is_forecast_by_its_own_runs_and_others_by_all():
    known = {"ance": [1400.0, 1600.0], "crops": [180.0]}
    assert forecast({"ance": 2}, known) == "; about 50 minutes (18 minutes a run so far)"
    assert forecast({"crops": 10}, known) == "; about 30 minutes (18 minutes a run so far)"
    assert forecast({"dpr": 10, "ance": 3}, known) == "; about 4.2 hours (18 minutes a run so far)"
    assert forecast({"crops": 2}, {"crops": [30.0]}) == "; about 60 s (30 s a run so far)"
    assert forecast({"crops": 0}, known) == forecast({}, known) == ""
    assert forecast({"crops": 1}, {}) == "; how long it takes is known after the first: ask again with --plan"
