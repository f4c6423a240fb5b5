"""Joining a run, and the watchdog that leaves one."""

import time
from contextlib import suppress

import jax
import pytest

from crops_jax.errors import InputError, PeerLost
from crops_jax.parallel import processes
from crops_jax.parallel.processes import EXPLICIT
from crops_jax.training import watchdog
from crops_jax.training.watchdog import Watchdog

Error = jax.errors.JaxRuntimeError


@pytest.fixture
def launch(monkeypatch):
    """launch(env, cluster=False): what `initialize` asks of JAX in this environment, with or without a cluster."""

    def launch(environment, cluster=False):
        asked = []

        def initialize(*arguments):
            asked.append(arguments)
            if not arguments and not cluster:
                raise ValueError("coordinator_address should be defined.")

        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        for name in (*EXPLICIT, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        processes.initialize()
        return asked

    return launch


def test_a_process_joins_what_started_it_and_else_stays_alone(launch):
    assert launch(dict(zip(EXPLICIT, ("h0:1234", "4", "3"), strict=True))) == [("h0:1234", 4, 3)]
    assert launch({}, cluster=True) == [()]
    assert launch({}) == [()]  # JAX found nothing: no error
    assert launch({"SLURM_NTASKS": "8", "JAX_COORDINATOR_ADDRESS": "h0:1234"}, cluster=True) == [()]
    assert launch({"SLURM_NTASKS": "1"}, cluster=True) == []  # JAX would hide all GPUs of the task but one


def test_an_environment_that_says_half_is_refused(launch):
    with pytest.raises(InputError) as error:
        launch({"JAX_COORDINATOR_ADDRESS": "h0:1234", "JAX_PROCESS_ID": "one"})
    assert error.value.problems == ["JAX_NUM_PROCESSES is not set; the others are", "JAX_PROCESS_ID=one is no number"]
    for name in ("JAX_COORDINATOR_ADDRESS", "OMPI_COMM_WORLD_SIZE"):
        with pytest.raises(InputError, match=f"{name} is set, but JAX does not find the other processes"):
            launch({name: "2"})


@pytest.mark.parametrize(("values", "said"), [
    (("h0", "2", "0"), "JAX_COORDINATOR_ADDRESS=h0 is no host:port"),
    (("", "2", "0"), "JAX_COORDINATOR_ADDRESS= is no host:port"),
    (("h0:1234", "2", "2"), "JAX_PROCESS_ID=2 is none of the 2 of JAX_NUM_PROCESSES"),
    (("h0:1234", "0", "0"), "JAX_PROCESS_ID=0 is none of the 0 of JAX_NUM_PROCESSES"),
])  # fmt: skip
def test_an_environment_that_cannot_be_is_refused(launch, values, said):
    with pytest.raises(InputError, match=said):
        launch(dict(zip(EXPLICIT, values, strict=True)))


def test_alone_the_collectives_are_the_action_itself():
    def refuse():
        raise InputError("place", ["a", "b"])

    assert processes.together(lambda: {"any": object}) == {"any": object}
    assert processes.first(lambda: [1, None]) == [1, None]
    processes.require_same({"a": "b"})
    for collective in (processes.together, processes.first):
        with pytest.raises(InputError) as error:
            collective(refuse)
        assert (error.value.place, error.value.problems) == ("place", ["a", "b"])


def test_what_the_first_process_does_the_others_do_not(monkeypatch):
    ran = []
    monkeypatch.setattr(processes, "is_first", lambda: False)
    processes.first(lambda: ran.append(1))
    assert ran == []


def test_the_watchdog_knows_a_slow_run_from_its_first_step_and_lets_a_save_end(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(watchdog, "leave_at_once", ended.append)
    with Watchdog(tmp_path / "stacks", times=5, floor_s=0.05, slow_s=60) as dog:
        with suppress(ValueError), dog.ending_slowly():
            for _ in range(2):  # far above the floor
                time.sleep(0.3)
                dog.step_finished()
            raise ValueError
        time.sleep(2)
    assert not ended


def test_only_a_lost_peer_is_no_bug(monkeypatch):
    gone = [
        "UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:8606",
        "INTERNAL: NCCL operation ncclAllReduce failed: remote process exited or there was a network error",
        "UNAVAILABLE: Task /job:jax_worker/replica:0/task:1 heartbeat timeout",
    ]
    own = [
        "RESOURCE_EXHAUSTED: out of memory",
        "INTERNAL: NCCL operation ncclCommInitRank failed: invalid usage",
        "INTERNAL: failed to enable peer access from 0 to 1",
    ]
    cases = [(2, said, PeerLost) for said in gone] + [(1, gone[0], Error)] + [(2, said, Error) for said in own]
    for count, said, kind in cases:
        monkeypatch.setattr(jax, "process_count", lambda n=count: n)
        with pytest.raises(kind), processes.noticing_lost_peers():
            raise Error(said)


def test_the_watchdog_never_ends_a_run_below_its_floor(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(watchdog, "leave_at_once", ended.append)
    with Watchdog(tmp_path / "stacks", times=2, floor_s=5, slow_s=60) as dog:
        for _ in range(20):  # twice the median is next to nothing
            dog.step_finished()
        time.sleep(0.8)
    assert not ended


def test_the_watchdog_waits_for_the_slower_of_floor_and_median(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(watchdog, "leave_at_once", ended.append)
    with Watchdog(tmp_path / "stacks", times=5, floor_s=0.1, slow_s=60) as dog:
        with dog.slow_work():
            time.sleep(0.3)  # compiling
        time.sleep(0.06)
        dog.step_finished()
        for _ in range(3):
            time.sleep(0.06)
            dog.step_finished()
        time.sleep(0.2)  # above the floor, below five times 0.06
        dog.step_finished()
        with dog.slow_work():
            time.sleep(0.5)
        assert not ended
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)
    assert set(ended) == {76}
    assert "test_the_watchdog_waits" in (tmp_path / "stacks").read_text()
