"""`python -m crops_jax.chain --config FILE`: the days of a platform's own logs, each trained on from the day before.

Of each day but the last: mine it, write its shards, train on from the checkpoint of the day before, encode the corpus,
and evaluate on the next day. Days are the folders of `logs` in the order of their names, and `test` after them; what
is made of a day lies below `chain/DAY`. The last day's model is exported. What is whole and current is kept, so a
killed chain goes on, and a log that got one more day takes the work of one. Days that are done may leave the log: the
first one that is left goes on from where the days before it ended.

`--keep-optimiser` takes over the moments of the day before, too; without it they begin at zero every day. The schedule
of the learning rate begins anew either way. `--first DAY` and `--last DAY` choose a stretch of days.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from crops_jax import pipeline
from crops_jax.artifacts.manifest import MANIFEST
from crops_jax.command_line import from_command_line, take_option
from crops_jax.config import Experiment
from crops_jax.errors import InputError, run_command
from crops_jax.evaluate import read_results
from crops_jax.logs.folder import open_logs
from crops_jax.logs.window import ensure_window
from crops_jax.mining.leak_guard import HELD_OUT
from crops_jax.mining.work import share_theta_cache
from crops_jax.report.tables import short_text, write_report
from crops_jax.runs.folder import RUN, began_otherwise, discard, read_run, start_identity

KEEP_OPTIMISER = "--keep-optimiser"


def days_of(e: Experiment, first: str | None = None, last: str | None = None) -> list[str]:
    """The days from the first to mine to the last to evaluate on.

    Raises:
      InputError: the logs are simulated, hold no such day, or fewer than two from the first to the last.
    """
    if e.world is not None:
        raise InputError("chain", "simulated days are served by what is trained: python -m crops_jax.loop runs them; "
                         "a platform's own logs need world=None")  # fmt: skip
    logs = e.ready("logs")
    held = open_logs(logs).days()
    days = [day for day in held if day not in HELD_OUT] + [day for day in held if day == "test"]
    if strange := [day for day in (first, last) if day is not None and day not in days]:
        raise InputError("--first, --last", f"{logs} holds no day {', '.join(strange)}; it has {', '.join(days)}")
    begin = days.index(first) if first else 0
    end = days.index(last) if last else len(days) - 1
    if end <= begin:
        said = f"{last or 'the last day'} does not come after {first or 'the first day'}"
        raise InputError(str(logs), f"a chain needs a day to mine and a later one to evaluate on, and {said}; "
                         f"it has {', '.join(days) or 'no day'}")  # fmt: skip
    return days[begin : end + 1]


def experiments(e: Experiment, days: list[str], keep_optimiser: bool) -> list[Experiment]:
    """What is done on each day but the last: the same experiment in a folder of its own, from another start."""
    made: list[Experiment] = []
    for day in days[:-1]:
        of_day = _of_day(e, day)
        if made:
            of_day = replace(of_day, model=replace(e.model, init_from=_checkpoint(made[-1], keep_optimiser)))
        made.append(of_day)
    return made


def taken_up(e: Experiment, days: list[str], keep_optimiser: bool = False) -> Experiment:
    """The experiment, whose first day starts from the days before it that have left the log since they were trained.

    A day that has a run starts from what that run began from. Another one, if the log holds none before it, starts from
    the newest trained day that is earlier by name.
    """
    own = _trained(e, days[0])
    if (own / RUN).is_file():
        earlier = read_run(own)[0]
        start = earlier.model.init_from
        if start is None or _root(e).resolve() not in Path(start).resolve().parents:
            return e
    else:
        gone = [day for day in _finished(e) if day < days[0]]
        if not gone or open_logs(e.ready("logs")).days()[0] != days[0]:
            return e
        earlier = read_run(_trained(e, gone[-1]))[0]
        start = _checkpoint(earlier, keep_optimiser)
        print(f"   {days[0]}: goes on from {gone[-1]}, which has left the log", file=sys.stderr)
    text = e.text if e.vocabulary is None else replace(e.text, tokenizer=earlier.text.tokenizer)
    return replace(e, vocabulary=None, text=text, model=replace(e.model, init_from=start))


def _root(e: Experiment) -> Path:
    return Path(e.workdir) / "chain"


def _of_day(e: Experiment, day: str) -> Experiment:
    return replace(e, workdir=str(_root(e) / day), title=f"{e.title}, {day}")


def _trained(e: Experiment, day: str) -> Path:
    return _of_day(e, day).arm_folder("train")


def _finished(e: Experiment) -> list[str]:
    """The days whose training has ended, sorted by name."""
    names = (folder.name for folder in _root(e).glob("*/"))
    return sorted(name for name in names if (_trained(e, name) / MANIFEST).is_file())


def _checkpoint(before: Experiment, keep_optimiser: bool) -> str:
    folder = before.arm_folder("train")
    return str(folder / "checkpoints" / str(before.train.steps) if keep_optimiser else folder)


def run(e: Experiment, days: list[str], keep_optimiser: bool = False) -> Path:
    """Runs the days and returns the folder of the report: a row a day, measured on the next one.

    Raises:
      InputError: a day's tables break the contract, reach into the next day, or give nothing to train on.
    """
    share_theta_cache(Path(e.workdir))
    e.mining.world_knowledge.share_journal(Path(e.workdir))
    every = experiments(taken_up(e, days, keep_optimiser), days, keep_optimiser)
    before: Experiment | None = None
    for of_day, today, tomorrow in zip(every, days, days[1:], strict=False):
        ensure_window(e.ready("logs"), of_day.folder("logs"), {today: "train", tomorrow: "test"})
        before = _run_day(of_day, every[0], before, f"{today}: ", of_day is every[-1])
    target = _root(e) / f"{e.name}.report"
    folders = {day: of_day.arm_folder("eval") for day, of_day in zip(days, every, strict=False)}
    results = [read_results(folder) for folder in folders.values()]
    write_report(target, results, f"{e.workdir}: each day on the next one, {days[1]} to {days[-1]}", folders)
    print(f"\n{short_text(results)}")
    return target


def _run_day(e: Experiment, first: Experiment, before: Experiment | None, told: str, exported: bool) -> Experiment:
    """Runs the stages of a day and returns the experiment that was trained."""
    for step in pipeline.data_stages(e):
        if step.name != "tokeniser" or before is None:
            pipeline.ensure(step, e, told)
    if e.vocabulary is not None:  # checkpoints fit one tokeniser: that of the first day
        tokenizer = str(first.folder("tokenizer") / "tokenizer.json")
        e = replace(e, vocabulary=None, text=replace(e.text, tokenizer=tokenizer))
    for step in pipeline.arm_stages(e):
        if step.name == "train" and before is not None:
            _drop_if_stale(e)
        wanted = {"export": exported, "bundle": False}
        if wanted.get(step.name, True):
            pipeline.ensure(step, e, told)
    return e


def _drop_if_stale(e: Experiment) -> None:
    """Discards a run that was begun from another model than that of the day before as it is now."""
    folder = e.arm_folder("train")
    if not e.train.fresh and began_otherwise(folder, start_identity(e)):
        discard(folder)


def main() -> None:
    """Runs the chain of the command line and prints a row a day."""
    given, argv = {}, [arg for arg in sys.argv[1:] if arg != KEEP_OPTIMISER]
    for name in ("--first", "--last"):
        given[name], argv = take_option(argv, name)
    e = from_command_line("chain", argv)
    days = days_of(e, given["--first"], given["--last"])
    report = run(e, days, KEEP_OPTIMISER in sys.argv)
    print(f"the long tables: {report / 'report.md'}")
    exported = _of_day(e, days[-2]).arm_folder("export")
    if exported.is_dir():  # the sparse model has no towers to hand over
        print(f"to serve: {exported}")
    print(f"next: python -m crops_jax.verify {_root(e)}")


if __name__ == "__main__":
    run_command(main)
