"""The train folder: whose run lies in it, and whether a command may go on with that run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from crops_jax.artifacts import MANIFEST
from crops_jax.config import Experiment, differences, from_json, to_json
from crops_jax.errors import InputError

RUN = "run.json"
# What must not change between the runs that share a folder; length, logging and evaluation may,
FIXED_SECTIONS = ("labels", "text", "vocabulary", "input", "model", "loss", "optim", "seed")
# and within these sections what says how a result is computed, not which: another machine may need it otherwise.
FREE_FIELDS = ("input.prefetch", "model.remat", "model.attention_scores", "model.init_from")


def settings(experiment: Experiment) -> dict:
    """What a trained model depends on, besides the shards; `train.fresh` is an act, not a setting."""
    whole = to_json(replace(experiment, train=replace(experiment.train, fresh=False)))
    return {name: whole[name] for name in (*FIXED_SECTIONS, "validation", "train")}


def read_run(folder: Path) -> tuple[Experiment, dict[str, str]]:
    """(the experiment, what it was `made_of`) of the run in a train folder.

    Raises:
      InputError: run.json is missing, damaged, or of another version.
    """
    path = folder / RUN
    try:
        made_of = json.loads(path.read_text())
        config = made_of.pop("config")
    except FileNotFoundError:
        raise InputError(str(path), "is missing; run crops_jax.train first") from None
    except (ValueError, KeyError) as error:
        said = f"is damaged ({error}); put it back from a copy, or discard the run: --train.fresh=True, once"
        raise InputError(str(path), said) from None
    return from_json(config, str(path)), made_of


def continues(folder: Path, experiment: Experiment) -> bool:
    """Whether there is a run in the folder that this experiment goes on with, if it may, and does not discard."""
    if not (folder / RUN).is_file():
        return False
    return not experiment.train.fresh or _begun_by_this_command(folder, experiment)


def _begun_by_this_command(folder: Path, experiment: Experiment) -> bool:
    """Whether the run is an unfinished one of this very command: a scheduler starts it again with the same flags."""
    if (folder / MANIFEST).exists():
        return False
    try:
        return read_run(folder)[0] == experiment
    except InputError:
        return False


def open_folder(folder: Path, experiment: Experiment, made_of: dict[str, str]) -> None:
    """Makes the train folder, or checks that the run in it is this one.

    Raises:
      InputError: another run is in it; lists every field that differs. Nothing is changed then.
    """
    if continues(folder, experiment):
        _require_same_run(folder, experiment, made_of)
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # unsealed until the run is whole again
    part = folder / f".{RUN}.part"
    part.write_text(json.dumps({"config": to_json(experiment), **made_of}, indent=1) + "\n")
    part.replace(folder / RUN)  # a kill or a full disk leaves the old file or the new one


def _require_same_run(folder: Path, experiment: Experiment, made_of: dict[str, str]) -> None:
    earlier, earlier_made_of = read_run(folder)
    fixed = (*FIXED_SECTIONS, *(["validation"] if experiment.validation.select != "last" else []))
    problems = differences(earlier, experiment, fixed, FREE_FIELDS)
    problems += [
        f"the {name} changed since the run began" for name in made_of if earlier_made_of[name] != made_of[name]
    ]
    if problems:
        problems.append("give another --name or --workdir, or discard the earlier run: --train.fresh=True")
        raise InputError(f"{folder} holds a run of another config", problems)
