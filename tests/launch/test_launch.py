"""The launch files: linted with the real tools, and their exit-code contract run with stand-ins for the clusters."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from launch_commands import commands
from places import ROOT

from crops_jax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_STUCK

LAUNCH = ROOT / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
DONE, BUG, LOST_PEER = 0, 1, 128 + signal.SIGABRT


def tool(name, *arguments):
    """Runs a linter of the environment that runs the tests; returns what it says."""
    done = subprocess.run([Path(sys.executable).parent / name, *arguments], capture_output=True, text=True, cwd=ROOT)
    return done.stdout + done.stderr


# Appends a line to $STARTS and leaves with the code of that many-th start, the last code for ever.
STARTED = """echo start >>"$STARTS"; n=$(wc -l <"$STARTS"); read -ra codes <<<"$CODES"
exit "${codes[$((n - 1))]:-${codes[-1]}}" """


# Linters


def test_the_scripts_are_clean_bash():
    assert not tool("shellcheck", *SCRIPTS)
    assert all(os.access(script, os.X_OK) for script in SCRIPTS if script.suffix == ".sh")
    command = [Path(sys.executable).parent / "shellcheck", "-"]
    broken = subprocess.run(command, input="#!/bin/bash\nrm $1/x\n", text=True, capture_output=True)
    assert "SC2086" in broken.stdout  # the tool does look


def test_the_container_file_is_clean_and_copies_what_is_there():
    assert not tool("hadolint", LAUNCH / "Dockerfile")
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    allowed = {line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert copied and all((ROOT / name).exists() for name in copied) and allowed == set(copied)
    extras = re.search(r"(?s)\[project.optional-dependencies\](.*?)\n\[", (ROOT / "pyproject.toml").read_text())[1]
    assert all(f"\n{extra} = " in extras for extra in re.findall(r"EXTRA=(\w+)", "\n".join(lines)))


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_yaml_is_clean(path):
    rules = "{extends: default, rules: {line-length: {max: 120}, document-start: disable, " \
            "comments: {min-spaces-from-content: 1}}}"  # fmt: skip
    assert not tool("yamllint", "--strict", "--config-data", rules, path)


# run.sh


def run_sh(tmp_path, preflight, train, **environment):
    """(exit code, starts of training) of run.sh whose commands leave with these codes."""
    path = commands(tmp_path / "bin", preflight=f"exit {preflight}", train=STARTED)
    starts = tmp_path / "starts"
    env = {**os.environ, "PATH": path, "PREFLIGHT": "preflight", "TRAIN": "train", "STARTS": str(starts),
           "CODES": train, **environment}  # fmt: skip
    done = subprocess.run([LAUNCH / "run.sh", "--config", "x.py"], env=env, capture_output=True)
    return done.returncode, len(starts.read_text().split()) if starts.exists() else 0


@pytest.mark.parametrize("finds", ["exit 1", None], ids=["a python without jax", "no python"])
def test_run_sh_outside_the_environment_is_told(tmp_path, finds):
    bash = shutil.which("bash")
    commands(tmp_path / "bin", **({"python": finds} if finds else {}))
    for tool in ("bash", "env"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    env = {"PATH": str(tmp_path / "bin")}
    done = subprocess.run([bash, LAUNCH / "run.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == EXIT_BAD_INPUT and "has no jax: enter the environment first" in done.stderr


@pytest.mark.parametrize(
    ("preflight", "train", "expected"),
    [
        (0, "0", (DONE, 1)),
        (0, "1", (BUG, 1)),
        (0, "2", (EXIT_BAD_INPUT, 1)),
        (0, "75", (EXIT_PREEMPTED, 1)),
        (0, "134", (LOST_PEER, 1)),
        (0, "76", (EXIT_STUCK, 4)),
        (0, "76 76 0", (DONE, 3)),
        (0, "76 2", (EXIT_BAD_INPUT, 2)),
        (2, "0", (EXIT_BAD_INPUT, 0)),
        (1, "0", (BUG, 0)),
        (76, "0", (EXIT_STUCK, 0)),
    ],
)
def test_run_sh_leaves_with_the_code_and_restarts_only_stuck_runs(preflight, train, expected, tmp_path):
    assert run_sh(tmp_path, preflight, train) == expected


def test_run_sh_leaves_restarts_to_the_scheduler_of_several_hosts(tmp_path):
    assert run_sh(tmp_path, 0, "76", STUCK_RESTARTS="0") == (EXIT_STUCK, 1)


@pytest.mark.parametrize("restarts", ["many", "1.5", "-1", "08"])
def test_run_sh_begins_with_a_number_of_restarts_alone(restarts, tmp_path):
    assert run_sh(tmp_path, 0, "76", STUCK_RESTARTS=restarts) == (EXIT_BAD_INPUT, 0)


@pytest.mark.parametrize(("task", "file"), [({"SLURM_PROCID": "3"}, "3"), ({}, "0")])
def test_run_sh_leaves_its_code_in_the_folder_with_and_without_slurm(task, file, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert run_sh(tmp_path, 0, "2", EXIT_CODES=str(tmp_path), **task) == (EXIT_BAD_INPUT, 1)
    assert (tmp_path / file).read_text() == "2\n"


@pytest.mark.parametrize(
    ("preflight", "train", "code", "trained"),
    [
        ("true", "trap 'sleep 0.2; exit 75' TERM; touch ready; sleep 60 & wait", EXIT_PREEMPTED, True),
        ("true", "trap 'exit 76' TERM; touch ready; sleep 60 & wait", EXIT_STUCK, True),
        ("true", "touch ready; exec sleep 60", EXIT_PREEMPTED, True),  # still starting: the signal kills it
        ("true", "trap 'exit 255' TERM; touch ready; sleep 60 & wait", EXIT_PREEMPTED, True),  # so does bash's fork
        ("true", "trap 'exit 2' TERM; touch ready; sleep 60 & wait", EXIT_BAD_INPUT, True),
        ("touch ready; exec sleep 60", "touch trained", EXIT_PREEMPTED, False),
        ("trap 'exit 0' TERM; touch ready; sleep 60 & wait", "touch trained", EXIT_PREEMPTED, False),
    ],
)
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_run_sh_passes_signals_on_and_waits_for_what_is_saved(preflight, train, code, trained, sent, tmp_path):
    path = commands(tmp_path / "bin", preflight=preflight, train=f"touch trained; {train}")
    env = {**os.environ, "PATH": path, "PREFLIGHT": "preflight", "TRAIN": "train"}
    # As by default: a shell that was started under nohup could not trap SIGHUP.
    command = ["env", "--default-signal=HUP", LAUNCH / "run.sh"]
    running = subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    time.sleep(0.05)
    running.send_signal(sent)
    assert running.wait(20) == code
    assert (tmp_path / "trained").exists() == trained


# Several processes on this machine


@pytest.mark.parametrize(
    ("command", "expected", "said"),
    [
        ("exit 0", DONE, ""),
        (
            "[ $JAX_PROCESS_ID = 0 ] && exit 75; sleep 0.5; exit 134",
            EXIT_PREEMPTED,
            "[0] exit code 75\n[1] exit code 134\n",
        ),
        ("[ $JAX_PROCESS_ID = 1 ] && exit 0; kill -KILL $$", 137, "[0] exit code 137\n[1] exit code 0\n"),
    ],
)
def test_local_processes_leave_with_one_code_and_tell_all(command, expected, said):
    launcher = [sys.executable, LAUNCH / "local_multiprocess.py", "--processes=2", "--", "sh", "-c"]
    done = subprocess.run([*launcher, command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (expected, said)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--processes=0", "--", "true"], "--processes: '0' is no whole number above zero"),
    (["--devices=-1", "--", "true"], "--devices: '-1' is no whole number above zero"),
    (["--", "no-such-command"], "error: no-such-command: no such command"),
])  # fmt: skip
def test_local_processes_that_cannot_be_started_are_bad_input(arguments, said):
    launcher = [sys.executable, LAUNCH / "local_multiprocess.py"]
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True)
    assert done.returncode == EXIT_BAD_INPUT and said in done.stderr and "Traceback" not in done.stderr


# SLURM

# Two tasks a start, which leave with the codes of that start; like srun it leaves with the highest.
SRUN = r"""
echo start >>starts; n=$(wc -l <starts); read -ra runs <<<"$CODES"; run=${runs[n - 1]:-${runs[-1]}}
IFS=, read -ra codes <<<"$run"
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task CODE=${codes[task]} "$@" & tasks[task]=$!; done
highest=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; ((code > highest)) && highest=$code; done
exit "$highest"
"""


def sbatch_options():
    lines = re.findall(r"(?m)^#SBATCH --([\w-]+)(?:=(\S+))?$", (LAUNCH / "slurm.sbatch").read_text())
    return {name: value or None for name, value in lines}


def test_the_sbatch_file_asks_for_what_resuming_needs():
    options = sbatch_options()
    assert options["signal"] == "TERM@120" and options["open-mode"] == "append" and "requeue" in options
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # JAX gives a process one GPU there
    known = {"job-name", "nodes", "gpus-per-node", "ntasks-per-node", "cpus-per-task", "mem", "exclusive", "time",
             "signal", "requeue", "open-mode", "output"}  # fmt: skip
    assert set(options) <= known
    assert (LAUNCH / "slurm.sbatch").read_text().count("#SBATCH") == len(options)


@pytest.mark.parametrize(
    ("codes", "requeued", "expected"),
    [
        ("0,0", 0, DONE),
        ("1,1", 0, BUG),
        ("2,2", 0, EXIT_BAD_INPUT),
        ("2,134", 0, EXIT_BAD_INPUT),
        ("76,2", 0, EXIT_BAD_INPUT),
        ("1,76", 0, BUG),
        ("2,1", 0, EXIT_BAD_INPUT),
        ("75,134 134,75 75,76 75,134 75,134 0,0", 5, DONE),
        ("76,134", 3, EXIT_STUCK),
        ("134,134", 3, LOST_PEER),
        ("0,killed", 3, 128 + signal.SIGKILL),
        ("134,134 75,75 76,76 76,76 76,76", 4, EXIT_STUCK),
    ],
)
def test_slurm_requeues_by_the_most_telling_code_of_all_tasks(codes, requeued, expected, tmp_path):
    task = '[[ $CODE == killed ]] && kill -KILL "$PPID"; exit "$CODE"'  # the parent is run.sh
    path = commands(tmp_path / "bin", srun=SRUN, task=task, scontrol="echo $* >>requeued")
    env = {**os.environ, "PATH": path, "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8", "SLURM_NTASKS": "2",
           "PREFLIGHT": "true", "TRAIN": "task", "CODES": codes}  # fmt: skip
    (tmp_path / "launch").symlink_to(LAUNCH)
    log = tmp_path / "requeued"
    for start in range(1, 10):
        done = subprocess.run(["bash", LAUNCH / "slurm.sbatch"], env=env, cwd=tmp_path, capture_output=True)
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) < start:
            break
    assert lines == ["requeue 7"] * requeued
    assert done.returncode == expected
    assert not list(tmp_path.glob("*.codes.*"))


# GKE

TEXT, TEXTS, COUNT = (
    {"type": "string"},
    {"type": "array", "items": {"type": "string"}},
    {"type": "integer", "minimum": 0},
)


def closed(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"]
# The part of jobset.x-k8s.io/v1alpha2 around the Job template, from JobSet 0.10 on.
RULE = closed(
    ["name", "action"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons={"type": "array", "items": {"enum": REASONS}},
    onJobFailureMessagePatterns=TEXTS,
    targetReplicatedJobs=TEXTS,
)  # fmt: skip
JOBSET = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed(["name"], name=TEXT, annotations={"type": "object", "additionalProperties": TEXT}),
    spec=closed(
        ["replicatedJobs"],
        failurePolicy=closed([], maxRestarts=COUNT, restartStrategy=TEXT, rules={"type": "array", "items": RULE}),
        replicatedJobs={"type": "array", "items": closed(["name", "template"], name=TEXT, replicas=COUNT, template={})},
    ),
)


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "gke_jobset_tpu.yaml").read_text())


def test_the_jobset_fits_the_schemas(jobset):
    jsonschema.validate(jobset, JOBSET)
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **template}
    kubernetes_validate.validate(job, "1.31", strict=True)
    pod = job["spec"]["template"]["spec"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == rows * columns / chips
    assert f"--mesh.replica={jobset['spec']['replicatedJobs'][0]['replicas']}" in pod["containers"][0]["args"]


def jobset_action(jobset, code):
    """What the Job and JobSet controllers make of a container that leaves with `code`."""
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]["name"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        wanted = rule["onExitCodes"]
        assert (rule["action"], wanted["operator"], wanted["containerName"]) == ("FailJob", "In", container)
        if code in wanted["values"]:
            reason, message = (
                "PodFailurePolicy",
                f"... failed with exit code {code} matching FailJob rule at index {index}",
            )
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_the_jobset_reads_the_exit_codes(jobset):
    assert jobset_action(jobset, EXIT_PREEMPTED) == "RestartJobSetAndIgnoreMaxRestarts"
    assert [jobset_action(jobset, code) for code in (BUG, EXIT_BAD_INPUT)] == ["FailJobSet"] * 2
    assert [jobset_action(jobset, code) for code in (EXIT_STUCK, LOST_PEER, 137)] == ["RestartJobSet"] * 3
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 3


# Queued resources

# Two hosts. `docker run` starts the next run on both, `docker wait` prints the codes that they leave with; of "0,lost"
# the first alone, because the connection to the second is lost.
GCLOUD = r"""
printf '%s\n' "$*" >>"$CALLS"
[[ "$1 $2 $3" == "compute tpus queued-resources" ]] || exit 9
case "$4 $*" in
  describe*) n=$(grep -c describe "$CALLS"); ((n > 1)) && echo ACTIVE || echo WAITING_FOR_RESOURCES ;;
  *"docker wait"*)
    n=$(grep -c "docker wait" "$CALLS"); read -ra runs <<<"$CODES"
    codes=${runs[$((n - 1))]:-${runs[-1]}}
    tr , '\n' <<<"${codes%,lost}"
    [[ $codes != *lost ]] || exit 255 ;;
