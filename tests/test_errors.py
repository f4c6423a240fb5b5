"""How a command ends: with which code, and with which words for the person at the keyboard."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from crops_jax.errors import InputError, PeerLost, Preempted, require_positive, run_command
from crops_jax.parallel import processes

ENDS = {
    "bad input": (
        InputError("a.parquet", ["column x is missing", "column y is missing"]),
        2,
        "error: a.parquet: 2 prob",
    ),
    "preempted": (Preempted("saved step 4 of 9"), 75, "stopped: saved step 4 of 9"),
    "peer lost": (PeerLost("a collective failed"), 76, "stopped: a collective failed"),
    "keyboard": (KeyboardInterrupt(), 130, "stopped by the keyboard"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), 2, "make room and run the same command again"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "make room and run the same command again"),
    "a package of an extra": (
        ModuleNotFoundError("No module named 'bm25s'", name="bm25s.scoring"),
        2,
        "the package bm25s is not installed; in a checkout of crops-jax, pip install -c constraints.txt -e '.[mine]'",
    ),
    "another package": (ModuleNotFoundError("No module named 'numppy'", name="numppy"), 1, "Traceback"),
    "file size": (OSError(errno.EFBIG, "File too large"), 2, "allow larger files (ulimit -f) and run the same command"),
    "folder for a file": (
        IsADirectoryError(errno.EISDIR, "Is a directory", "plan"),
        2,
        "'plan'; move it away, or name",
    ),
    "another file error": (OSError(errno.EIO, "Input/output error"), 1, "Traceback"),
    "bug": (KeyError("x"), 1, "Traceback"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_command_ends_with_the_code_of_what_went_wrong(end, capsys):
    error, code, said = ENDS[end]

    def main():
        raise error

    left = []
    run_command(main, left.append)
    told = capsys.readouterr()
    assert left == [code] and said in told.err and told.out == ""
    assert ("Traceback" in told.err) == (code == 1)
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == code


def test_a_command_whose_output_nobody_reads_ends_without_a_word():
    program = (
        "from crops_jax.errors import run_command; run_command(lambda: [print(n) for n in range(100_000)] and None)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        command.stdout.readline()
        command.stdout.close()
        assert (command.stderr.read(), command.wait()) == (b"", 141)


def test_a_command_that_succeeds_just_returns():
    left = []
    run_command(lambda: None, left.append)
    assert left == []


def test_the_message_lists_every_problem():
    assert str(InputError("place")) == "place" and str(InputError("place", "one")) == "place: one"
    assert str(InputError("place", ["one", "two"])) == "place: 2 problems\n  - one\n  - two"

    class Config:
        a, b, c = 0, 1, -2

    with pytest.raises(InputError) as error:
        require_positive("some", Config(), ("a", "b", "c"))
    assert error.value.problems == ["a: 0 is not above zero", "c: -2 is not above zero"]


def test_sigterm_asks_a_run_to_stop_after_its_step_and_is_given_back():
    def own(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    try:
        with processes.stop_on_signal() as stop:
            assert not stop(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop(2) and stop(3)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def on_sigint(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_asks_once_and_interrupts_the_second_time(capfd):
    with on_sigint(signal.default_int_handler):
        with processes.stop_on_signal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop(1) and "once more leaves at once" in capfd.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with on_sigint(signal.SIG_IGN), processes.stop_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop(1), "a job in the background is not interrupted"
