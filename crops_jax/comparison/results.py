"""From the eval folders of a world's arms to its figures: means, intervals, differences, how the arms were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from crops_jax.artifacts.manifest import checked_file, read_manifest
from crops_jax.comparison.config import Comparison
from crops_jax.comparison.methods import METHODS, PRINTED, is_baseline
from crops_jax.comparison.statistics import difference, estimate, mean_of_seeds, told
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.retrieval.testset_metrics import by_split
from crops_jax.simulate.judged import JudgedWorldConfig
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.training.metric_writers import read_metrics

_BySeed = dict[str, dict[str, list[np.ndarray]]]  # method -> title of a column -> of each seed, its value by event
_SETS = {
    "CT": "CT", "QR": "QR", "unexposed": "never exposed", "ranked": "Ratio_rank", "shown": "Ratio_show",
    "judgments": "NDCG",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One metric of the per-query tables."""

    title: str
    set: str
    metric: str


def columns(cutoffs: Sequence[int], ndcg_at: int) -> list[Column]:
    """The columns of the benchmark: recall at every cutoff on CT and QR, at the largest on the other sets, NDCG."""
    most = max(cutoffs)
    recall = [Column(f"{name}@{k}", name, f"recall@{k}") for name in ("CT", "QR") for k in sorted(cutoffs)]
    rest = [Column(f"{_SETS[name]}@{most}", name, f"recall@{most}") for name in ("unexposed", "ranked", "shown")]
    return [*recall, *rest, Column(f"NDCG@{ndcg_at}", "judgments", f"ndcg@{ndcg_at} judged")]


def validation_score(results: Mapping[str, Any]) -> float:
    """By which settings are chosen: the mean of Recall@K on CT and QR of the validation day, at the largest K."""
    most = str(max(results["cutoffs"]))
    values = [results["recall"][name]["all"][most]["value"] for name in ("CT", "QR")]
    return float(np.mean([value for value in values if value is not None]))  # QR is empty where users have no names


@dataclass
class Row:
    """A method and its arms, one a seed."""

    name: str
    title: str
    folders: list[Path]  # of results on the test day
    made: dict[str, Any]  # how it was trained


@dataclass
class World:
    """What was run on one world."""

    comparison: Comparison
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """A sentence for each method whose training diverged, for the page."""

    def add(self, name: str, title: str, folders: Sequence[Path], made: dict[str, Any]) -> None:
        """Notes a method with the eval folders of its seeds."""
        self.rows.append(Row(name, title, list(folders), made))


def trained(chains: Sequence[Sequence[Experiment]]) -> dict[str, Any]:
    """How a method was trained: steps, seconds, documents, tau by step, of the first seed's run of runs; and by which
    versions of the code, of all. The last run of a chain is the method's own.
    """
    lines = [_metrics(e) for e in chains[0]]
    seconds = sum(_seconds(part) for part in lines)
    last = lines[-1][-1]
    taus = [[line["step"], line["tau"]] for line in lines[-1] if "tau" in line]
    # Batches are packed: one holds more than another. ADORE's steps encode no documents, and count none.
    counts = [[v for k, v in line.items() if k.startswith("count_label_")] for line in lines[-1]]
    return {
        "steps": sum(part[-1]["step"] for part in lines),
        "train_seconds": round(seconds, 1),
        "documents_a_step": round(float(np.mean([sum(c) for c in counts]))) if any(counts) else None,
        "tau": taus,
        "cosine_by_label": {k[-1]: last[k] for k in sorted(last) if k.startswith("cosine_label_")},
        "trained_by": sorted({read_manifest(e.arm_folder("train"))["code_version"] for chain in chains for e in chain}),
    }


