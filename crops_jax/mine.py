"""`python -m crops_jax.mine --config FILE`: logs -> candidates from seven sources, and the test sets.

Reads `logs`, writes `mined` (train day only) and `testsets` (test day only). `--day DAY` does so for another day of the
log folder, in `days/DAY`, where that day is the train day for every verb. P3 asks the endpoint of
`mining.world_knowledge.endpoint`; with `simulated_llm` set, a *simulated* language model is started to answer instead.
Where too many of its questions give no document, mining ends with exit code 2 and the good answers stay in the journal.

`--dry-run` mines nothing and sends nothing: it prints how many questions P3 would ask, and about how many tokens.
`--no-theta` loads no discriminator: where pairs have to be scored the command stops with exit code 75, for
`python -m crops_jax.score` to do it where the accelerators are, and the same command goes on after that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from crops_jax.artifacts.folders import unfinished, write_folder
from crops_jax.artifacts.manifest import fingerprint, is_current
from crops_jax.command_line import from_command_line, next_command, take_option
from crops_jax.config import SETS_OF_DAY, Experiment, theta_json, to_json
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.errors import InputError, Preempted, run_command
from crops_jax.handover.cards import CARD, data_card
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.logs.sealed import verify_tables
from crops_jax.logs.window import ensure_window
from crops_jax.mining import simulated_llm
from crops_jax.mining.config import MiningConfig
from crops_jax.mining.day import open_day
from crops_jax.mining.funnel import funnel_rows
from crops_jax.mining.knowledge_plan import plan_knowledge
from crops_jax.mining.leak_guard import HELD_OUT
from crops_jax.mining.relevance import Relevance, Unscored
from crops_jax.mining.testsets import SETS, HeldOutDay, build_testsets
from crops_jax.mining.train_day import mine
from crops_jax.mining.work import share_theta_cache, theta_cache
from crops_jax.mining.world_knowledge import check_config
from crops_jax.models.config import ThetaConfig

_DRY_RUN, _NO_THETA = "--dry-run", "--no-theta"
# What of `mining` the test sets depend on: how documents are written and rows are cut into parts is nothing to them.
_OF_TESTSETS = ("threshold", "query_level", "anonymous_users", "max_searches_per_user")


def settings(experiment: Experiment) -> dict:
    """What the mined candidates depend on, besides the logs."""
    mining = replace(experiment.mining, engine=EngineConfig())  # its memory and threads change nothing
    prompt = mining.world_knowledge.prompt
    own = {"prompt_sha256": fingerprint(prompt)} if prompt and Path(prompt).is_file() else {}
    return own | theta_json(experiment.theta) | {
        "simulated_llm": to_json(experiment.simulated_llm), "mining": to_json(mining),
    }  # fmt: skip


def testset_settings(experiment: Experiment) -> dict:
    """What the test sets depend on, besides the logs."""
    mining = to_json(experiment.mining)
    return theta_json(experiment.theta) | {
        "held_out": to_json(experiment.held_out), "sets": list(SETS),
        "mining": {name: mining[name] for name in _OF_TESTSETS},
    }  # fmt: skip


def of_day(experiment: Experiment, day: str) -> Experiment:
    """The experiment of one day out of many, in the folder days/DAY below the `workdir`.

    Its logs are a window on the whole log, as it is now: the day under the name train, and the held-out days. theta's
    values and the journal of P3 are shared with the other days.

    Raises:
      InputError: the logs hold no such day, or it is held out.
    """
    whole = _logs_with(experiment, day)
    logs, held = whole.root, whole.days()
    own = replace(experiment, workdir=str(Path(experiment.workdir) / "days" / day))
    target, names = own.folder("logs"), {day: "train"} | {name: name for name in HELD_OUT if name in held}
    ensure_window(logs, target, names, current=True)
    share_theta_cache(Path(experiment.workdir))
    experiment.mining.world_knowledge.share_journal(Path(experiment.workdir))
    return own


def _logs_with(experiment: Experiment, day: str) -> LogFolder:
    """The logs, which have to hold `day` as one to mine."""
    logs = open_logs(experiment.ready("logs"))
    days = [name for name in logs.days() if name not in HELD_OUT]
    if day not in days:
        raise InputError(f"--day {day}", f"{logs.root} holds no such day to mine; it has {', '.join(days)}")
    return logs


def run(experiment: Experiment, theta_here: bool = True) -> Path:
    """Mines the train day and returns the mined folder.

    Raises:
      Unscored: theta is not here, and pairs wait for it.
    """
    logs, target = experiment.ready("logs"), experiment.folder("mined")
    if experiment.mining.world_knowledge.enabled:
        check_config(experiment.mining.world_knowledge)  # not after hours of P1 and P2
    verify_tables(logs, experiment.mining.engine)  # most Parquet files know no checksum
    relevance = _discriminator(experiment.theta, theta_cache(Path(experiment.workdir))) if theta_here else None
    with (
        unfinished(target, {"logs": logs}, settings(experiment)) as work,
        write_folder(target, kind="mined", config=settings(experiment), inputs={"logs": logs}) as out,
        _language_model(experiment) as mining,
    ):
        journal = str(experiment.mining.world_knowledge.journal_in(Path(experiment.workdir)))
        mining = replace(mining, world_knowledge=replace(mining.world_knowledge, journal=journal))
        mine(logs, out, relevance, mining, work)
        card = data_card(out.counts, settings(experiment), fingerprint(logs))
        (out / CARD).write_text(card, encoding="utf-8")
    return target


def dry_run(experiment: Experiment, day: str = "train") -> list[str]:
    """What P3 would ask of a day, line by line; nothing is sent and no folder is written.

    Raises:
      InputError: the logs hold no such day, or it is held out.
    """
    logs = _logs_with(experiment, day)
    if not experiment.mining.world_knowledge.enabled:
        return ["P3 is switched off (mining.world_knowledge.enabled=False): nothing is asked"]
    with _language_model(experiment) as mining, open_engine(mining.engine, []) as engine:
        rows, words = open_day(engine, logs, day), mining.world_knowledge
        journal = words.journal_in(Path(experiment.workdir))
        return plan_knowledge(engine, funnel_rows(rows), rows.items, words, journal).lines(words)


def run_testsets(experiment: Experiment, day: HeldOutDay = "test", theta_here: bool = True) -> Path:
    """Builds CT, QR and the other held-out sets of the day and returns their folder.

    Raises:
      Unscored: as `run`.
    """
    logs, kind = experiment.ready("logs"), SETS_OF_DAY[day]
    target = experiment.folder(kind)
    verify_tables(logs, experiment.mining.engine)
    relevance = _discriminator(experiment.theta, theta_cache(Path(experiment.workdir))) if theta_here else None
    config = testset_settings(experiment)
    with (
        unfinished(target, {"logs": logs}, config) as work,
        write_folder(target, kind=kind, config=config, inputs={"logs": logs}) as out,
    ):
        build_testsets(logs, out, relevance, experiment.held_out, experiment.mining, day, work)
    return target


@cache
def _discriminator(config: ThetaConfig, kept: Path) -> Relevance:
    """One discriminator a process, whose values are kept in the folder `kept`."""
    from crops_jax.models import theta  # jax, which a log host may lack until here

    return theta.load(config, kept)


@contextmanager
def _language_model(experiment: Experiment) -> Iterator[MiningConfig]:
    """The mining config with the endpoint to ask: the configured one, or a simulated one started here."""
    mining = experiment.mining
    if experiment.simulated_llm is None or not mining.world_knowledge.enabled:
        yield mining
        return
    hidden = experiment.folder("logs") / "hidden_items.parquet"
    config, words = experiment.simulated_llm, mining.world_knowledge
    known = f"{config} {fingerprint(hidden)}"
    with simulated_llm.stand_in(
        hidden, config, words.endpoint, "language model", simulated_llm.MODEL, known
    ) as endpoint:
        yield replace(mining, world_knowledge=replace(words, endpoint=endpoint))


@contextmanager
def _noting(waiting: list[str]) -> Iterator[None]:
    """Notes what waits for theta, so that the other day's pairs are found too before the command stops."""
    try:
        yield
    except Unscored as left:
        waiting.append(str(left))


