"""Several processes as one run on this machine, and runs that are killed: started, stopped, compared from outside."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from places import ROOT
from tiny import config_file, elsewhere, losses, metrics, sparse, tiny_experiment

from crops_jax import train
from crops_jax.artifacts.manifest import read_manifest
from crops_jax.batches.config import InputConfig, PackingConfig
from crops_jax.batches.stream import position_shape
from crops_jax.config import from_json, to_json
from crops_jax.runs.inputs import train_inputs
from crops_jax.training.checkpoint import Checkpoints
from crops_jax.training.config import ValidationConfig

PYTHON = sys.executable
LAUNCH = (PYTHON, "launch/local_multiprocess.py", "--grace=30")
PATIENCE_S = 240


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return tiny_experiment(tmp_path_factory.mktemp("work"), validation_share=0.25)


def packed(experiment):
    """The same with texts that share rows, in training and in validation, and groups that are put off."""
    packing = PackingConfig(doc_row_tokens=32, doc_rows=24, query_row_tokens=16, query_rows=16, lookahead=2)
    config = InputConfig(batch_queries=16, docs_per_query=4, shards=8, packing=packing)
    return replace(experiment, input=config, encode=replace(experiment.encode, packed="yes", row_tokens=128))


class Launched:
    """A command as several processes; what they print goes to `folder/log`."""

    def __init__(self, folder, processes, devices, *command):
        self.folder = folder
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [*LAUNCH, f"--processes={processes}", f"--devices={devices}", "--", *command],
                cwd=ROOT, env=os.environ | {"RECORD": str(folder)}, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def log(self):
        return (self.folder / "log").read_text()

    def until(self, happened):
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.02)
        return self

    def signal(self, number, process=None):
        """Sends a signal to one process of the run, or to the launcher."""
        pid = self._process.pid if process is None else int((self.folder / f"pid.{process}").read_text())
        os.kill(pid, number)
        return self

    def code(self):
        return self._process.wait(timeout=PATIENCE_S)

    def codes(self):
        """Of every process, once they have ended."""
        return re.findall(r"\[\d\] exit code (\d+)", self.log)

    def end(self):
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)  # which the launcher passes on
            self.code()


@pytest.fixture
def launch():
    """Starts commands, and ends what a failed test leaves behind."""
    started = []

    def launch(*arguments):
        started.append(Launched(*arguments))
        return started[-1]

    yield launch
    for each in started:
        each.end()


def trained(launch, experiment, processes, devices, step, *flags):
    """A recorded run without end that has come to `step`."""
    command = (PYTHON, "tests/end_to_end/recorded_train.py", f"--config={config_file(experiment)}")
    folder = experiment.arm_folder("records").parent
    run = launch(folder, processes, devices, *command, "--train.steps=100000", *flags)
    return run.until(lambda: max(losses(experiment), default=0) >= step)


def groups(run, process, what="groups"):
    """For every step the groups that a process loaded (or "reads") for it; also for steps ahead that were not made."""
    lines = (run.folder / f"{what}.{process}").read_text().splitlines()
    return [[int(group) for group in line.split()] for line in lines]


@pytest.mark.slow
def test_two_processes_are_one_run_and_stop_together_when_one_is_told(experiment, launch):
    arms = [elsewhere(packed(experiment), name) for name in ("two", "one")]
    evaluated = ValidationConfig(every=2, select="recall")
    arms[0] = replace(arms[0], validation=evaluated)
    two = trained(launch, arms[0], 2, 2, 3).signal(signal.SIGTERM, process=1)
    assert two.code() == 75 and two.codes() == ["75", "75"]
    stopped = re.findall(r"\[(\d)\] stopped: saved step (\d+) of 100000", two.log)
    step = int(stopped[0][1])
    assert sorted(stopped) == [("0", str(step)), ("1", str(step))]
    with Checkpoints(arms[0].arm_folder("train"), read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == step
        scored = [
            read_manifest(checkpoints.folder / f"checkpoints/{n}")["counts"]["score"] for n in checkpoints.steps()
        ]
    evaluations = {r["step"]: r["validation_recall_10"] for r in metrics(arms[0]) if "validation_recall_10" in r}
    assert [*evaluations] == list(range(2, step + 1, 2)) and max(evaluations.values()) in scored

    one = trained(launch, arms[1], 1, 4, step + 4).signal(signal.SIGTERM)
    assert one.code() == 75
    found, expected = map(losses, arms)
    for number in range(1, step + 1):
        assert found[number] == pytest.approx(expected[number], rel=1e-6 if number <= 3 else 1e-5)
    # Each process reads only its own part, and together they read, and load, what one process does.
    for what in ("reads", "groups"):
        loads = list(zip(groups(two, 0, what), groups(two, 1, what), groups(one, 0, what), strict=False))[:step]
        assert len(loads) == step
        for first, second, whole in loads:
            assert first and second and sorted(first + second) == whole
    assert not {*groups(two, 0)[0]} & {*groups(two, 1)[0]}

    # What two processes saved, one goes on with.
    on = trained(launch, arms[0], 1, 4, step + 4).signal(signal.SIGTERM)
    assert on.code() == 75
    found = losses(arms[0])
    for number in range(step + 1, step + 5):
        assert found[number] == pytest.approx(expected[number], rel=1e-4)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_as_one_to_start_again(experiment, launch):
    # On a machine that is short of cores Gloo now and then notices nothing, and the launcher kills the other.
    for attempt in range(3):
        arm = sparse(elsewhere(experiment, f"lost_{attempt}"))
        run = trained(launch, arm, 2, 2, 5).signal(signal.SIGKILL, process=1)
        run.code()
        if run.codes() != ["137", "137"]:
            break
    assert run.codes() == ["76", "137"], run.log
    assert "stopped: a collective failed" in run.log and "Traceback" not in run.log
    before = losses(arm)
    again = trained(launch, arm, 2, 2, max(before) + 1).signal(signal.SIGTERM)
    assert again.code() == 75
    assert {step: losses(arm)[step] for step in before} == before  # from the last checkpoint on, computed anew


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_as_stuck(experiment, launch):
    arm = sparse(elsewhere(experiment, "stuck"))
    flags = ("--train.save_every=100000", "--train.stuck_floor_s=8", "--train.stuck_after=2")
    run = trained(launch, arm, 2, 2, 3, *flags)
    assert run.signal(signal.SIGSTOP, process=1).code() == 76
    assert "[0] stuck: no step finished in" in run.log
    assert "_settle" in (arm.arm_folder("train") / "stuck.0.txt").read_text()


@pytest.mark.slow
def test_processes_that_were_started_unlike_end_together_as_bad_input(experiment, launch):
    arm = sparse(elsewhere(experiment, "unlike"))
    command = f"{PYTHON} -m crops_jax.train --config={config_file(arm)} --optim.b1=0.$((8 + JAX_PROCESS_ID))"
    run = launch(arm.arm_folder("records").parent, 2, 1, "sh", "-c", f"exec {command}")
    assert run.code() == 2
    problem = "error: the processes were not started alike: process 1: optim.b1 is 0.9, in process 0 0.8"
    assert f"[0] {problem}" in run.log and f"[1] {problem}" in run.log and "Traceback" not in run.log


def test_rows_reach_the_devices_that_hold_them_whatever_the_order_of_the_devices(tmp_path, launch):
    run = launch(tmp_path, 2, 2, PYTHON, "tests/end_to_end/fed_rows.py")
    assert run.code() == 0, run.log
    assert re.findall(r"\[0\] rows (.*)", run.log) == ["0 1 2 3", "0 1 4 5", "0 1 2 3", "0 1 2 3 4 5 6 7"]
    assert re.findall(r"\[1\] rows (.*)", run.log) == ["4 5 6 7", "2 3 6 7", "4 5 6 7", "0 1 2 3 4 5 6 7"]


def _train(description, devices):
    """In a process of its own that has imported everything but started nothing."""
    jax.config.update("jax_num_cpu_devices", devices)
    train.run(from_json(description))


def _state(experiment):
    """Every array of the last checkpoint by name: parameters, optimiser state, step, data position."""
    inputs = train_inputs(experiment)
    mesh = inputs.mesh
    with jax.set_mesh(mesh), Checkpoints(experiment.arm_folder("train"), read_only=True) as checkpoints:
        places = jax.ShapeDtypeStruct(
            position_shape(experiment.input), np.int32, sharding=jax.NamedSharding(mesh, jax.P("data"))
        )
        wanted = {**vars(inputs.task.abstract_state(mesh)), "position": places}
        step, state = checkpoints.restore(wanted)
    return step, jax.tree.map(np.asarray, state)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bitwise_where_a_straight_one_does(experiment):
    random = np.random.default_rng(0)
    tower = replace(experiment.model.backbone, layers=1)
    small = replace(packed(experiment), model=replace(experiment.model, backbone=tower, tie_towers=True))
    arms = [elsewhere(small, name) for name in ("straight", "killed")]
    straight, killed = (replace(arm, train=replace(arm.train, steps=60, save_every=2)) for arm in arms)
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["crops_jax.train"])

    def start(arm):
        process = fork.Process(target=_train, args=(to_json(arm), 8))
        process.start()
        return process

    start(straight).join()
    for _ in range(5):
        aim = max(losses(killed), default=0) + random.integers(2, 8)
        process = start(killed)
        while process.is_alive() and max(losses(killed), default=0) < aim:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.1))  # a save lasts about as long
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    start(killed).join()
    assert losses(killed) == losses(straight) and max(losses(killed)) == 60
    (step, found), (_, expected) = _state(killed), _state(straight)
    assert step == 60
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
