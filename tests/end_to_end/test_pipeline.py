"""The whole job on a small synthetic world, through the command line, as a new user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from places import ROOT

SMALL = [
    "--world.n_items=400", "--world.n_intents=63", "--simulate.users.n_users=900",
    "--simulate.sessions.train_sessions=1500", "--simulate.sessions.test_sessions=2500",
    "--simulate.annotation.queries=40", "--train.steps=30", "--train.save_every=10", "--input.batch_queries=16",
    "--model.backbone.width=32", "--model.backbone.head_size=8", "--model.backbone.ffn=64", "--vocabulary=1000",
    "--text.max_doc_tokens=32",
]  # fmt: skip


def command(verb, *flags, **kwargs):
    env = dict(os.environ, XLA_FLAGS="")
    return subprocess.Popen(
        [sys.executable, "-m", f"crops_jax.{verb}", *flags], cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs,
    )  # fmt: skip


def run(verb, *flags):
    process = command(verb, *flags)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def whole(work):
    """(standard output, standard error) of the whole job."""
    flags = [f"--workdir={work}", *SMALL]
    code, out, err = run("pipeline", "--configs", "configs/demo_log_only.py", "configs/demo.py", *flags)
    assert code == 0, err[-3000:]
    return out, err


@pytest.mark.slow
def test_the_table_has_the_three_rows_and_learned_ones_beat_chance(whole, work):
    out, _ = whole
    rows = re.findall(r"^(BM25|log-only baseline|CroPS) +([\d.]+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE)
    assert [name for name, *_ in rows] == ["BM25", "log-only baseline", "CroPS"]
    # 100 of 400 items: chance is 25 %.
    assert all(float(ct) > 35 and float(qr) > 35 for _, ct, qr, _ in rows)
    results = json.loads((work / "report/results.json").read_text())
    assert [r["arm"] for r in results] == ["BM25", "log-only baseline", "CroPS"]
    assert results[2]["scann"]["recall_against_exact"] > 0.99
    counted = {r["recall"]["CT"]["all"]["100"]["counted"] for r in results}
    assert len(counted) == 1 and counted.pop() > 500


@pytest.mark.slow
def test_every_artefact_verifies_and_a_second_run_keeps_them(whole, work):
    code, out, _ = run("verify", str(work))
    kinds = re.findall(r"\((\w+), \d+ files\)", out)
    assert code == 0
    assert {"logs", "mined", "testsets", "tokenizer", "records", "train", "embeddings", "index", "eval", "export",
            "bundle", "report"} == set(kinds)  # checkpoints are checked with the run that holds them  # fmt: skip
    flags = [f"--workdir={work}", *SMALL]
    code, _, err = run("pipeline", "--configs", "configs/demo_log_only.py", "configs/demo.py", *flags)
    assert code == 0 and len(re.findall(r": kept, ", err)) == 19
    shard = next((work / "crops/records").glob("*.tfrecord-00001-of-00004"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, out, err = run("verify", str(work / "crops"))
    assert code == 2 and f"BAD  {work}/crops/records" in out and "its bytes have changed" in err


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(whole, work):
    flags = ["--config", "configs/demo_log_only.py", f"--workdir={work}", *SMALL, "--name=stopped",
             "--optim.schedule_steps=2000", "--train.log_every=1", "--train.steps=2000"]  # fmt: skip
    (work / "stopped").mkdir()
    (work / "stopped/records").symlink_to(work / "log_only/records")
    metrics = work / "stopped/train/metrics.jsonl"
    process = command("train", *flags)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not metrics.exists() or len(metrics.read_text().splitlines()) < 3):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err[-2000:]
    saved = int(re.search(r"stopped: saved step (\d+) of 2000", err)[1])
    code, _, err = run("train", *flags[:-1], f"--train.steps={saved + 2}")
    assert code == 0, err[-2000:]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, saved + 3))


@pytest.mark.parametrize("verb", ["mine", "write_records", "train", "encode", "build_index", "evaluate", "export"])
def test_a_verb_without_its_input_names_the_one_before(verb, tmp_path):
    code, _, err = run(verb, "--config", "configs/demo.py", f"--workdir={tmp_path}")
    assert code == 2
    assert re.search(r"error: .*no such folder; make it with `python -m crops_jax\.\w+ --config FILE`", err), err
    assert "Traceback" not in err