def main() -> None:
    """Mines for the experiment of the command line."""
    flags = {_DRY_RUN, _NO_THETA}.intersection(sys.argv[1:])
    day, argv = take_option([arg for arg in sys.argv[1:] if arg not in flags], "--day")
    experiment = from_command_line("mine", argv)
    if _DRY_RUN in flags:
        print("\n".join(["dry run, nothing is sent", *dry_run(experiment, day or "train")]))
        return
    own = experiment if day is None else of_day(experiment, day)
    theta_here, of_own = _NO_THETA not in flags, argv if day is None else [*argv, f"--workdir={own.workdir}"]
    waiting: list[str] = []
    with _noting(waiting):
        print(f"mined: {run(own, theta_here)}")
    with _noting(waiting):
        _print_testsets(own, theta_here)
    if waiting:
        then = next_command("score", of_own)
        raise Preempted(f"{'; '.join(waiting)}; next, where theta is: {then}, then this command again")
    print(f"next: {next_command('write_records', of_own)}")


def _print_testsets(experiment: Experiment, theta_here: bool) -> None:
    logs, target = experiment.folder("logs"), experiment.folder("testsets")
    config = testset_settings(experiment)
    if not (logs / "test").is_dir():
        print("no test sets: the logs hold no day test/, so nothing can be evaluated")
    # While the train day still waits for theta, sets that are current stay: made anew, their pairs would wait again.
    elif not theta_here and is_current(target, kind="testsets", config=config, inputs={"logs": logs}):
        print(f"test sets: {target}, which are current")
    else:
        print(f"test sets: {run_testsets(experiment, theta_here=theta_here)}")


if __name__ == "__main__":
    run_command(main)
