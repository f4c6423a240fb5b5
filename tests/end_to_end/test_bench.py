"""The benchmark itself, on a small world: a chain of runs, a restart, the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SMALL = [
    "--simulate.sessions.train_sessions=400", "--simulate.sessions.validation_sessions=200",
    "--simulate.sessions.test_sessions=300", "--world.n_items=600", "--world.n_intents=40", "--train.steps=16",
    "--optim.warmup_steps=2", "--train.log_every=2", "--mining.world_knowledge.enabled=False",
]  # fmt: skip


def bench(tmp_path, *flags):
    command = [sys.executable, "-m", "crops_jax.bench", "--configs", "configs/bench_demo.py", "--out",
               str(tmp_path / "out"), f"--workdir={tmp_path / 'work'}", *SMALL, *flags]  # fmt: skip
    one_device = os.environ | {"XLA_FLAGS": ""}  # the demo's batches are for one
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=one_device)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_methods_are_trained_once_compared_and_shown(tmp_path):
    flags = ["--methods", "nce,ance,adore,crops,anchors_4", "--seeds", "0,1"]
    code, out, _ = bench(tmp_path, *flags, "--plan")
    assert code == 0 and "14 runs of 5 methods and 2 that they start from, 14 to train" in out
    assert not (tmp_path / "work").exists()
    code, out, err = bench(tmp_path, *flags)
    assert code == 0, err[-3000:]
    assert "### Methods (the paper's Table 2)" in out
    results = json.loads((tmp_path / "out/results.json").read_text())
    rows = {row["name"]: row for row in results["worlds"][0]["rows"]}
    assert [*rows] == ["bm25", "nce", "ance", "adore", "crops", "anchors_4"]
    assert all(len(row["by_seed"]["CT@100"]) == 2 for name, row in rows.items() if name != "bm25")
    assert {row["made"]["steps"] for name, row in rows.items() if name != "bm25"} == {16}
    assert all(0 < row["metrics"]["CT@100"]["all"]["value"] <= 1 for row in rows.values())
    shards = [p for p in (tmp_path / "work/shards").iterdir() if p.is_dir()]
    assert len(shards) < 10, "arms with the same shards share them"
    (tmp_path / "work/crops/lr1_seed1/eval/results.json").unlink()  # as if it had been killed there
    code, _, err = bench(tmp_path, *flags)
    assert code == 0, err[-3000:]
    assert err.count("crops/lr1_seed1: evaluate (test day)\n") == 1
    assert ": train\n" not in err, "nothing is trained twice"
    assert json.loads((tmp_path / "out/results.json").read_text())["worlds"] == results["worlds"]
    _, out, _ = bench(tmp_path, *flags, "--plan")
    assert "5 methods and 2 that they start from, 0 to train" in out and "about" not in out
    told = map(json.loads, (tmp_path / "work/ance/lr1_seed0/.took.jsonl").read_text().splitlines())
    assert [line["stage"] for line in told if line["seconds"] > 0] == [
        "train", "encode", "evaluate (validation day)", "evaluate (test day)"
    ]  # fmt: skip
    _, out, _ = bench(tmp_path, "--methods", "ance,dpr", "--seeds", "0,1", "--plan")
    assert "6 runs of 2 methods and 1 that they start from, 2 to train; about" in out
    code, _, err = bench(tmp_path, *flags, "--plan", "--optim.learning_rate=0.5")
    assert code == 2 and "train holds a run of another config" in err, "training would refuse it later"
    _, out, _ = bench(tmp_path, *flags, "--plan", "--mining.threshold.alpha=0.5")
    assert "0 to train; made anew first: mine, test sets, validation sets; a run whose shards this changes" in out


@pytest.mark.slow
def test_bad_calls_say_what_is_wrong(tmp_path):
    for flags, said in {
        ("--methods", "cropps"): "method 'cropps' is none of nce",
        ("--seeds", "a"): "--seeds: 'a' is no list of whole numbers",
        ("--knobs", "noise,luck"): "--knobs: luck: none of noise, exploration",
        ("--name=other",): "the runs of a benchmark have names of their own",
        ("--methods", "crops", "--seeds", "-1"): "seeds: -1 is below zero",
        ("--train.stepz=3",): "did you mean --train.steps?",
    }.items():
        code, _, err = bench(tmp_path, *flags)
        assert code == 2 and said in err and "Traceback" not in err, err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    code, _, err = bench(tmp_path, "--methods", "crops")
    assert code == 2 and "out: holds files that are no folder of bench" in err and not (tmp_path / "work").exists()
