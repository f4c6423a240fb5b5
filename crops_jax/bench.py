"""`python -m crops_jax.bench --configs FILE... --out DIR`: every method of the paper's tables on one or more worlds.

Each FILE defines a `COMPARISON`. Of each method the learning rate is chosen on the validation day, every seed is
trained and evaluated on the test day, and DIR gets results.json, results.md and one page, bench.html. What is whole and
current is kept, so a killed benchmark goes on where it was. `--plan` says what there is to do and trains nothing.
`--sensitivity` runs the methods again on worlds with one of the simulator's knobs at half and at double, `--knobs` with
these knobs alone.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax import evaluate, mine, pipeline, write_records
from crops_jax.artifacts.folders import link_folder, write_folder
from crops_jax.artifacts.manifest import MANIFEST, read_manifest
from crops_jax.comparison.asked import from_arguments
from crops_jax.comparison.cases import cases
from crops_jax.comparison.config import Comparison
from crops_jax.comparison.forecast import forecast, note, took
from crops_jax.comparison.html import machine, require_page
from crops_jax.comparison.knobs import gone, sensitivity, sensitivity_table
from crops_jax.comparison.methods import METHODS, PRINTED, arm, is_baseline
from crops_jax.comparison.page import write_page
from crops_jax.comparison.results import World, trained, validation_score, world_results
from crops_jax.comparison.runs import base_of, finished, methods_of, require_collections, require_own_runs, runs_of
from crops_jax.config import BM25_NAME, Experiment, to_json
from crops_jax.errors import Diverged, InputError, run_command
from crops_jax.mining.testsets import HeldOutDay
from crops_jax.mining.work import share_theta_cache
from crops_jax.progress import bar
from crops_jax.report.tables import several, table_notes
from crops_jax.retrieval.gains import choose
from crops_jax.stable_hash import hash_texts


def shared_stages(c: Comparison) -> list[pipeline.Stage]:
    """Logs, mined candidates and tokeniser of the world, and the sets of its two held-out days."""
    stages = pipeline.data_stages(c.dense)
    validation = pipeline.Stage(
        "validation sets", c.dense.folder("validation_sets"), "validation_sets",
        lambda: mine.testset_settings(c.dense), {"logs": c.dense.folder("logs")},
        lambda e: mine.run_testsets(e, "validation"),
    )  # fmt: skip
    return [*stages, validation]


def arm_of(c: Comparison, name: str, seed: int, factor: float) -> Experiment:
    """The experiment of one arm; its shards must be written where the method asks for equal data."""
    base = base_of(c, name)
    e = arm(name, base, seed, factor)
    if not METHODS[name].equal_data:
        return e
    whole = _documents(arm(PRINTED, base, seed, factor))
    steps = round(e.train.steps * _documents(e) / whole)
    return replace(e, train=replace(e.train, steps=steps))


def _documents(e: Experiment) -> int:
    """Documents of the arm's shards, which are written here if they are not."""
    _ensure_records(e)
    return read_manifest(e.arm_folder("records"), "records")["counts"]["splits"]["train"]["documents"]


def _ensure_records(e: Experiment) -> None:
    """Writes the arm's shards once for all arms that have the same, and links them into the arm's folder."""
    key = json.dumps(to_json([write_records.settings(e)]), sort_keys=True)
    shared = replace(e, name=f"shards/{int(hash_texts([key], 0)[0]):016x}")
    step = pipeline.arm_stages(shared)[0]
    pipeline.ensure(step, shared, f"{e.name}: ")
    link_folder(e.arm_folder("records"), step.target)


def run_arm(e: Experiment, days: tuple[HeldOutDay, ...]) -> None:
    """Trains an arm, encodes the corpus and evaluates it on these held-out days; with none, it trains alone."""
    _ensure_records(e)
    stages = {stage.name: stage for stage in pipeline.arm_stages(e)}
    _ensure_timed(stages["train"], e)
    if not days:
        return
    _ensure_timed(stages["encode"], e)
    for day in days:
        target = evaluate.folder(e, day)
        config, made_from = evaluate.settings(e), evaluate.inputs(e, day)
        step = pipeline.Stage(f"evaluate ({day} day)", target, "eval", lambda c=config: c, made_from,
                              lambda e, d=day: evaluate.run(e, d))  # fmt: skip
        _ensure_timed(step, e)


def _ensure_timed(step: pipeline.Stage, e: Experiment) -> None:
    if seconds := pipeline.ensure(step, e, f"{e.name}: "):
        note(e, step.name, seconds)


