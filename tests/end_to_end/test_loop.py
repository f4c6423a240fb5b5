"""The loop itself, on a small world: three days, a kill, days that are made again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT

from crops_jax.artifacts.manifest import fingerprint

SMALL = [
    "--simulate.sessions.train_sessions=300", "--world.n_items=600", "--world.n_intents=40", "--train.steps=4",
    "--train.log_every=2", "--optim.warmup_steps=1", "--mining.world_knowledge.max_queries=20",
]  # fmt: skip
CONTROLLED = ["--controls", "fs_lr", "--first-steps", "6"]


def loop(tmp_path, *flags):
    command = [sys.executable, "-m", "crops_jax.loop", "--config", "configs/loop_demo.py", "--out",
               str(tmp_path / "out"), f"--workdir={tmp_path / 'work'}", "--days", "3", *SMALL, *flags]  # fmt: skip
    env = dict(os.environ, XLA_FLAGS="")  # one device, as the config is for
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=env)
    return done.returncode, done.stdout, done.stderr


def tables(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob("*") if p.suffix in (".parquet", ".npy") and p.is_file()}  # fmt: skip


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.slow
def test_each_day_is_served_by_the_day_before_and_is_made_once(tmp_path):
    code, out, err = loop(tmp_path, *CONTROLLED)
    assert code == 0, err[-3000:]
    assert "| CroPS as printed |" in out and "## Intents served" in out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["platform", "fs_lr", "crops", "fs_lr_control"]
    served = {row["name"]: row["by_seed"]["served"][0] for row in results["rows"]}
    assert len({days[0] for days in served.values()}) == 1 and len({tuple(days) for days in served.values()}) == 4
    assert served["fs_lr_control"][:2] == served["fs_lr"][:2], "until day 1 both have learnt from the platform's day"
    days = {name: [tmp_path / f"work/{name}/seed0/day_{d:02d}" for d in range(3)] for name in served}
    assert days["crops"][0].joinpath("logs").resolve() == days["platform"][0] / "logs"
    assert {*manifest(days["crops"][2] / "logs")["inputs"]} == {"day_00", "day_01", "embeddings", "query_vectors"}
    assert {*manifest(days["platform"][2] / "logs")["inputs"]} == {"day_00", "day_01"}
    control = days["fs_lr_control"]
    assert control[1].joinpath("logs").resolve() == days["platform"][1] / "logs", "what it learns from"
    read = manifest(control[1] / "records")["inputs"]["mined"]["sha256"]
    assert read == fingerprint(days["platform"][1] / "mined")
    assert {*manifest(control[2] / "served")["inputs"]} == {"day_00", "day_01", "embeddings", "query_vectors"}
    steps = [json.loads((days["crops"][d] / "train/run.json").read_text())["config"]["train"]["steps"] for d in (0, 1)]
    assert steps == [6, 4]
    run = json.loads((days["crops"][1] / "train/run.json").read_text())
    assert run["config"]["model"]["init_from"] == str(days["crops"][0] / "train")
    assert not (days["crops"][2] / "train").exists(), "nothing is served after the last day"
    assert np.load(days["crops"][1] / "query_vectors/vectors.npy").shape == (results["world"]["queries"], 128)

    whole = {name: [tables(day) for day in days[name]] for name in days}
    shutil.rmtree(days["crops"][2])
    shutil.rmtree(days["fs_lr"][1] / "train")  # as if it had been killed there
    code, _, err = loop(tmp_path, *CONTROLLED)
    assert code == 0, err[-3000:]
    assert err.count(": train\n") == 1 and "fs_lr, seed 0, day 1: train\n" in err, "nothing else is trained again"
    assert {name: [tables(day) for day in days[name]] for name in days} == whole, "the same bytes"
    assert json.loads((tmp_path / "out/results.json").read_text())["rows"] == results["rows"]

    code, _, err = loop(tmp_path, *CONTROLLED, "--world.seed=5")
    assert code == 2 and "days of another world are in this workdir" in err and "world.seed: 0 -> 5" in err, err[-3000:]
    assert {name: [tables(day) for day in days[name]] for name in days} == whole, "nothing is made again"


@pytest.mark.slow
def test_bad_calls_say_what_is_wrong(tmp_path):
    for flags, said in {
        ("--methods", "cropps"): "method 'cropps' is none of nce",
        ("--seeds", "a"): "--seeds: 'a' is no list of whole numbers",
        ("--train.stepz=3",): "did you mean --train.steps?",
    }.items():
        code, _, err = loop(tmp_path, *flags)
        assert code == 2 and said in err and "Traceback" not in err, err
