"""`python -m crops_jax.suggest --configs FILE... [--seeds 0,1,2] [--section.field=value ...]`: query suggestion.

Logs -> what is mined of suggestions -> test set -> each arm (records, training, suggestions for the test day, export),
beside what stands today (popular and personal completions, the cascade) -> one page. An arm that another one needs
comes before it. What is whole and current is kept, so a killed job goes on. `--until records` stops before training,
which `python -m crops_jax.train --config FILE` then does on the machines that have the accelerators.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from crops_jax import simulate_logs, write_records
from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import MANIFEST, read_manifest, was_made_from
from crops_jax.command_line import config_files, load_file, numbers, override, take_option, wants_help
from crops_jax.comparison.html import machine
from crops_jax.comparison.suggestion_page import Answers, write_suggestion_page
from crops_jax.config import Experiment, differences, to_json
from crops_jax.errors import InputError, run_command
from crops_jax.generative.config import GeneratorConfig
from crops_jax.pipeline import Stage, ensure, train_stage
from crops_jax.runs import suggestion_folders as folders
from crops_jax.runs.suggestions import aligned_encoder, index_folder
from crops_jax.suggestions.answers import ANSWERS, read_answers, write_answers
from crops_jax.suggestions.arms import AlignedEncoderConfig, WriterConfig
from crops_jax.suggestions.cascade import NothingToRankBy, train_cascade
from crops_jax.suggestions.completion import PersonalCompletions, PopularCompletions
from crops_jax.suggestions.config import CascadeConfig
from crops_jax.suggestions.nearest import nearest_queries
from crops_jax.suggestions.searched import dictionary, read_searched
from crops_jax.suggestions.suggester import SHOWN, Suggester
from crops_jax.suggestions.testset import KIND as TEST_KIND
from crops_jax.suggestions.testset import read_suggestion_testset

USAGE = (
    "python -m crops_jax.suggest --configs FILE... [--seeds 0,1,2] [--until records | --until train] "
    "[--section.field=value ...]"
)
SHARED_SECTIONS = ("workdir", "world", "simulate", "suggest_mining", "suggest_test", "vocabulary", "vocabulary_of")
_BASELINES, _REPORT = "baselines", "suggestion_report"  # folders beside the arms' own
_POPULAR, _PERSONAL, _CASCADE = _TITLES = "Popular completions", "Personal completions", "Cascade"  # of baselines


def data_stages(e: Experiment) -> Iterator[Stage]:
    """The stages that all arms share."""
    logs = e.folder("logs")
    made_from = {"logs": logs}
    if e.world is not None:  # else the logs are the platform's own
        settings = partial(simulate_logs.settings, e)
        yield Stage("simulate", logs, "logs", settings, simulate_logs.inputs(e), simulate_logs.run)
    target, settings = e.folder("mined_suggestions"), partial(folders.mining_settings, e)
    yield Stage("mine suggestions", target, target.name, settings, made_from, folders.run_mining)
    target, settings = e.folder("suggestion_testset"), partial(folders.test_settings, e)
    yield Stage("test set of suggestions", target, TEST_KIND, settings, made_from, folders.run_testset)
    if e.vocabulary is not None:
        target, settings = e.folder("tokenizer"), partial(write_records.tokenizer_settings, e)
        yield Stage("tokeniser", target, target.name, settings, made_from, write_records.run_tokenizer)


def arm_stages(e: Experiment) -> Iterator[Stage]:
    """The stages of one arm."""
    records = e.arm_folder("records")
    if isinstance(e.suggest, WriterConfig) and e.suggest.encoder:
        target, settings = index_folder(e), partial(folders.index_settings, e)
        yield Stage("semantic index", target, target.name, settings, folders.index_inputs(e), folders.run_index)
    settings = partial(folders.record_settings, e)
    yield Stage("records", records, "records", settings, folders.record_inputs(e), folders.run_records)
    yield train_stage(e, {"records": records})
    if isinstance(e.suggest, WriterConfig):
        settings, asked = partial(folders.answer_settings, e), folders.answer_inputs(e)
        yield Stage("suggest", e.arm_folder("eval"), ANSWERS, settings, asked, folders.run_answers)
        yield Stage("export", e.arm_folder("export"), "export", settings, asked, folders.run_export)


def run(arms: Sequence[Experiment], seeds: Sequence[int], command: str, last: str | None = None) -> Path | None:
    """Runs every stage that is not current and returns the folder of the page; None where `last` ends it before."""
    first = arms[0]
    _check(arms, seeds)
    for step in data_stages(first):
        ensure(step, first, "")
    _require_current(arms, seeds)
    every = [(arm, of_seed(arm, seed)) for n, seed in enumerate(seeds) for arm in arms
             if n == 0 or isinstance(arm.suggest, WriterConfig)]  # fmt: skip
    for _, e in every:
        for step in arm_stages(e):
            ensure(step, e, f"{e.name}: ")
            if step.name == last and e is every[-1][1]:
                return None
    left_out: dict[str, str] = {}
    baselines = list(_baselines(arms, left_out))
    answers = [Answers(title, "baseline", [found], ms, about) for title, (found, ms), about in baselines]
    writers = [arm for arm in arms if isinstance(arm.suggest, WriterConfig)]
    main_arm = next((arm for arm in writers if arm.suggest.rwr is not None), writers[0] if writers else None)
    for arm in writers:
        found = [read_answers(e.arm_folder("eval")) for of, e in every if of is arm]
        took = statistics.median(ms for _, ms in found)
        by_seed, about = [suggestions for suggestions, _ in found], _unwritable(next(e for of, e in every if of is arm))
        answers.append(Answers(arm.title, "arm", by_seed, took, about, arm is main_arm))
    target = Path(first.workdir) / _REPORT
    made_from = {"testset": first.folder("suggestion_testset")}
    with write_folder(target, kind=_REPORT, inputs=made_from) as out:
        test = read_suggestion_testset(first.ready("suggestion_testset"))
        write_suggestion_page(answers, test, command, machine(), out, left_out)
    return target


def _unwritable(arm: Experiment) -> str:
    """What the page says of known queries that a trained arm cannot write; nothing where it can write all."""
    counts = read_manifest(arm.arm_folder("eval"), ANSWERS)["counts"]
    cannot = counts.get("known_too_long", 0) + counts.get("known_of_equal_tokens", 0)
    if not cannot:
        return ""
    return (f"of {counts['known']:,} known queries it cannot write {cannot:,}: {counts['known_too_long']:,} are too "
            f"long (suggest.max_query_tokens), {counts['known_of_equal_tokens']:,} have another's tokens")  # fmt: skip


def of_seed(arm: Experiment, seed: int) -> Experiment:
    """An arm trained with a seed, in a folder of its own where that is not its config's; encoders stay as they are."""
    if seed == arm.seed or not isinstance(arm.suggest, WriterConfig):
        return arm

    def named(name: str) -> str:
        return f"{name}_seed{seed}" if name else ""

    config = replace(arm.suggest, start=named(arm.suggest.start))
    return replace(
        arm, name=named(arm.name), seed=seed, suggest=config, input=replace(arm.input, seed=arm.input.seed + seed)
    )


