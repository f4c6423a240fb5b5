"""What a model card tells of an arm, from its manifests and those of the folders that it was made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.artifacts.manifest import MANIFEST, checked_file, fingerprint, read_manifest, was_made_from
from crops_jax.comparison.results import Column, columns
from crops_jax.comparison.statistics import estimate, mean_of_seeds
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.handover.cards import Measured, ModelFacts, train_day
from crops_jax.hub import is_hub_id
from crops_jax.models.config import BertConfig, Qwen2Config
from crops_jax.report.tables import several

_RESAMPLES = 1000


def model_facts(experiment: Experiment, trained: Experiment) -> ModelFacts:
    """The facts of an arm's trained model.

    The figures are those of every run of the same data set that differs in its seeds alone: the arm's own, and where
    there are more, their mean. There are none if the arm was not evaluated since it was trained.

    Args:
      trained: the experiment as its training run resolved it.
    """
    here = _made_of(experiment)
    counts = {name: read_manifest(place)["counts"] for name, place in here.items()}
    split = counts["records"]["splits"]["train"] if "records" in counts else {}
    evals = evals_of_seeds(experiment)
    source = trained.model.init_from
    return ModelFacts(
        title=experiment.title,
        day=train_day(here["logs"]) if "logs" in here else None,
        simulated=experiment.world is not None,
        architecture=_architecture(trained.model.backbone, trained.model.pooling),
        width=trained.model.backbone.width,
        query_tokens=trained.text.max_query_tokens,
        document_tokens=trained.text.max_doc_tokens,
        fields=trained.text.field_order,
        started_from="random weights" if source is None else source if is_hub_id(source) else Path(source).name,
        loss=type(trained.loss).__name__.removesuffix("Config"),
        steps=trained.train.steps,
        seed=trained.seed,
        sources={letter: trained.labels.levels[letter] for letter in trained.trained_sources()},
        mined=counts.get("mined", {}),
        groups=split.get("groups"),
        documents=split.get("documents"),
        widths=trained.model.widths,
        compact=json.loads(checked_file(evals[0], "results.json").read_text()).get("compact") if evals else None,
        measured=measured(evals) if evals else [],
        seeds=len(evals),
        hashes={name: fingerprint(place) for name, place in here.items()},
    )


def _made_of(experiment: Experiment) -> dict[str, Path]:
    """The folders behind the trained run, each only if it is still what the one before it was made from.

    A machine that exports may hold the run alone.
    """
    here = {"train": experiment.arm_folder("train")}
    for name, place, above in (("records", experiment.arm_folder("records"), "train"),
                               ("mined", experiment.folder("mined"), "records"),
                               ("logs", experiment.folder("logs"), "records")):  # fmt: skip
        if above in here and (place / MANIFEST).is_file() and was_made_from(here[above], name, place):
            here[name] = place
    return here


def evals_of_seeds(experiment: Experiment) -> list[Path]:
    """The eval folders of the arm and of the runs beside it that differ from it in seeds alone, learned from the same
    data and were asked the same; its own comes first. One of each seed.

    None where the arm itself was not evaluated since it was trained.
    """
    own = experiment.arm_folder("train")
    if (asked := _asked(own)) is None:
        return []
    others = sorted(path.parent for path in own.parent.parent.glob(f"*/{own.name}/{MANIFEST}"))
    config, learned = read_manifest(own, "train")["config"], _learned_from(experiment, own)
    found = {json.dumps(config): own}
    for train in others if learned is not None else ():
        other = read_manifest(train)["config"]
        if (_without_seeds(other) == _without_seeds(config) and _asked(train) == asked
                and _learned_from(experiment, train) == learned):  # fmt: skip
            found.setdefault(json.dumps(other), train)
    return [train.with_name("eval") for train in found.values()]


def _learned_from(experiment: Experiment, train: Path) -> dict[str, Any] | None:
    """What the groups of a run beside the arm's were made of, and how, but for seeds; None where its shards are not
    there any more.
    """
    run = read_manifest(train, "train")
    of = run["config"].get("input", {}).get("records_of")
    records = experiment.arm("records", of) if of else train.with_name("records")
    if not (records / MANIFEST).is_file() or not was_made_from(train, "records", records):
        return None
    made = read_manifest(records, "records")
    hashes = {name: entry["sha256"] for name, entry in made["inputs"].items()}
    return {
        "inputs": hashes,
        "config": _without_seeds(made["config"]),
        "mined": run["inputs"].get("mined", {}).get("sha256"),
    }


def measured(folders: Sequence[Path]) -> list[Measured]:
    """The benchmark's columns; of several seeds their mean, event by event.

    Args:
      folders: an eval folder a seed.

    Raises:
      InputError: the seeds were evaluated on different events.
    """
    said = json.loads(checked_file(folders[0], "results.json").read_text())
    tables = [pq.read_table(checked_file(folder, "per_query.parquet")) for folder in folders]
    found = []
    for column in columns(said["cutoffs"], said["ndcg_at"]):
        parts = [_of(table, column) for table in tables]
        if (made := estimate(mean_of_seeds([values for _, values in parts]), parts[0][0], _RESAMPLES)) is not None:
            found.append(Measured(column.title, made.value, made.low, made.high, made.queries))
    return found


def _of(table: pa.Table, column: Column) -> tuple[np.ndarray, np.ndarray]:
    rows = table.filter(pc.and_(pc.equal(table["set"], column.set), pc.equal(table["metric"], column.metric)))
    return rows["query"].to_numpy(), rows["value"].fill_null(np.nan).to_numpy()


def _asked(train: Path) -> dict[str, Any] | None:
    """What a run was evaluated on, and how; None where it was not, since it was trained."""
    try:
        made = read_manifest(train.with_name("eval"), "eval")
        if made["inputs"]["train"]["sha256"] != fingerprint(train):
            return None
    except InputError:
        return None
    on = {name: made["inputs"][name]["sha256"] for name in ("logs", "testsets") if name in made["inputs"]}
    return on | {"evaluate": (made["config"] or {}).get("evaluate")}


def _without_seeds(config: Any) -> Any:
    if isinstance(config, dict):
        return {name: _without_seeds(value) for name, value in config.items() if name != "seed"}
    return config


def _architecture(backbone: Any, pooling: str) -> str:
    match backbone:
        case Qwen2Config(causal=causal):
            attention = "causal" if causal else "bidirectional"
            return f"A Qwen2, {_shape(backbone)}, {attention}, {pooling} pooling"
        case BertConfig():
            return f"A BERT, {_shape(backbone)}, {pooling} pooling"
    return type(backbone).__name__


def _shape(backbone: Qwen2Config | BertConfig) -> str:
    return f"{several(backbone.layers, 'layer')} of width {backbone.width}"
