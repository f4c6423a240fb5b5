"""The launch files of XPK and SkyPilot, read by their own tools where `make test-all` installed them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import yaml
from launch_commands import commands
from places import ROOT
from tools import missing

from crops_jax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_STUCK

LAUNCH = ROOT / "launch"
BUG, LOST_PEER = 1, 128 + signal.SIGABRT
TOOLS = Path(os.environ.get("LAUNCH_TOOLS", "/nowhere"))  # environments of the two tools, which `make test-all` makes


def needs(tool):
    if not (TOOLS / tool / ".ready").exists():
        missing(tool)


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


def test_xpk_makes_a_jobset_of_it(tmp_path):
    needs("xpk")
    done = xpk(tmp_path, DRY_RUN="1", PATH=f"{TOOLS}/xpk/bin:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    made = yaml.safe_load(re.search(r"(?s)(apiVersion: jobset.*?)\n\[XPK\]", done.stdout)[1])
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    ends = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert ends["operator"] == "NotIn" and {EXIT_PREEMPTED, EXIT_STUCK, LOST_PEER} <= set(ends["values"])
    assert not {BUG, EXIT_BAD_INPUT} & set(ends["values"])
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 20
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 120


def test_the_skypilot_task_is_clean_and_asks_for_restarts_of_preempted_runs():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) == {"name", "num_nodes", "resources", "envs", "volumes", "run"}
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [EXIT_PREEMPTED] and recovery["max_restarts_on_errors"] == 0
    script = subprocess.run([Path(sys.executable).parent / "shellcheck", "--shell=bash", "--exclude=SC2155", "-"],
                            input=task["run"], capture_output=True, text=True)  # fmt: skip
    assert not script.stdout


# What SkyPilot's controller makes of a task, for the exit codes of its nodes: misspelt keys of job_recovery pass its
# schema in silence. Then what it says of a second task.
SKY = """
import asyncio, json, sys, sky
from sky.jobs.recovery_strategy import StrategyExecutor
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
backend, lock, signal = sky.backends.CloudVmRayBackend(), asyncio.Lock(), asyncio.Condition()
strategy = StrategyExecutor.make("", backend, task, 0, 0, None, set(), lock, signal)
restarts = [strategy.should_restart_on_failure(codes) for codes in json.loads(sys.argv[2])]
print(json.dumps([task.num_nodes, resources.accelerators, resources.use_spot, type(strategy).__name__, restarts]))
sky.Task.from_yaml(sys.argv[3])
"""


def test_skypilot_restarts_preempted_runs_only(tmp_path):
    needs("skypilot")
    codes = [[BUG], [EXIT_BAD_INPUT], [EXIT_PREEMPTED], [EXIT_STUCK], [LOST_PEER], [EXIT_PREEMPTED, LOST_PEER]]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((LAUNCH / "skypilot.yaml").read_text().replace("num_nodes:", "num_node:"))
    command = [TOOLS / "skypilot/bin/python", "-c", SKY, LAUNCH / "skypilot.yaml", json.dumps(codes), wrong]
    env = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout, done.stderr
    restarts = [False, False, True, False, False, True]
    assert json.loads(done.stdout.splitlines()[-1]) == [1, {"H100": 8}, True, "FailoverStrategyExecutor", restarts]
    assert "did you mean 'num_nodes'" in done.stderr
