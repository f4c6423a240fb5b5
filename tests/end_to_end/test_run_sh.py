"""launch/run.sh with the real preflight and training: what a scheduler sees of a run, from outside."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT
from tiny import config_file, elsewhere, losses, sparse, tiny_experiment

from crops_jax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED
from crops_jax.training.checkpoint import Checkpoints

STEPS = 200
PATIENCE_S = 240


class Started:
    """run.sh as a scheduler starts it; what it prints goes to a file."""

    def __init__(self, log, *arguments):
        self.log = log
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # it calls `python`
            "XLA_FLAGS": "--xla_backend_optimization_level=1",  # one device: faster
        }
        with log.open("w") as out:
            self.process = subprocess.Popen(["launch/run.sh", *arguments], cwd=ROOT, env=env, stdout=out, stderr=out)

    def said(self):
        return self.log.read_text()

    def code(self):
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def run_sh(tmp_path):
    started = []

    def run_sh(*arguments):
        started.append(Started(tmp_path / f"log.{len(started)}", *arguments))
        return started[-1]

    yield run_sh
    for each in started:
        if each.process.poll() is None:
            each.process.terminate()  # which it passes on
            each.code()


@pytest.mark.slow
def test_a_run_is_stopped_goes_on_to_its_end_and_refuses_what_does_not_fit(run_sh, tmp_path):
    arm = sparse(elsewhere(tiny_experiment(tmp_path / "work"), "arm"))
    command = (f"--config={config_file(arm)}", f"--train.steps={STEPS}", f"--train.save_every={STEPS}")

    stopped = run_sh(*command)
    deadline = time.monotonic() + PATIENCE_S
    while max(losses(arm), default=0) < 5:
        assert stopped.process.poll() is None and time.monotonic() < deadline, stopped.said()
        time.sleep(0.02)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.code() == EXIT_PREEMPTED, stopped.said()
    step = int(re.search(rf"stopped: saved step (\d+) of {STEPS}", stopped.said())[1])
    assert 5 <= step < STEPS
    with Checkpoints(arm.arm_folder("train"), read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == step
    before = losses(arm)

    assert run_sh(*command).code() == 0
    after = losses(arm)
    assert list(after) == list(range(1, STEPS + 1))
    assert {number: after[number] for number in range(1, step + 1)} == {n: before[n] for n in range(1, step + 1)}

    other = run_sh(*command, "--optim.b1=0.8")  # not the run of this folder
    assert other.code() == EXIT_BAD_INPUT
    assert "optim.b1: 0.9 -> 0.8" in other.said() and "Traceback" not in other.said()