def _check(arms: Sequence[Experiment], seeds: Sequence[int]) -> None:
    """Raises InputError unless the arms share one data set and writers one seed, and each comes after what it needs."""
    first, before, ids = arms[0], set(), {}
    titles = {*_TITLES}
    problems = []
    for arm in arms:
        problems += [f"{arm.name}: {problem}" for problem in differences(first, arm, SHARED_SECTIONS)]
        if arm.suggest is None:
            problems.append(f"{arm.name}: trains a dual encoder for search (suggest is none); that is `pipeline`")
        if isinstance(arm.suggest, GeneratorConfig):
            problems.append(f"{arm.name}: writes item ids for search; that is `pipeline`")
        if arm.name in before or arm.name in {_BASELINES, _REPORT}:
            problems.append(f"{arm.name}: is the name of another arm or of a folder that all share")
        if arm.title in titles:
            problems.append(f"{arm.name}: {arm.title!r} is the title of another row; give it one of its own")
        titles.add(arm.title)
        if isinstance(arm.suggest, WriterConfig):
            problems += _wrong_roles(arm, arms)
            if arm.suggest.start != arm.name:  # that is told, and no file would mend it
                needed = _elsewhere(arm, before, seeds)
                missing = [name for name in needed if not (arm.arm("train", name) / MANIFEST).is_file()]
                problems += [f"{arm.name}: needs the arm {name!r}; name its file before" for name in missing]
            if arm.suggest.beam.suggestions < SHOWN:
                few = f"suggest.beam.suggestions = {arm.suggest.beam.suggestions}"
                problems.append(f"{arm.name}: {few}: the page compares lists of {SHOWN}")
            if arm.suggest.encoder and ids.setdefault(arm.suggest.encoder, arm.suggest.ids) != arm.suggest.ids:
                problems.append(
                    f"{arm.name}: codes the queries of {arm.suggest.encoder!r} in another way (suggest.ids)"
                )
        before.add(arm.name)
    seeds = {arm.name: arm.seed for arm in arms if isinstance(arm.suggest, WriterConfig)}
    if len({*seeds.values()}) > 1:
        told = ", ".join(f"{name} {seed}" for name, seed in seeds.items())
        problems.append(f"writers of different seeds ({told}): give them one, and name several with --seeds")
    if problems:
        raise InputError("--configs", problems)


