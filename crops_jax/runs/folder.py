"""The train folder: whose run lies in it, and whether a command may go on with that run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from crops_jax.artifacts.folders import lock
from crops_jax.artifacts.manifest import MANIFEST, digest_of_files, fingerprint, read_manifest
from crops_jax.baselines.config import NegativesConfig
from crops_jax.config import Experiment, differences, from_json, to_json
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.hub import local_path
from crops_jax.parallel import processes
from crops_jax.simulate.judged import COLLECTION, JudgedWorldConfig, collection_identity
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.training.checkpoint import sealed_steps

RUN = "run.json"
# What must not change between the runs that share a folder; length, logging and evaluation may,
FIXED_SECTIONS = (
    "labels", "text", "vocabulary", "vocabulary_of", "input", "model", "loss", "negatives", "suggest", "optim", "seed",
)  # fmt: skip
# and within these sections what says how a result is computed, not which: another machine may need it otherwise.
FREE_FIELDS = (
    "input.prefetch", "model.remat", "model.unroll", "model.attention", "model.attention_scores",
    "model.frozen.keep_states", "suggest.remat",
    "suggest.beam", "suggest.beam_requests", "suggest.known", "suggest.beams", "suggest.beam_queries",
)  # fmt: skip
# Of what a run was made of, what may lie elsewhere now: its fingerprint tells whether it is the same.
PLACES_OF = {"tokenizer": "text.tokenizer", "start": "model.init_from"}
# What may change of a simulated world: where its files lie; and, without another train day, the held-out days.
WORLD_FILES = ("world.collection", "simulate.calibration")
_SAME_WORLD = (*WORLD_FILES, "simulate.sessions.validation_sessions", "simulate.sessions.test_sessions")


def settings(experiment: Experiment) -> dict:
    """What a trained model depends on, besides the shards; `train.fresh` is an act, not a setting."""
    whole = to_json(replace(experiment, train=replace(experiment.train, fresh=False)))
    return {name: whole[name] for name in (*_fixed(experiment), "validation", "train")}


def _fixed(experiment: Experiment) -> tuple[str, ...]:
    """The sections that must not change; BM25's only where it finds the negatives."""
    of_bm25 = isinstance(experiment.negatives, NegativesConfig) and experiment.negatives.ranker == "bm25"
    return (*FIXED_SECTIONS, "bm25") if of_bm25 else FIXED_SECTIONS


def read_run(folder: Path) -> tuple[Experiment, dict[str, str]]:
    """(the experiment, what it was `made_of`) of the run in a train folder.

    Raises:
      InputError: run.json is missing, damaged, or of another version.
    """
    path = folder / RUN
    try:
        made_of = json.loads(path.read_text())
        config = dict(made_of.pop("config"))
    except FileNotFoundError:
        raise InputError(str(path), "is missing; run crops_jax.train first") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"is damaged ({error}); put it back from a copy, or discard the run: --train.fresh=True"
        raise InputError(str(path), said) from None
    try:
        return from_json(config, str(path)), made_of
    except InputError as error:
        mend = "another version wrote it: go on with that one, or discard the run: --train.fresh=True"
        raise InputError(error.place, [*error.problems, mend]) from None


def run_of(source: str | None) -> tuple[Path | None, int | None]:
    """(train folder, step) that `model.init_from` names; (None, None) where it is no run's."""
    folder = local_path(source or "")
    if source and (folder / RUN).is_file():
        return folder, None
    run = folder.parent.parent
    if folder.parent.name == "checkpoints" and folder.name.isdecimal() and (run / RUN).is_file():
        return run, int(folder.name)
    return None, None


def trains_dual_encoder(experiment: Experiment) -> bool:
    """Whether the run is one of a dual encoder, which starts from what `model.init_from` names."""
    return not isinstance(experiment.suggest, WriterConfig | GeneratorConfig)


def start_of(experiment: Experiment) -> dict[str, Path]:
    """{"start": the train folder of the finished run that the experiment starts from}; nothing where there is none."""
    match experiment.suggest:
        case GeneratorConfig():
            return {}
        case WriterConfig(start=name):
            folder = experiment.arm("train", name) if name else None
        case _:
            folder, _ = run_of(experiment.model.init_from)
    return {"start": folder} if folder is not None and (folder / MANIFEST).is_file() else {}