def _metrics(e: Experiment) -> list[dict[str, Any]]:
    return read_metrics(e.arm_folder("train") / "metrics.jsonl")


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Wall time of the steps, without compiling, saving and what lies between rounds."""
    steps = np.diff([0, *(line["step"] for line in lines)])
    return float(sum(n * line["step_s"] for n, line in zip(steps, lines, strict=True)))


def world_results(world: World) -> dict[str, Any]:
    """The JSON-able figures of a world.

    Raises:
      InputError: two arms were evaluated on different events.
    """
    c = world.comparison
    config = c.dense.evaluate
    tables = {row.name: [_PerQuery.read(folder) for folder in row.folders] for row in world.rows}
    first = next(iter(tables.values()))[0]
    # A world may have no judgments, production may have shown all that is relevant, and nobody may reword a query.
    every = columns(config.cutoffs, config.ndcg_at)
    wanted = [col for col in every if first.has(col)]
    empty = dict.fromkeys(_SETS[col.set] for col in every if col not in wanted)
    by_seed: _BySeed = {}
    for row in world.rows:
        for part, folder in zip(tables[row.name], row.folders, strict=True):
            part.require_same_events(first, folder)
        by_seed[row.name] = {col.title: [part.values(col) for part in tables[row.name]] for col in wanted}
    without = [col for col in wanted if col.set == "judgments"
               and all(_is_ideal(of_seed) for own in by_seed.values() for of_seed in own[col.title])]  # fmt: skip
    wanted = [col for col in wanted if col not in without]
    best = _best_baseline(world.rows)
    others = {"best baseline": best, METHODS[PRINTED].title: PRINTED}
    rows = [{"name": row.name, "title": row.title, "made": row.made,
             **_figures(row.name, by_seed, wanted, first, others, c.resamples)} for row in world.rows]  # fmt: skip
    return {
        "title": c.title,
        "about": " ".join([c.about, _setup(c.dense), *(f"{name}: nothing to count, so no column." for name in empty)]),
        "columns": [col.title for col in wanted],
        "without": [col.title for col in without],
        "headline": [col.title for col in wanted if _is_headline(col, max(config.cutoffs))],
        "seeds": list(c.seeds),
        "learning_rates": list(c.learning_rates),
        "resamples": c.resamples,
        "best_baseline": best,
        "rows": rows,
    }


def _figures(
    name: str,
    by_seed: _BySeed,
    wanted: Sequence[Column],
    events: _PerQuery,
    others: Mapping[str, str | None],
    resamples: int,
) -> dict[str, Any]:
    """A method's metrics with intervals, its means by seed, and its differences from other methods.

    Args:
      others: how a method that this one is compared with is called -> its name; those that are not here are left out.
    """
    own = by_seed[name]

    def against(other: str) -> dict[str, Any]:
        return {col.title: told(difference(own[col.title], by_seed[other][col.title], events.queries(col), resamples))
                for col in wanted}  # fmt: skip

    means = {col: mean_of_seeds(own[col.title]) for col in wanted}
    return {
        "metrics": {
            col.title: {
                split: told(estimate(mean[chosen], events.queries(col)[chosen], resamples))
                for split, chosen in by_split(events.seen(col)).items()
            }
            for col, mean in means.items()
        },
        "by_seed": {col.title: [_mean(of_seed) for of_seed in own[col.title]] for col in wanted},
        "against": {title: against(other) for title, other in others.items() if other in by_seed and other != name},
    }


def _setup(e: Experiment) -> str:
    """What the experiment sets for every method, as it was resolved from file and flags."""
    text, frozen = e.text, e.model.frozen.layers
    said = []
    if isinstance(e.world, SyntheticWorldConfig):
        said.append(f"The world has {e.world.n_items:,} items and {e.world.n_intents:,} intents.")
    if isinstance(e.world, JudgedWorldConfig):
        said.append(f"A grade from {e.world.relevant_grade:g} up is relevant, and unjudged pairs count as unknown.")
    said.append(f"Every method trains for {e.train.steps} steps, on the first {text.max_query_tokens} tokens of a "
                f"query and {text.max_doc_tokens} of a document.")  # fmt: skip
    if frozen:
        said.append(f"The lower {frozen} of {e.model.backbone.layers} layers stay as they are.")
    if not e.mining.world_knowledge.enabled:
        said.append("No language model is asked: there is no P3.")
    return " ".join(said)


def _is_ideal(values: np.ndarray) -> bool:
    """Whether every event has the best value there is: NDCG where all judged documents of a query have one grade."""
    counted = values[~np.isnan(values)]
    return bool(counted.size and counted.min() == 1)


def _is_headline(column: Column, most: int) -> bool:
    return column.set == "judgments" or (column.metric == f"recall@{most}" and column.set in ("CT", "QR", "unexposed"))


def _best_baseline(rows: Sequence[Row]) -> str | None:
    """The baseline that is best on the validation day: chosen without a look at the test day."""
    scores = {row.name: row.made["validation"] for row in rows if is_baseline(row.name)}
    return max(scores, key=scores.__getitem__) if scores else None


@dataclass(frozen=True)
class _PerQuery:
    """per_query.parquet, by (set, metric)."""

    parts: dict[tuple[str, str], dict[str, np.ndarray]]

    @staticmethod
    def read(folder: Path) -> _PerQuery:
        table = pq.read_table(checked_file(folder, "per_query.parquet"))
        arrays = {name: table[name].to_numpy() for name in table.column_names}
        key = np.char.add(np.char.add(arrays["set"].astype(str), "\t"), arrays["metric"].astype(str))
        parts = {}
        for name in np.unique(key):
            chosen = key == name
            parts[tuple(name.split("\t"))] = {n: arrays[n][chosen] for n in ("event_id", "query", "seen", "value")}
        return _PerQuery(parts)

    def require_same_events(self, other: _PerQuery, place: Path) -> None:
        same = self.parts.keys() == other.parts.keys() and all(
            np.array_equal(part["event_id"], other.parts[name]["event_id"]) for name, part in self.parts.items()
        )
        if not same:
            raise InputError(str(place), "was evaluated on other events than the arms beside it: another world, or "
                             "other test sets")  # fmt: skip

    def has(self, column: Column) -> bool:
        return (column.set, column.metric) in self.parts

    def values(self, column: Column) -> np.ndarray:
        return self.parts[column.set, column.metric]["value"].astype(float)

    def queries(self, column: Column) -> np.ndarray:
        return self.parts[column.set, column.metric]["query"]

    def seen(self, column: Column) -> np.ndarray:
        return self.parts[column.set, column.metric]["seen"].astype(bool)


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))
