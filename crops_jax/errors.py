"""Errors meant for the person at the keyboard, and the exit codes that carry them to a scheduler.

For an `InputError` a command prints the message alone, without a traceback, and exits with `EXIT_BAD_INPUT`. Any other
exception that reaches the top is a bug and is printed with its traceback.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import NoReturn

EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: a scheduler may start the same command again
EXIT_STUCK = 76  # no progress, or another process was lost; the same command continues, but look why
EXIT_KEYBOARD = 130
EXIT_NO_READER = 141  # what reads the output went away (`| head`)
MENDS = {  # what the machine refuses, and what a person can do about it
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow it"),
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EISDIR: "move it away, or name a file",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG), "name a folder that is one, or can be made"),
}
# What libraries say of a full disk without its number: NumPy's tofile, the writer of safetensors.
_FULL = re.compile(r"^\d+ requested and \d+ written$|os error 28\b")
_EXTRAS = {  # packages that not every machine has, and the extra of pyproject.toml that brings them
    **dict.fromkeys(("bm25s", "duckdb", "ibis", "openai", "scipy", "sklearn", "sqlglot", "threadpoolctl"), "mine"),
    **dict.fromkeys(("fastapi", "prometheus_client", "scann", "uvicorn"), "serve"),
    **dict.fromkeys(("flatbuffers", "onnx", "onnxruntime"), "forms"),
    **dict.fromkeys(("jinja2", "matplotlib"), "bench"),
    **dict.fromkeys(("sentence_transformers", "torch", "wandb"), "interop"),
    "pyspark": "spark",
}


class InputError(Exception):
    """Something outside the program is wrong: a table, a shard, a flag, a checkpoint, a missing file.

    The message names the place (file, column, row, field) and the mend. Several problems of one input are
    collected and raised together: `InputError("logs/searches.parquet", ["column ts is missing", ...])`.
    """

    def __init__(self, place: str, problems: str | list[str] = ()):
        self.place = place
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(self._text())

    def _text(self) -> str:
        match self.problems:
            case []:
                return self.place
            case [only]:
                return f"{self.place}: {only}"
            case many:
                return f"{self.place}: {len(many)} problems\n" + "\n".join(f"  - {p}" for p in many)


def brought_by(extra: str) -> str:
    """How what an extra of this package brings is installed: it is in no index."""
    return f"in a checkout of crops-jax, pip install -c constraints.txt -e '.[{extra}]' brings it"


def require_positive(place: str, config: object, names: Sequence[str]) -> None:
    """Raises one InputError that lists the fields of `config` that are not above zero, or are endless."""
    values = {name: getattr(config, name) for name in names}
    problems = [f"{n}: {v} is {'endless' if v > 0 else 'not above zero'}" for n, v in values.items()
                if not 0 < v < math.inf]  # fmt: skip
    if problems:
        raise InputError(f"{place} config", problems)


def impossible_numbers(config: object, shares: Collection[str] = (), place: str = "") -> list[str]:
    """What is wrong with a config's numbers: none may be below zero or not finite, and no share or chance above one.

    Args:
      shares: fields that are shares or chances, beside those whose name ends so.
      place: stands before the names.
    """
    problems = []
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        share = field.name in shares or field.name.endswith(("_share", "_chance"))
        if not math.isfinite(value) or value < 0 or (share and value > 1):
            must = "must lie between 0 and 1" if share else "must be a number of 0 or more"
            problems.append(f"{place}{field.name} = {value}: {must}")
    return problems


def require_possible(place: str, config: object, shares: Collection[str] = ()) -> None:
    """Raises one InputError that lists what `impossible_numbers` finds."""
    if problems := impossible_numbers(config, shares):
        raise InputError(f"{place} config", problems)


class Diverged(InputError):
    """A training step whose loss, gradient or update is not finite."""


class Preempted(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C) and has saved its state; starting it again continues it."""


class PeerLost(Exception):
    """Another process of the run went away, and with it the other side of a collective; the same command continues."""


def run_command(main: Callable[[], None], leave: Callable[[int], NoReturn] = sys.exit) -> None:
    """Runs a command's `main`, says what went wrong, and ends the process with the exit code of that.

    Args:
      leave: ends the process; a command of several processes has a way of its own (`parallel.processes.leave`).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an id in letters that the terminal lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    code = _run(main)
    if code:
        leave(code)


def _run(main: Callable[[], None]) -> int:
    try:
        main()
        sys.stdout.flush()
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Preempted as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return EXIT_PREEMPTED
    except PeerLost as loss:
        print(f"stopped: {loss}", file=sys.stderr)
        return EXIT_STUCK
    except KeyboardInterrupt:
        print("stopped by the keyboard; the same command continues from the last complete artefact", file=sys.stderr)
        return EXIT_KEYBOARD
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return EXIT_NO_READER
        if isinstance(error, OSError) and error.errno in MENDS:
            print(f"error: {error}; {MENDS[error.errno]} and run the same command again", file=sys.stderr)
            return EXIT_BAD_INPUT
        if _FULL.search(str(error)):
            print(
                f"error: no space left on device ({error}); make room and run the same command again", file=sys.stderr
            )
            return EXIT_BAD_INPUT
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package in _EXTRAS:
            print(f"error: the package {package} is not installed; {brought_by(_EXTRAS[package])}", file=sys.stderr)
            return EXIT_BAD_INPUT
        traceback.print_exc()
        return EXIT_BUG


def _reader_is_gone() -> bool:
    """Whether nobody reads the output any more; what is still held of it is thrown away then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), select.POLLERR)
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
    return gone