def start_identity(experiment: Experiment) -> dict[str, str]:
    """What the experiment starts from, for run.json: by `start` the checkpoints of a finished run, by `start_step` the
    one that `model.init_from` names, if it names one. They are the same however often that run's folder is sealed anew
    (by another version, or because its shards were). By `weights` the files of a local folder that is no run's, which
    may be written again in place. Nothing where there is none of these now.
    """
    found = {name: _checkpoints(folder) for name, folder in start_of(experiment).items()}
    if (pretrained := _pretrained(experiment)) is not None:
        found["weights"] = digest_of_files(pretrained, (".safetensors",))
    folder, step = run_of(experiment.model.init_from) if trains_dual_encoder(experiment) else (None, None)
    named = None if folder is None else folder / "checkpoints" / str(step)
    return found if named is None or not (named / MANIFEST).is_file() else found | {"start_step": fingerprint(named)}


def _pretrained(experiment: Experiment) -> Path | None:
    """The local folder of pre-trained weights that the run starts from; None where it starts from anything else."""
    match experiment.suggest:
        case GeneratorConfig():
            return None
        case WriterConfig(init_from=source):
            pass
        case _:
            source = experiment.model.init_from
    folder = local_path(source or "")
    return folder if source and folder.is_dir() and run_of(source) == (None, None) else None


def _checkpoints(folder: Path) -> str:
    files = [entry for entry in read_manifest(folder, "train")["files"] if entry["path"].startswith("checkpoints/")]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def trained_by(folder: Path, otherwise: str) -> str:
    """The version of the code that wrote the newest step of a train folder; `otherwise` where there is none."""
    try:
        return read_manifest(folder / "checkpoints" / str(sealed_steps(folder)[-1]), "checkpoint")["code_version"]
    except (IndexError, InputError):
        return otherwise


def began_otherwise(folder: Path, made_of: Mapping[str, str]) -> bool:
    """Whether the run in the folder was made of something else than this; what either does not know may be the same.

    Raises:
      InputError: as `read_run`.
    """
    return (folder / RUN).is_file() and bool(_changed(read_run(folder)[1], made_of))


