"""`python -m crops_jax.pipeline --configs FILE... [--section.field=value ...]`: the whole job, for one arm a file.

simulate -> mine -> test sets -> tokeniser -> (shards -> train -> encode -> index -> evaluate -> export -> bundle) for
each arm, with BM25 beside them -> one table. The arms share the data set: the first file gives it, and the others must
agree. A stage whose folder is whole and was made from the same inputs and config is kept, so a killed run goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from crops_jax import (
    build_index,
    bundle,
    encode,
    evaluate,
    export,
    mine,
    simulate_logs,
    train,
    write_records,
)
from crops_jax.artifacts.manifest import MANIFEST, is_current
from crops_jax.command_line import config_files, load_file, override, wants_help
from crops_jax.config import BM25_NAME, Experiment, differences
from crops_jax.errors import InputError, run_command
from crops_jax.generative.config import GeneratorConfig
from crops_jax.models.config import SparseMlpConfig
from crops_jax.progress import stage
from crops_jax.report.tables import short_text, write_report
from crops_jax.runs import dual_encoder, generator, item_ids
from crops_jax.runs.folder import began_otherwise, require_same_world, start_identity, start_of
from crops_jax.runs.trained import settings, trained_experiment

SHARED_SECTIONS = (
    "workdir", "world", "simulate", "theta", "mining", "simulated_llm", "held_out", "vocabulary", "vocabulary_of",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One step: what it writes, from what, with which settings, and the function that does it."""

    name: str
    target: Path
    kind: str
    config: Callable[[], Any]
    inputs: Mapping[str, Path]
    run: Callable[[Experiment], Any]
    begun_alike: Callable[[], bool] = lambda: True
    """Whether a run in its folder began from what there is now; `inputs` know only what has a manifest."""

    def is_current(self) -> bool:
        """Whether its folder need not be made again. A trained model is kept with the version that trained it."""
        kept = self.kind == "train"
        made = is_current(self.target, kind=self.kind, config=self.config(), inputs=self.inputs, any_version=kept)
        return made and self.begun_alike()


def train_stage(e: Experiment, inputs: Mapping[str, Path]) -> Stage:
    """The training of an arm of any kind, from `inputs` and the run that it starts from."""
    folder = e.arm_folder("train")
    return Stage("train", folder, "train", lambda: train.settings(e), {**inputs, **start_of(e)}, train.run,
                 lambda: not began_otherwise(folder, start_identity(e)))  # fmt: skip


def data_stages(e: Experiment) -> list[Stage]:
    """The stages that all arms share."""
    logs, mined = e.folder("logs"), e.folder("mined")
    stages = []
    if e.world is not None:  # else the logs are the platform's own
        made_from = simulate_logs.inputs(e)
        stages.append(Stage("simulate", logs, "logs", lambda: simulate_logs.settings(e), made_from, simulate_logs.run))
    stages += [
        Stage("mine", mined, "mined", lambda: mine.settings(e), {"logs": logs}, mine.run),
        Stage(
            "test sets", e.folder("testsets"), "testsets", lambda: mine.testset_settings(e), {"logs": logs},
            mine.run_testsets,
        ),
    ]  # fmt: skip
    if e.vocabulary is not None:
        target, config = e.folder("tokenizer"), lambda: write_records.tokenizer_settings(e)
        run_it = write_records.run_tokenizer
        stages.append(Stage("tokeniser", target, "tokenizer", config, {"logs": logs}, run_it))
    return stages


def generator_stages(e: Experiment) -> list[Stage]:
    """The stages of an arm that writes item ids: of another arm's vectors, on another arm's groups."""
    ids, found = (e.arm_folder(kind) for kind in ("item_ids", "eval"))
    return [
        Stage("item ids", ids, "item_ids", lambda: item_ids.settings(e), item_ids.inputs(e), item_ids.run),
        train_stage(e, generator.learned_from(e)),
        Stage("evaluate", found, "eval", lambda: evaluate.settings(e), evaluate.inputs(e), evaluate.run),
    ]  # fmt: skip


def arm_stages(e: Experiment) -> list[Stage]:
    """The stages of one arm."""
    if isinstance(e.suggest, GeneratorConfig):
        return generator_stages(e)
    logs = e.folder("logs")
    records, model, vectors, index, results, exported, served = (
        e.arm_folder(k) for k in ("records", "train", "embeddings", "index", "eval", "export", "bundle")
    )

    def trained() -> Any:
        return settings(trained_experiment(e))

    stages = [
        Stage("shards", records, "records", lambda: write_records.settings(e), write_records.inputs(e),
              write_records.run),
        train_stage(e, dual_encoder.learned_from(e)),
        Stage("encode", vectors, "embeddings", trained, {"train": model, "logs": logs}, encode.run),
        *([Stage("index", index, "index", lambda: build_index.settings(e), {"embeddings": vectors}, build_index.run)]
          if e.evaluate.scann else []),
        Stage("evaluate", results, "eval", lambda: evaluate.settings(e), evaluate.inputs(e), evaluate.run),
    ]  # fmt: skip
    if not isinstance(e.model.backbone, SparseMlpConfig):  # it reads hashed ids: no text tower to hand over
        stages += [
            Stage("export", exported, "export", lambda: export.settings(e), export.inputs(e), export.run),
            Stage("bundle", served, "bundle", lambda: bundle.settings(e), bundle.inputs(e), bundle.run),
        ]
    return stages


