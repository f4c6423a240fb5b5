"""Runs a command as several processes on this machine, each with CPU devices of its own, talking over loopback.

    python launch/local_multiprocess.py --processes 2 --devices 2 -- python -m crops_jax.train --config configs/demo.py

A pod in small: what is wrong with a multi-host run shows here first. Lines are prefixed with the process that printed
them. SIGTERM and SIGINT go to every process. When one fails the others have a grace to end by themselves, then are
killed; the exit code is that of those that failed first, the most telling one where several did. The last lines are
then the exit codes of all, because another one may tell more.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import BinaryIO, TextIO

_POLL_S = 0.05
_BAD_INPUT = 2
# Codes that say why, in the order of the other launch files: bad input, a bug, preempted, stuck or lost a peer.
_TELLING = (2, 1, 75, 76)


def main() -> int:
    """Runs the command line's command and returns the exit code of the whole."""
    arguments = _arguments()
    port = _free_port()
    if shutil.which(arguments.command[0]) is None:
        print(f"error: {arguments.command[0]}: no such command", file=sys.stderr)
        return _BAD_INPUT
    children = [
        subprocess.Popen(
            arguments.command,
            env=_environment(port, index, arguments.processes, arguments.devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the keyboard reaches them through this process alone
        )
        for index in range(arguments.processes)
    ]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _send(children, number))
    streams = [(i, stream, out) for i, child in enumerate(children)
               for stream, out in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))]  # fmt: skip
    printers = [threading.Thread(target=_print_lines, args=(i, stream, out)) for i, stream, out in streams]
    for printer in printers:
        printer.start()
    code = _wait(children, arguments.grace)
    for printer in printers:
        printer.join()
    codes = [_as_shell(child.returncode) for child in children]
    if any(codes):
        for index, each in enumerate(codes):
            print(f"[{index}] exit code {each}", file=sys.stderr)
    return code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=_count, default=2, help="processes to start (2)")
    parser.add_argument("--devices", type=_count, default=1, help="CPU devices of each (1)")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds the others have after one has failed (10)")
    parser.add_argument("command", nargs="+", help="the command, after --")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _environment(port: int, index: int, processes: int, devices: int) -> dict[str, str]:
    # The number of devices is said once; collectives of one process must keep one order (tests/conftest.py).
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "force_host_platform_device_count" not in f]
    flags.append("--xla_cpu_enable_concurrency_optimized_scheduler=false")
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "XLA_FLAGS": " ".join(flags),
        "PYTHONUNBUFFERED": "1",
    }


def _wait(children: list[subprocess.Popen], grace_s: float) -> int:
    """Waits for all; from the first failure on for `grace_s`, then kills. Returns 0, or why the first one failed."""
    failed: list[int] = []
    deadline = float("inf")
    while True:
        codes = [child.poll() for child in children]
        if not failed and (failed := [code for code in codes if code]):
            deadline = time.monotonic() + grace_s
        if None not in codes:
            break
        if time.monotonic() > deadline:
            _send(children, signal.SIGKILL)
        time.sleep(_POLL_S)
    telling = [code for code in _TELLING if code in failed]
    return telling[0] if telling else _as_shell(failed[0]) if failed else 0


def _as_shell(code: int) -> int:
    """The code as a shell says it: 128 + number where a signal ended the process."""
    return code if code >= 0 else 128 - code


def _send(children: list[subprocess.Popen], number: int) -> None:
    for child in children:
        if child.poll() is None:
            if number == signal.SIGKILL:  # what it has started would stay, and hold the output open
                os.killpg(child.pid, number)
            else:
                child.send_signal(number)


def _print_lines(index: int, stream: BinaryIO, out: TextIO) -> None:
    # newline="" ends lines at carriage returns too, so that progress bars move.
    for line in io.TextIOWrapper(stream, errors="replace", newline=""):
        out.write(f"[{index}] {line}")
        out.flush()


if __name__ == "__main__":
    sys.exit(main())