def _changed(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of what both know and is not the same. Where the step that a run started from is known, what became of
    that other run since is nothing to it.
    """
    known = [name for name in now if name in earlier and not (name == "start" and "start_step" in earlier)]
    return [name for name in known if earlier[name] != now[name]]


def discard(folder: Path) -> None:
    """Removes a train folder, at once for whoever looks: after a kill there is no half of it at its place.

    Raises:
      InputError: as `held`.
    """
    gone = folder.with_name(f".{folder.name}.discarded")
    with held(folder):
        print(f"   {folder}: its run began from something else than what is there now; discarded", file=sys.stderr)
        shutil.rmtree(gone, ignore_errors=True)
        if folder.is_symlink() or folder.is_mount():
            _empty(folder)
            return
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def continues(folder: Path, experiment: Experiment, made_of: dict[str, str]) -> bool:
    """Whether the folder holds a run that this command would go on with rather than discard; not whether it may.

    With `train.fresh` that is an unfinished run of this very command on the same inputs: a scheduler starts it again
    with the same flags.
    """
    if not (folder / RUN).is_file():
        return False
    if not experiment.train.fresh:
        return True
    try:
        earlier, earlier_made_of = read_run(folder)
        return not (folder / MANIFEST).exists() and earlier == experiment and not _changed(earlier_made_of, made_of)
    except InputError:
        return False


def require_same_world(experiments: Iterable[Experiment]) -> None:
    """Raises InputError where one of these arms has a run that learned from another simulated world, or from its judged
    collection as it was: before the logs that it learned from are overwritten, and not after it.
    """
    problems = []
    for e in experiments:
        folder = e.arm_folder("train")
        if e.world is not None and not e.train.fresh and (folder / RUN).is_file():
            other = differences(read_run(folder)[0], e, ("world", "simulate"), _SAME_WORLD)
            problems += [f"{folder}: {field}" for field in other]
            if _collection_changed(e):
                problems.append(f"{folder}: the collection {e.world.collection} was made again, with other bytes")
    if problems:
        mend = "give another --workdir, or discard these runs: --train.fresh=True"
        raise InputError(
            "runs of another world are in this workdir, whose logs would be overwritten", [*problems, mend]
        )


def _collection_changed(experiment: Experiment) -> bool:
    """Whether the logs are of a judged collection that has other bytes now, as far as both are there."""
    world, logs = experiment.world, experiment.folder("logs")
    if not isinstance(world, JudgedWorldConfig) or not (logs / MANIFEST).is_file():
        return False
    before = read_manifest(logs)["counts"].get(COLLECTION)  # versions before 0.9.8 did not write it
    there = Path(world.collection, MANIFEST).is_file()
    return before is not None and there and before != collection_identity(world)


def check_folder(folder: Path, experiment: Experiment, made_of: dict[str, str]) -> None:
    """Whether a run may use the folder; changes nothing.

    Raises:
      InputError: another run is in it (lists every field that differs), or checkpoints of nobody knows which one; or
        its path has characters that Orbax takes for a pattern.
    """
    if found := sorted(set("[]*?") & set(str(folder.resolve()))):
        said = f"has {' '.join(found)} in its path, by which Orbax could not find its own files; give another --workdir"
        raise InputError(str(folder), said)
    if continues(folder, experiment, made_of):
        _require_same_run(folder, experiment, made_of)
    elif not experiment.train.fresh and any((folder / "checkpoints").glob(f"*/{MANIFEST}")):
        said = f"holds checkpoints, but no {RUN}; put it back from a copy, or discard them: --train.fresh=True"
        raise InputError(str(folder), said)


def open_folder(folder: Path, experiment: Experiment, made_of: dict[str, str]) -> None:
    """Makes the train folder, or goes on with the run in it, or empties it if `train.fresh` says so.

    Raises:
      InputError: as `check_folder`; or it cannot be emptied.
    """
    check_folder(folder, experiment, made_of)
    if continues(folder, experiment, made_of):
        made_of = read_run(folder)[1] | made_of  # what cannot be seen now stays known: a start that trains again, say
    elif experiment.train.fresh:
        _empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # unsealed until the run is whole again
    part = folder / f".{RUN}.part"
    part.write_text(json.dumps({"config": to_json(experiment), **made_of}, indent=1) + "\n")
    part.replace(folder / RUN)  # a kill or a full disk leaves the old file or the new one


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps the train folder, which is made, to the run of this command: two of them would take each other's steps for
    what a kill left, and remove them. The first process holds it for all; a kill lets it go.

    Raises:
      InputError: another command of this machine trains in it.
    """
    with ExitStack() as stack:
        processes.first(partial(_hold, folder, stack))
        yield


def _hold(folder: Path, stack: ExitStack) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, place)
    if not lock(place):
        raise InputError(str(folder), "another command trains in it now; wait for its end, or give another --name")


def _empty(folder: Path) -> None:
    """Removes what is in the folder, which may itself be a link or a mount."""
    try:
        (folder / RUN).unlink(missing_ok=True)  # first: without it nobody goes on with what a kill leaves here
        for path in folder.iterdir() if folder.exists() else ():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise InputError(str(folder), f"cannot be emptied ({error}); do it by hand, or give another --name") from None


def _require_same_run(folder: Path, experiment: Experiment, made_of: dict[str, str]) -> None:
    earlier, earlier_made_of = read_run(folder)
    fixed = (*_fixed(experiment), *(["validation"] if experiment.validation.select != "last" else []))
    moved = [field for name, field in PLACES_OF.items() if name in earlier_made_of and name in made_of]
    problems = differences(earlier, experiment, fixed, (*FREE_FIELDS, *moved))
    problems += [f"the {name} changed since the run began" for name in _changed(earlier_made_of, made_of)]
    before, now = earlier.train.steps, experiment.train.steps
    bend = experiment.optim.bend(before, now)
    done = max(sealed_steps(folder), default=0)
    if now < done:
        problems.append(f"train.steps: {now}, and the run has done {done}")
    if bend and now > before:
        problems.append(f"{bend} (a new run can be lengthened up to its optim.schedule_steps)")
    if experiment.negatives is not None and now != before:
        problems.append(f"train.steps: {before} -> {now}, which moves its rounds")
    if problems:
        problems.append("give another --workdir or --name, or discard the earlier run: --train.fresh=True")
        raise InputError(f"{folder} holds a run of another config", problems)
    if bend:
        print(f"warning: {bend}", file=sys.stderr)