def run(arms: list[Experiment]) -> Path:
    """Runs every stage that is not current and returns the report folder."""
    first = arms[0]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise InputError(f"arms {', '.join(names)}", "names must differ")
    for arm in arms[1:]:
        if problems := differences(first, arm, SHARED_SECTIONS):
            raise InputError(f"arms {first.name!r} and {arm.name!r} do not share one data set", problems)
    _check_generators(arms)
    require_same_world(arms)
    for step in data_stages(first):
        ensure(step, first, "")
    bm25 = Stage("evaluate", evaluate.bm25_folder(first), "eval", lambda: evaluate.bm25_settings(first),
                 evaluate.bm25_inputs(first), evaluate.run_bm25)  # fmt: skip
    ensure(bm25, first, "BM25: ")
    for arm in arms:
        for step in arm_stages(arm):
            ensure(step, arm, f"{arm.title}: ")
    target = Path(first.workdir) / "report"
    folders = {BM25_NAME: evaluate.bm25_folder(first)} | {a.name: a.arm_folder("eval") for a in arms}
    results = [evaluate.read_results(folder) for folder in folders.values()]
    write_report(target, results, f"{first.workdir}: held-out test day", folders)
    print(f"\n{short_text(results)}")
    return target


def _check_generators(arms: list[Experiment]) -> None:
    """Raises InputError unless each arm that writes item ids comes after the arms whose vectors and groups it reads,
    and can be evaluated once it is trained.
    """
    before: set[str] = set()
    problems = []
    for arm in arms:
        if isinstance(arm.suggest, GeneratorConfig):
            needed = {"embeddings": arm.suggest.encoder, "records": arm.input.records_of or arm.name}
            problems += [
                f"{arm.name}: needs the {kind} of the arm {name!r}; name its file before"
                for kind, name in needed.items()
                if name not in before and not (arm.arm(kind, name) / MANIFEST).is_file()
            ]
            most = max(*arm.evaluate.cutoffs, arm.evaluate.ndcg_at)
            if arm.suggest.beams < most:
                problems.append(f"{arm.name}: suggest.beams: {arm.suggest.beams} finds no {most} items, which "
                                "evaluate.cutoffs and evaluate.ndcg_at ask for")  # fmt: skip
        else:
            before.add(arm.name)
    if problems:
        raise InputError("--configs", problems)


def ensure(step: Stage, experiment: Experiment, prefix: str) -> float:
    """Runs a stage unless its folder is whole and current, and returns the seconds that it took."""
    if step.is_current():
        print(f"-- {prefix}{step.name}: kept, {step.target} is whole and current", file=sys.stderr)
        return 0.0
    began = monotonic()
    with stage(f"{prefix}{step.name}"):
        step.run(experiment)
    return monotonic() - began


def _arms(argv: list[str]) -> list[Experiment]:
    files, flags = config_files(argv)
    if not files:
        if not wants_help(argv):
            raise InputError("usage", "python -m crops_jax.pipeline --configs FILE... [--section.field=value ...]")
        override(Experiment(), flags, "pipeline")  # prints its help and ends
    return [override(load_file(f), flags, "pipeline") for f in files]


def main() -> None:
    """Runs the whole job and prints the table, where everything lies, and what to try next."""
    arms = _arms(sys.argv[1:])
    report = run(arms)
    workdir = Path(arms[0].workdir)
    print(f"the long tables: {report / 'report.md'}")
    print(f"everything lies below {workdir}/: logs, mined, testsets, report; of each arm:")
    for arm in arms:
        print(f"  {arm.name}/ {', '.join(step.target.name for step in arm_stages(arm))}")
    if exported := [arm.arm_folder("export") for arm in arms if arm.arm_folder("export").is_dir()]:
        print(f"to serve: {exported[-1]}/query_tower and document_tower load in sentence-transformers")
        bundles = " ".join(str(arm.arm_folder("bundle")) for arm in arms[:2] if arm.arm_folder("bundle").is_dir())
        print(f"          python -m crops_jax.serve {bundles}")
    print(f"next: python -m crops_jax.verify {workdir}")


if __name__ == "__main__":
    run_command(main)