def _wrong_roles(writer: Experiment, arms: Sequence[Experiment]) -> Iterator[str]:
    """What a writer is said to start from, or to read queries with, that cannot be that."""
    of = {arm.name: arm.suggest for arm in arms}
    start, encoder = of.get(writer.suggest.start), of.get(writer.suggest.encoder)
    if writer.suggest.start == writer.name:
        yield f"{writer.name}: suggest.start is the arm itself"
    elif start is not None and not isinstance(start, WriterConfig):
        yield f"{writer.name}: suggest.start is {writer.suggest.start!r}, which is no writer"
    if encoder is not None and not isinstance(encoder, AlignedEncoderConfig):
        yield f"{writer.name}: suggest.encoder is {writer.suggest.encoder!r}, which aligns no encoder"


def _elsewhere(arm: Experiment, before: Collection[str], seeds: Sequence[int]) -> list[str]:
    """The arms that a writer needs and that are not trained here, before it; an encoder needs none."""
    if not isinstance(arm.suggest, WriterConfig):
        return []
    needed = [arm.suggest.encoder]
    if arm.suggest.start not in before:  # else it is trained with the same seeds
        needed += [of_seed(arm, seed).suggest.start for seed in seeds]
    return [name for name in dict.fromkeys(needed) if name and name not in before]


def _require_current(arms: Sequence[Experiment], seeds: Sequence[int]) -> None:
    """Raises InputError where an arm that is needed and not trained here learned from another day than is mined now."""
    here, problems = {arm.name for arm in arms}, []
    for arm in arms:
        for name in _elsewhere(arm, here, seeds):
            trained, records = arm.arm("train", name), arm.arm("records", name)
            if (records / MANIFEST).is_file() and not (
                was_made_from(trained, "records", records)
                and was_made_from(records, "mined", arm.folder("mined_suggestions"))
            ):
                problems.append(f"{arm.name}: the arm {name!r} learned from another mined day; name its file before")
    if problems:
        raise InputError("--configs", problems)