def train_chain(c: Comparison, name: str, seed: int, factor: float) -> list[Experiment]:
    """Trains what a method starts from, run by run; gives these runs and, as the last one, the method's own."""
    start = METHODS[name].start
    before = train_chain(c, start, seed, factor) if start else []
    for e in before:
        run_arm(e, ())
    return [*before, arm_of(c, name, seed, factor)]


def run_method(c: Comparison, name: str, world: World) -> None:
    """Chooses a method's learning rate on the validation day, trains all seeds and evaluates them on the test day.

    One that diverges at the lowest rate, or with a further seed at the chosen one, is left out of the world's rows.
    """
    factor, seed, chains = min(c.learning_rates), c.seeds[0], []
    try:
        scores = {factor: score_at(c, name, factor) for factor in c.learning_rates}
        factor = max(c.learning_rates, key=lambda f: -1.0 if scores[f] is None else scores[f])
        for seed in c.seeds:
            chains.append(train_chain(c, name, seed, factor))
            run_arm(chains[-1][-1], ("test",))
    except Diverged as error:
        where = f"with seed {seed} at {factor:g} times the config's learning rate ({error.place})"
        world.left_out.append(f"{METHODS[name].title} is left out: training diverges {where}.")
        print(f"   {name}: {world.left_out[-1]} {error}", file=sys.stderr)
        return
    arms = [chain[-1] for chain in chains]
    made = trained(chains) | {"validation": scores[factor], "validation_by_rate": scores, "rate": factor}
    world.add(name, METHODS[name].title, [evaluate.folder(e) for e in arms], made)


def score_at(c: Comparison, name: str, factor: float) -> float | None:
    """The method's score on the validation day at a factor of the learning rates; None where it diverges at this one of
    several.
    """
    try:
        e = train_chain(c, name, c.seeds[0], factor)[-1]
        run_arm(e, ("validation",))
    except Diverged as error:
        if factor == min(c.learning_rates):  # a lower one would be another grid: `run_method` leaves the method out
            raise
        print(f"   {name}: learning rate x {factor:g} is left out, training diverges: {error}", file=sys.stderr)
        return None
    return validation_score(evaluate.read_results(evaluate.folder(e, "validation")))


def run_bm25(c: Comparison, world: World) -> None:
    """Evaluates BM25 on the test day with the k1 and b that are best on the validation day; ties go to the first."""
    grid = [(k1, b) for k1 in c.bm25_k1 for b in c.bm25_b]
    arms = [replace(c.dense, name=f"{BM25_NAME}/k1_{k1:g}_b_{b:g}", bm25=replace(c.dense.bm25, k1=k1, b=b))
            for k1, b in grid]  # fmt: skip
    scores = []
    for e in arms:
        _evaluate_bm25(e, "validation")
        scores.append(validation_score(evaluate.read_results(evaluate.folder(e, "validation"))))
    best = scores.index(max(scores))
    _evaluate_bm25(arms[best], "test")
    k1, b = grid[best]
    world.add(BM25_NAME, "BM25", [evaluate.folder(arms[best])], {"validation": scores[best], "k1": k1, "b": b})


def _evaluate_bm25(e: Experiment, day: HeldOutDay) -> None:
    target = evaluate.folder(e, day)
    step = pipeline.Stage("evaluate", target, "eval", lambda: evaluate.bm25_settings(e), evaluate.bm25_inputs(e, day),
                          lambda e: evaluate.run_bm25(e, day, target))  # fmt: skip
    pipeline.ensure(step, e, f"{e.name}: ")


def run_world(c: Comparison) -> dict[str, Any]:
    """Runs what is not current of a world and gives its results."""
    world = World(c)
    require_own_runs(c)
    for step in shared_stages(c):
        pipeline.ensure(step, c.dense, f"{c.title}: ")
    run_bm25(c, world)
    names = methods_of(c)
    with bar(f"methods on {c.title}", len(names), "method") as moving:
        for name in names:
            run_method(c, name, world)
            moving.update()
    if world.left_out and len(world.rows) == 1:
        raise InputError(c.title, world.left_out)  # BM25 alone compares nothing
    found = world_results(world)
    notes = table_notes([evaluate.read_results(world.rows[0].folders[0])])  # all rows search one corpus
    about = " ".join([found["about"], *notes, *world.left_out])
    return found | {"about": about, "left_out": world.left_out, "cases": case_study(c, world)}


