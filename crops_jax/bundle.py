"""`python -m crops_jax.bundle --config FILE`: one folder of the arm that `python -m crops_jax.serve` starts from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import MANIFEST, require_made_from, verify, was_made_from
from crops_jax.command_line import from_command_line
from crops_jax.config import Experiment
from crops_jax.errors import InputError, run_command
from crops_jax.handover.bundle import write_parts
from crops_jax.handover.evidence import write_evidence
from crops_jax.progress import stage
from crops_jax.records.origin import mined_identity, require_shards_of
from crops_jax.runs.folder import read_run
from crops_jax.runs.trained import trained_experiment


def settings(experiment: Experiment) -> dict[str, Any]:
    """What a server reads of the arm: its title, and which sources it trained on, at which labels."""
    trained = trained_experiment(experiment)
    return {
        "title": experiment.title,
        "sources": list(trained.trained_sources()),
        "levels": dict(trained.labels.levels),
        "evidence": experiment.handover.evidence,
    }


def inputs(experiment: Experiment) -> dict[str, Path]:
    """The folders that a bundle is made from; the index only where one was built, and is wanted."""
    own = {kind: experiment.arm_folder(kind) for kind in ("export", "embeddings", "eval")}
    index = experiment.arm_folder("index")
    with_index = {"index": index} if experiment.evaluate.scann and (index / MANIFEST).is_file() else {}
    shared = ("logs", *(["mined"] if experiment.handover.evidence else []))
    return own | with_index | {kind: experiment.folder(kind) for kind in shared}


def run(experiment: Experiment) -> Path:
    """Puts the arm's bundle together and returns its folder.

    Raises:
      InputError: a part is missing, damaged, or was made from another training run, corpus or mining.
    """
    experiment.require_search()
    made_from = inputs(experiment)
    for kind in made_from:
        experiment.ready(kind)
    train = experiment.ready("train")
    for kind, verb in (("export", "export"), ("embeddings", "encode"), ("eval", "evaluate")):
        require_made_from(made_from[kind], "train", train, f"python -m crops_jax.{verb} --config FILE")
    if "index" in made_from:
        mend = "python -m crops_jax.build_index --config FILE"
        require_made_from(made_from["index"], "embeddings", made_from["embeddings"], mend)
    require_made_from(made_from["embeddings"], "logs", made_from["logs"], "python -m crops_jax.encode --config FILE")
    for name in ("embeddings", "logs"):  # it was measured in this corpus
        require_made_from(made_from["eval"], name, made_from[name], "python -m crops_jax.evaluate --config FILE")
    if "mined" in made_from:
        _require_trained_on(experiment, *experiment.ready_mined())
    target = experiment.arm_folder("bundle")
    with write_folder(target, kind="bundle", config=settings(experiment), inputs=made_from) as out:
        write_parts(out, made_from)
        if experiment.handover.evidence:
            verify(made_from["mined"])
            with stage("training evidence"):
                write_evidence(made_from["logs"], made_from["mined"], out, experiment.mining)
    return target


def _require_trained_on(experiment: Experiment, logs: Path, mined: Path) -> None:
    """Raises InputError where the model learned from another mining: the evidence is what training knew."""
    train, records = experiment.ready("train"), experiment.arm_folder("records")
    mend = "mine as it was, train on this (write_records, train, encode, evaluate), or give --handover.evidence=False"
    _, made_of = read_run(train)
    if made_of.get("candidates", now := mined_identity(logs, mined)["candidates"]) != now:
        raise InputError(str(train), f"was trained on another {mined}; {mend}")
    if (records / MANIFEST).is_file() and was_made_from(train, "records", records):
        require_shards_of(records, logs, mined, mend)
    elif "candidates" not in made_of:
        said = "it cannot be told whether it learned from what is the evidence now"
        print(f"note: the shards of {train} are not at {records}: {said}", file=sys.stderr)


def main() -> None:
    """Puts together the bundle of the experiment of the command line."""
    print(f"bundle: {(folder := run(from_command_line('bundle')))}\nnext: python -m crops_jax.serve {folder}")


if __name__ == "__main__":
    run_command(main)