def _baselines(
    arms: Sequence[Experiment], left_out: dict[str, str]
) -> Iterator[tuple[str, tuple[list[list[str]], float], str]]:
    """(title, answers, what it is) of what stands today; the cascade needs an aligned encoder among the arms.

    What a log is too small for goes into `left_out`, with why.
    """
    first = arms[0]
    logs, mined = first.ready("logs"), first.ready("mined_suggestions")
    aligned = next((arm for arm in arms if isinstance(arm.suggest, AlignedEncoderConfig)), None)
    made_from = {"mined": mined, "testset": first.ready("suggestion_testset")}
    test = read_suggestion_testset(made_from["testset"])

    def answered(name: str, make: Callable[[], Suggester], config: Any, inputs: Mapping[str, Path]) -> Any:
        target = Path(first.workdir) / _BASELINES / name

        def answer(_: Experiment) -> None:
            with write_folder(target, kind=ANSWERS, config=config, inputs=inputs) as out:
                write_answers(make(), test, out)

        ensure(Stage("suggest", target, ANSWERS, lambda: config, inputs, answer), first, f"{name}: ")
        return read_answers(target)

    searched = read_searched(mined)
    yield (_POPULAR, answered("popular", lambda: PopularCompletions(searched), None, made_from),
           "the queries that begin with the prefix, by how often they were searched on the train day")  # fmt: skip
    yield (_PERSONAL, answered("personal", lambda: PersonalCompletions(searched), None, made_from),
           "the user's own queries first, then the popular ones")  # fmt: skip
    if aligned is None:
        return
    config = CascadeConfig()

    def cascade() -> Suggester:
        encoder = aligned_encoder(first, aligned.name)
        near = nearest_queries(dictionary(searched), encoder.queries)
        return train_cascade(logs, mined, first.suggest_mining, config, near, encoder.prefixes)

    inputs = {**made_from, "encoder": aligned.arm_folder("train")}
    try:
        found = answered("cascade", cascade, to_json(config), inputs)
    except NothingToRankBy as error:
        left_out[_CASCADE] = "; ".join(error.problems)
        print(f"note: the page has no cascade: {error}", file=sys.stderr)
        return
    yield _CASCADE, found, "popular, own and nearest queries are recalled, and gradient-boosted trees rank them"


def _arms(argv: list[str]) -> tuple[list[Experiment], list[int], str | None]:
    if wants_help(argv):
        override(Experiment(), config_files(argv)[1], "suggest")  # prints its help and ends
    seeds, argv = take_option(argv, "--seeds")
    last, argv = take_option(argv, "--until")
    if last not in (None, "records", "train"):
        raise InputError(f"--until {last}", "is neither records nor train")
    files, flags = config_files(argv)
    if not files:
        raise InputError("usage", USAGE)
    arms = _with_flags([load_file(file) for file in files], flags)
    own = next((arm.seed for arm in arms if isinstance(arm.suggest, WriterConfig)), arms[0].seed)
    chosen = list(numbers("--seeds", seeds, int)) if seeds else [own]
    if len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise InputError("--seeds", f"{seeds}: none twice, and none below zero")
    return arms, chosen, last


def _with_flags(arms: Sequence[Experiment], argv: Sequence[str]) -> list[Experiment]:
    """The arms with the flags of those fields that they have: a flag of writers is none of the encoder."""
    flags: list[str] = []
    for arg in argv:  # a value may stand beside its flag
        if arg.startswith("--") or not flags:
            flags.append(arg)
        else:
            flags[-1] += f"={arg}"
    own = [[flag for flag in flags if _has(arm, flag)] for arm in arms]
    nobodys = [flag for flag in flags if not any(flag in of_arm for of_arm in own)]
    return [override(arm, [*of_arm, *nobodys], "suggest") for arm, of_arm in zip(arms, own, strict=True)]


def _has(arm: Experiment, flag: str) -> bool:
    """Whether an arm has the field of a flag, if it is one below `suggest`."""
    value: Any = arm
    names = flag.split("=", 1)[0].removeprefix("--").replace("-", "_").split(".")
    for name in names if names[0] == "suggest" else ():
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def main() -> None:
    """Runs the job of the command line and prints the table."""
    arms, seeds, last = _arms(sys.argv[1:])
    report = run(arms, seeds, f"python -m crops_jax.suggest {shlex.join(sys.argv[1:])}", last)
    if report is None:
        print(f"{last}: {arms[-1].arm_folder(last)}")
        print("next: " + ("python -m crops_jax.train --config FILE, then " if last == "records" else "")
              + "this again without --until")  # fmt: skip
        return
    print((report / "results.md").read_text(encoding="utf-8"))
    print(f"the page: {report / 'suggestions.html'}")
    if written := [arm.arm_folder("export") for arm in arms if isinstance(arm.suggest, WriterConfig)]:
        print(f"to serve: {written[-1]}/writer loads in transformers (BartForConditionalGeneration)")


if __name__ == "__main__":
    run_command(main)