esac
"""


def queued_resources(tmp_path, *arguments, **environment):
    """(exit code, the lines that gcloud was called with)."""
    path = commands(tmp_path / "bin", gcloud=GCLOUD, sleep="true")
    env = {**os.environ, "PATH": path, "CALLS": str(tmp_path / "calls"), **environment}
    done = subprocess.run([LAUNCH / "tpu_queued_resources.sh", *arguments], env=env, capture_output=True, text=True)
    return done.returncode, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("codes", "expected", "runs"),
    [
        ("0,0", DONE, 1),
        ("134,1", BUG, 1),
        ("2,2", EXIT_BAD_INPUT, 1),
        ("75,75", EXIT_PREEMPTED, 1),
        ("76,134 0,0", DONE, 2),
        ("0,lost lost,lost 0,134 0,0", DONE, 2),
        ("76,1", BUG, 1),
        ("134,75", EXIT_PREEMPTED, 1),
        ("76,76", EXIT_STUCK, 4),
    ],
)
def test_tpu_hosts_start_again_together(codes, expected, runs, tmp_path):
    code, calls = queued_resources(tmp_path, "train", "--config", "a b.py", CODES=codes)
    started = [call for call in calls if "docker run" in call]
    assert (code, len(started)) == (expected, runs)
    asked = [call for call in calls if "describe" not in call]
    assert all("ssh crops --zone=us-central1-a --node=all --worker=all" in call for call in asked)
    assert r"--env=STUCK_RESTARTS=0 REGISTRY/crops:tpu --config a\ b.py" in started[0]


def test_a_run_that_is_on_the_hosts_already_is_waited_for_if_it_is_the_same(tmp_path):
    """The command for the hosts runs here, with a docker that keeps the label of what it was told to run."""
    gcloud = 'for a; do [[ $a == --command=*"container inspect"* ]] && exec bash -c "${a#--command=}"; done; echo 0'
    docker = f"""
case $1 in
  run) [[ $* =~ asked=([0-9a-f]+) ]] && echo "${{BASH_REMATCH[1]}}" >>{tmp_path}/there ;;
  container) cat {tmp_path}/there 2>/dev/null ;;
esac"""
    path = commands(tmp_path / "bin", gcloud=gcloud, docker=docker, sudo='"$@"', sleep="true")

    def train(config):
        line = [LAUNCH / "tpu_queued_resources.sh", "train", "--config", config]
        return subprocess.run(line, env={**os.environ, "PATH": path}, capture_output=True, text=True)

    assert train("a b.py").returncode == 0 and train("a b.py").returncode == 0
    assert len((tmp_path / "there").read_text().splitlines()) == 1, "one run, waited for twice"
    other = train("c.py")
    assert other.returncode == 1 and "another run is on this host: end it with stop" in other.stderr


@pytest.mark.parametrize(("slices", "nodes"), [("1", "--node-id=crops"), ("2", "--node-count=2 --node-prefix=crops")])
def test_slices_are_asked_for_and_waited_for(slices, nodes, tmp_path):
    code, calls = queued_resources(tmp_path, "create", SLICES=slices)
    assert code == 0 and nodes in calls[0] and len(calls) == 3
