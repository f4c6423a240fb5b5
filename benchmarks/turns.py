"""Programs that take turns on one machine: each in a process of its own, never two at work at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import tqdm

Result = dict[str, float]


def serve(setup: Callable[[], Callable[[], Result]]) -> None:
    """A worker's whole life: sets up, then answers every line on stdin with one measured turn as a line of JSON."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    turn = setup()
    print(json.dumps({}), file=answers)
    for _ in sys.stdin:
        print(json.dumps(turn()), file=answers)


def take_turns(
    script: Path, sides: list[str], arguments: list[str], turns: int, apart: bool = False
) -> dict[str, Result]:
    """Medians of every side's figures over `turns` rounds; the sides alternate within a round.

    Each side runs as `python SCRIPT --side SIDE ARGUMENTS...`, whose `main` calls `serve`.

    Args:
      apart: one side after the other instead, each alone on the machine: a GPU's memory may not hold all of them.

    Raises:
      RuntimeError: a side ended before its turn; its own message is on stderr.
    """
    if apart:
        return {side: take_turns(script, [side], arguments, turns)[side] for side in sides}
    workers = {}
    try:
        for side in sides:
            command = [sys.executable, str(script), "--side", side, *arguments]
            workers[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            _answer(workers[side], side)  # the next one starts when this one is set up and still
        rounds = [{side: _ask(worker, side) for side, worker in workers.items()}
                  for _ in tqdm.trange(turns, desc="rounds")]  # fmt: skip
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return {side: dict(_medians(one[side] for one in rounds)) for side in sides}


def _ask(worker: subprocess.Popen, side: str) -> Result:
    worker.stdin.write("\n")
    worker.stdin.flush()
    return _answer(worker, side)


def _answer(worker: subprocess.Popen, side: str) -> Result:
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"side {side!r} ended with code {worker.wait()}")
    return json.loads(line)


def _medians(results: Iterator[Result]) -> Iterator[tuple[str, float]]:
    results = list(results)
    for name in results[0]:
        yield name, median(result[name] for result in results)
