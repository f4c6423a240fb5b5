"""The launch files of XPK and SkyPilot, read by their own tools where `make test` installed them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launch_commands import commands

from crops_jax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_STUCK

LAUNCH = Path(__file__).parent.parent / "launch"
BUG, LOST_PEER = 1, 128 + signal.SIGABRT


def xpk(tmp_path, **environment):
    env = {**os.environ, "HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
    arguments = ["--config", "configs/demo.py", "--text.eos_token=<|endoftext|>"]
    return subprocess.run([LAUNCH / "xpk_tpu.sh", *arguments], env=env | environment, capture_output=True, text=True)


def test_xpk_is_asked_to_restart_on_the_two_codes(tmp_path):
    path = commands(tmp_path / "bin", xpk='printf "%s\\n" "$@"')
    arguments = xpk(tmp_path, PATH=path, SLICES="4").stdout.splitlines()
    assert arguments[:2] == ["workload", "create"] and "--num-slices=4" in arguments and "--dry-run" not in arguments
    assert f"--restart-on-exit-codes={EXIT_PREEMPTED},{EXIT_STUCK}" in arguments
    assert "--env=STUCK_RESTARTS=0" in arguments
    command = next(a for a in arguments if a.startswith("--command=")).removeprefix("--command=")
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True)
    assert words.stdout.split() == ["launch/run.sh", "--config", "configs/demo.py", "--text.eos_token=<|endoftext|>"]


@pytest.mark.skipif(shutil.which("xpk") is None, reason="xpk is not installed")
def test_xpk_makes_a_jobset_of_it(tmp_path):
    done = xpk(tmp_path, DRY_RUN="1", PATH=f"{Path(shutil.which('xpk')).parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    made = yaml.safe_load(re.search(r"(?s)(apiVersion: jobset.*?)\n\[XPK\]", done.stdout)[1])
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    ends = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert ends["operator"] == "NotIn" and {EXIT_PREEMPTED, EXIT_STUCK, LOST_PEER} <= set(ends["values"])
    assert not {BUG, EXIT_BAD_INPUT} & set(ends["values"])
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 20
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 120


def test_the_skypilot_task_restarts_preempted_runs_only():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) == {"name", "num_nodes", "resources", "envs", "volumes", "run"}
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [EXIT_PREEMPTED] and recovery["max_restarts_on_errors"] == 0
    script = subprocess.run([Path(sys.executable).parent / "shellcheck", "--shell=bash", "--exclude=SC2155", "-"],
                            input=task["run"], capture_output=True, text=True)  # fmt: skip
    assert not script.stdout


@pytest.mark.skipif(shutil.which("sky") is None, reason="skypilot is not installed")
def test_skypilot_reads_the_task(tmp_path):
    code = "import json, sys, sky; t = sky.Task.from_yaml(sys.argv[1]); r, = t.resources; " \
           "print(json.dumps([r.accelerators, r.job_recovery['recover_on_exit_codes'], t.num_nodes]))"  # fmt: skip
    python = Path(shutil.which("sky")).parent / "python"
    done = subprocess.run([python, "-c", code, LAUNCH / "skypilot.yaml"], env={**os.environ, "HOME": str(tmp_path)},
                          capture_output=True, text=True)  # fmt: skip
    assert json.loads(done.stdout) == [{"H100": 8}, [EXIT_PREEMPTED], 1], done.stderr