def case_study(c: Comparison, world: World) -> list[dict[str, Any]]:
    """Queries that CroPS as printed gains and loses most on, beside the best trained baseline of the validation day."""
    rows = {row.name: row for row in world.rows}
    baselines = [row for row in world.rows if row.name != BM25_NAME and is_baseline(row.name)]
    if PRINTED not in rows or not baselines:
        return []
    baseline = max(baselines, key=lambda row: row.made["validation"])
    chosen = choose(rows[PRINTED].folders[0], baseline.folders[0], f"recall@{min(c.dense.evaluate.cutoffs)}")
    searches = {}
    for row in (baseline, rows[PRINTED]):
        e = arm_of(c, row.name, c.seeds[0], row.made["rate"])

        def search(queries: list[str], k: int, e: Experiment = e) -> np.ndarray:
            with evaluate.dense_searcher(e) as searcher:
                return searcher.search(queries, k)[0]

        searches[row.title] = search
    return cases(chosen, searches, c.dense.folder("logs"), c.dense.folder("mined"), c.dense.mining)


def plan(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What there is to train, and how long it will take by the runs that are there already.

    Raises:
      InputError: runs of another world, or with other settings, are where a comparison writes; or the collection of a
        world is not there.
    """
    require_collections(comparisons)
    for c in comparisons:
        runs = runs_of(c)
        require_own_runs(c)
        # Which factor the other seeds take is known after the first: a run of theirs at any factor is one.
        rates = {run: c.learning_rates if run[1] != c.seeds[0] else (run[2],) for run in runs}
        trained_runs = [finished(c, name, seed, rates[name, seed, factor]) for name, seed, factor in runs]
        known: dict[str, list[float]] = {}
        left: Counter[str] = Counter()
        for (name, _, _), e in zip(runs, trained_runs, strict=True):
            if e is None:
                left[name] += 1
            else:
                known.setdefault(name, []).append(took(e))
        warm = len({name for name, _, _ in runs}) - len(methods_of(c))
        told = several(len(methods_of(c)), "method") + (f" and {warm} that they start from" if warm else "")
        made = f"{several(len(runs), 'run')} of {told}"
        yield f"{c.title}: {made}, {left.total()} to train{forecast(left, known)}{_made_anew(c)}"


def _made_anew(c: Comparison) -> str:
    """What all runs share and is no longer current: whose shards it will change is not known before it is made."""
    stages = [stage for stage in shared_stages(c) if (stage.target / MANIFEST).is_file()]
    old = [stage.name for stage in stages if not _is_kept(stage, c)]
    return f"; made anew first: {', '.join(old)}; a run whose shards this changes is refused then" if old else ""


def _is_kept(stage: pipeline.Stage, c: Comparison) -> bool:
    """Whether a stage is whole and current; not where it was made from simulated logs that will be made anew."""
    try:
        return all(path.exists() for path in stage.inputs.values()) and stage.is_current()
    except InputError:
        if c.dense.world is None:
            raise
        return False


def run(comparisons: Sequence[Comparison], out: Path, command: str, knobs: Sequence[str] = ()) -> Path:
    """Runs every world, and again with each of `knobs` turned; writes results.json, results.md and bench.html."""
    worlds = []
    for c in comparisons:
        world = run_world(c)
        if knobs:
            share_theta_cache(Path(c.dense.workdir).parent)
            found = [(name, by, run_world(other)) for name, by, other in sensitivity(c, knobs)]
            world["sensitivity"] = {"table": asdict(sensitivity_table(world, found)), "left_out": gone(found)}
        worlds.append(world)
    results = {"command": command, **machine(), "worlds": worlds}
    with write_folder(out, kind="bench") as folder:
        write_page(results, folder)
        folder.counts.update(worlds=[c.title for c in comparisons])
    return out


def main() -> None:
    """Runs the benchmark of the command line and prints its first tables."""
    asked = from_arguments(sys.argv[1:])
    others = [other for c in asked.comparisons for _, _, other in sensitivity(c, asked.knobs)]
    for line in plan([*asked.comparisons, *others]):
        print(line)
    if asked.only_plan:
        return
    require_page(asked.out, "bench", [c.dense.workdir for c in (*asked.comparisons, *others)])
    run(asked.comparisons, asked.out, f"python -m crops_jax.bench {shlex.join(sys.argv[1:])}", asked.knobs)
    print((asked.out / "results.md").read_text(encoding="utf-8"))
    print(f"the page: {asked.out / 'bench.html'}")


if __name__ == "__main__":
    run_command(main)
