"""Several processes as one run: joining it, agreeing before it starts, failing and stopping together.

Every function but `initialize` is a collective: all processes call it in the same order. With one process a function
just does its own part, so a command is written once for both cases.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from crops_jax.errors import EXIT_PREEMPTED, InputError, PeerLost

T = TypeVar("T")
EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Launchers that start one process a GPU: for a single task JAX would hide all GPUs but the first.
_TASKS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# In the words of Gloo, NCCL and the coordination service; their errors of other kinds are this process's own.
_LOST_PEER = re.compile(
    r"by peer|connection (reset|refused|closed)|socket closed|remote process|heartbeat|coordination service"
    r"|unavailable|timed out|deadline.exceeded",
    re.IGNORECASE,
)
_FIRST_STAYS_S = 3.0  # the others' connections end with the first process, so that it leaves last


def initialize() -> None:
    """Joins the other processes of this run, if it was started as one of several; call it before any use of a device.

    The three variables of `EXPLICIT` say who takes part. Without the last two JAX asks SLURM, Open MPI, Cloud TPU and
    Kubernetes jobs; a process that none of them started stays alone.

    Raises:
      InputError: a variable is missing or cannot be, or the environment speaks of others that JAX cannot find.
    """
    if any(name in os.environ for name in EXPLICIT[1:]):
        jax.distributed.initialize(*_explicit())
    elif not any(os.environ.get(name) == "1" for name in _TASKS):
        try:
            jax.distributed.initialize()
        except ValueError as error:  # JAX found no cluster
            meant = [name for name in (EXPLICIT[0], "OMPI_COMM_WORLD_SIZE") if name in os.environ]
            if meant:
                told = f"{meant[0]} is set, but JAX does not find the other processes ({error}); "
                raise InputError("environment", f"{told}set {', '.join(EXPLICIT)} in each") from None


def _explicit() -> tuple[str, int, int]:
    """(address, processes, index) of the environment, which JAX itself reads only in part."""
    problems = [f"{name} is not set; the others are" for name in EXPLICIT if name not in os.environ]
    problems += [f"{n}={os.environ[n]} is no number" for n in EXPLICIT[1:] if not os.environ.get(n, "0").isdecimal()]
    address, processes, index = (os.environ.get(name, "") for name in EXPLICIT)
    host, _, port = address.rpartition(":")
    if EXPLICIT[0] in os.environ and not (host and port.isdecimal()):
        problems.append(f"{EXPLICIT[0]}={address} is no host:port")
    if not problems and int(index) >= int(processes):
        problems.append(f"{EXPLICIT[2]}={index} is none of the {processes} of {EXPLICIT[1]}, which count from 0")
    if problems:
        raise InputError("environment", problems)
    return address, int(processes), int(index)


@contextmanager
def noticing_lost_peers() -> Iterator[None]:
    """Turns what JAX raises where a collective loses its other side into `PeerLost`.

    On some platforms JAX aborts such a process itself. On others it raises, which would read as a bug of this process,
    the one that is well, and no scheduler would start the run again.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not _LOST_PEER.search(str(error)):
            raise
        said = f"a collective failed ({str(error).splitlines()[0]}); another process of the run is gone: see its log"
        raise PeerLost(said) from error


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code, after a failure without waiting for the others (`leave_at_once`)."""
    if code == EXIT_PREEMPTED or not jax.distributed.is_initialized():
        sys.exit(code)
    leave_at_once(code)


def leave_at_once(code: int) -> NoReturn:
    """Ends this process from any thread, whatever the others do: they lose it and end too.

    They may stand in a collective that this process will never enter. JAX's own farewell at exit would wait for them,
    and then abort with a code of its own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and is_first():
        time.sleep(_FIRST_STAYS_S)
    os._exit(code)


def is_first() -> bool:
    """Whether this process is the one that writes what a run has once: config, metrics, manifests."""
    return jax.process_index() == 0


def together(action: Callable[[], T]) -> T:
    """What `action` returns here, once it has succeeded in every process.

    Raises:
      InputError: in all processes, if any raised one; names the processes.
    """
    value, failure = _attempt(action)
    failures = {i: InputError(*json.loads(text)) for i, text in enumerate(_gather(failure)) if text}
    if len(failures) == jax.process_count() and len(set(map(str, failures.values()))) == 1:
        raise failures[0]
    if failures:
        raise InputError("not all processes are ready", [f"process {i}: {error}" for i, error in failures.items()])
    return value


def first(action: Callable[[], T]) -> T:
    """What `action` returns in the first process, which alone runs it: a value that JSON can hold.

    Raises:
      InputError: in all processes, if the first one raised it.
    """
    value, failure = _attempt(action) if is_first() else (None, "")
    failure, value = json.loads(_gather(json.dumps([failure, value]))[0])
    if failure:
        raise InputError(*json.loads(failure))
    return value


def gathered(texts: Sequence[str]) -> list[str]:
    """The texts of all processes, in their order."""
    return [text for told in _gather(json.dumps(list(texts))) for text in json.loads(told)]


def require_same(facts: Mapping[str, str]) -> None:
    """Raises InputError in all processes unless all bring the same facts; says which one differs in what."""
    told = [json.loads(text) for text in _gather(json.dumps(dict(facts)))]
    problems = [
        f"process {i}: {name} is {theirs.get(name)}, in process 0 {value}"
        for i, theirs in enumerate(told)
        for name, value in told[0].items()
        if json.dumps(theirs.get(name)) != json.dumps(value)  # which finds NaN equal to itself
    ]
    if problems:
        raise InputError("the processes were not started alike", problems)


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[int], bool]]:
    """Gives `stop(step)`, to be asked once after every step: whether to save that step and leave.

    SIGTERM asks for this, and so does Ctrl-C, which interrupts at once the second time. A run of several processes
    hears SIGTERM alone. The process that receives it stops all of them, at the same step: JAX's
    preemption service agrees on the first step that none of them has passed. It owns the signal in such a run.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return

    def interrupted(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, b"\nsaving after this step; Ctrl-C once more leaves at once\n")  # print is not for signal handlers

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: asked.set())}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job ignores it
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupted)
    try:
        yield lambda step: asked.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _attempt(action: Callable[[], T]) -> tuple[T | None, str]:
    """(what it returns, "") or (None, its InputError as JSON)."""
    try:
        return action(), ""
    except InputError as error:
        return None, json.dumps([error.place, error.problems])


def _gather(text: str) -> list[str]:
    """The text of every process, in their order."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths: Any = multihost_utils.process_allgather(np.int32(len(data)))
    rows = multihost_utils.process_allgather(np.resize(np.append(data, np.uint8(0)), lengths.max() + 1))
    return [bytes(row[:n]).decode() for row, n in zip(rows, lengths.tolist(), strict=True)]
