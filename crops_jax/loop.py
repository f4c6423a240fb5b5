"""`python -m crops_jax.loop --config FILE --out DIR`: days in which what a method shows becomes what it learns from.

FILE defines a `LOOP`. Day 0 is served by the platform's own dense channel. From each day's logs a method mines, writes
shards and trains on from the day before; the next day is served by its retriever. DIR gets results.json, results.md and
one page, loop.html. What is whole and current is kept, so a killed loop goes on where it was.
"""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import scipy.sparse as sp

from crops_jax import pipeline, simulate_logs
from crops_jax.artifacts.folders import link_folder, write_folder
from crops_jax.artifacts.manifest import MANIFEST, read_manifest, verify
from crops_jax.command_line import load_file, number, numbers, override, require_free, take_option, wants_help
from crops_jax.comparison.html import machine, require_page
from crops_jax.comparison.loop_config import LOOP_METHODS, PLATFORM, Loop, is_control
from crops_jax.comparison.loop_page import write_page
from crops_jax.comparison.loop_results import Days, Row, loop_results
from crops_jax.config import Experiment, flat, leaves
from crops_jax.errors import InputError, run_command
from crops_jax.mining.work import share_theta_cache
from crops_jax.parallel.sharding import make_mesh
from crops_jax.progress import bar
from crops_jax.retrieval.embedding import query_encoder
from crops_jax.retrieval.ranking import positions_of
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.folder import WORLD_FILES, began_otherwise, discard, start_identity
from crops_jax.runs.tasks import task_of
from crops_jax.runs.trained import read_embeddings, settings, trained_experiment, trained_model
from crops_jax.simulate.measures import LoggedDay, measures, read_logged_day
from crops_jax.simulate.platform import PlatformConfig, Vectors, lsa, memory_of_clicks
from crops_jax.simulate.simulator import JudgedWorldConfig, SyntheticWorldConfig, build_world, simulate_day
from crops_jax.simulate.world import World

USAGE = (
    "python -m crops_jax.loop --config FILE --out DIR [--days 10] [--methods A,B] [--controls A,B] [--seeds 0,1] "
    "[--first-steps N] [--section.field=value ...]"
)
_TAKEN = {
    "--name": "the days of a loop have folders of their own: give another --workdir",
    **dict.fromkeys(("--seed", "--input.seed"), "every seed of --seeds has weights of its own: give these"),
}
WorldConfig = SyntheticWorldConfig | JudgedWorldConfig
_world = cache(build_world)


@cache
def _own_channel(world: WorldConfig, platform: PlatformConfig, seed: int) -> Vectors:
    """The platform's own dense channel, which stays from day to day."""
    return lsa(_world(world), platform, seed)


def query_vectors(e: Experiment) -> Path:
    """Where a day keeps the vectors of all queries of the world, as its model encodes them."""
    return Path(e.workdir) / "query_vectors"


def logs_stage(loop: Loop, name: str, seed: int, day: int) -> pipeline.Stage:
    """A simulated day. Its manifest names what it was served by: the retriever of the day before, and all clicks."""
    e = loop.day(name, seed, day)
    made_from = simulate_logs.inputs(e)
    made_from |= {f"day_{d:02d}": loop.day(name, seed, d).folder("logs") for d in range(day)}
    serves = day > 0 and name != PLATFORM
    if serves:
        before = loop.day(name, seed, day - 1)
        made_from |= {"embeddings": before.arm_folder("embeddings"), "query_vectors": query_vectors(before)}
    config = {**simulate_logs.settings(e), "day": day, "channel": "retriever" if serves else "platform"}
    run = partial(_simulate, loop=loop, name=name, seed=seed, day=day, made_from=made_from, config=config)
    return pipeline.Stage("simulate", loop.served(name, seed, day), "logs", lambda: config, made_from, run)


def _simulate(
    e: Experiment, loop: Loop, name: str, seed: int, day: int, made_from: dict[str, Path], config: dict[str, Any]
) -> None:
    world = _world(e.world)
    if "embeddings" in made_from:
        dense = _retriever(loop.day(name, seed, day - 1), world)
    else:
        dense = _own_channel(e.world, e.simulate.platform, e.simulate.seed)
    memory = None
    if day:
        logged = [read_logged_day(world, loop.day(name, seed, d).folder("logs")) for d in range(day)]
        memory = memory_of_clicks(sum((one.clicks(world) for one in logged), start=_nothing(world)))
    with write_folder(loop.served(name, seed, day), kind="logs", config=config, inputs=made_from) as out:
        out.counts.update(simulate_day(world, e.simulate, out, day, dense, memory))


def _nothing(world: World) -> sp.csr_matrix:
    return sp.csr_matrix(world.relevance.shape)


def _retriever(e: Experiment, world: World) -> Vectors:
    """The dense channel that a day's model makes; an item without text has no vector and is never recalled."""
    read = read_embeddings(e).read()
    verify(query_vectors(e))
    place = positions_of(read.ids, world.items["item_id"].to_numpy())
    items = np.where((place >= 0)[:, None], read.vectors[np.maximum(place, 0)], np.float32(0))
    return Vectors(np.load(query_vectors(e) / "vectors.npy"), items)


def _encode_queries(e: Experiment) -> None:
    trained = trained_experiment(e)
    mesh = make_mesh(e.mesh)
    with jax.set_mesh(mesh):
        encode = query_encoder(trained_model(trained, mesh), featurizer_of(trained).encode_queries, e.encode, mesh)
        vectors = encode(_world(e.world).queries)
    made_from = {"train": e.arm_folder("train")}
    with write_folder(query_vectors(e), kind="query_vectors", config=settings(trained), inputs=made_from) as out:
        np.save(out / "vectors.npy", vectors)
        out.counts.update(queries=len(vectors), width=vectors.shape[1])


def ensure_logs(loop: Loop, name: str, seed: int, day: int) -> None:
    """Simulates a day unless it is current. Day 0 is the platform's for every row; a control learns from no other."""
    e = loop.day(name, seed, day)
    if name != PLATFORM and (day == 0 or is_control(name)):
        _ensure_mined(loop, PLATFORM, seed, day)
        for kind in ("logs", "mined"):
            link_folder(e.folder(kind), loop.day(PLATFORM, seed, day).folder(kind))
        if day == 0:
            return
    pipeline.ensure(logs_stage(loop, name, seed, day), e, _told(name, seed, day))


def _ensure_mined(loop: Loop, name: str, seed: int, day: int) -> None:
    """Mines a day, and makes the tokeniser if it is the first, whose tokeniser all days have."""
    e = loop.day(name, seed, day)
    stages = {stage.name: stage for stage in pipeline.data_stages(e)}
    for kind in ("mine", "tokeniser"):
        if kind in stages and (kind == "mine" or day == 0):
            pipeline.ensure(stages[kind], e, _told(name, seed, day))


def ensure_trained(loop: Loop, name: str, seed: int, day: int) -> None:
    """Mines the day, trains on from the day before, and encodes the corpus and all queries of the world."""
    e = loop.day(name, seed, day)
    stages = {stage.name: stage for stage in (*pipeline.data_stages(e), *pipeline.arm_stages(e))}
    queries = pipeline.Stage("encode queries", query_vectors(e), "query_vectors",
                             lambda: settings(trained_experiment(e)), {"train": e.arm_folder("train")},
                             _encode_queries)  # fmt: skip
    for step in (*(stages[kind] for kind in ("mine", "shards", "train", "encode")), queries):
        if step.name == "train":
            _drop_if_stale(e)
        pipeline.ensure(step, e, _told(name, seed, day))


def _drop_if_stale(e: Experiment) -> None:
    """Discards a run that was begun on other groups, or from another model: a day was simulated or trained again."""
    folder, made_of = e.arm_folder("train"), task_of(e).identity() | start_identity(e)
    try:
        stale = began_otherwise(folder, made_of)
    except InputError:  # damaged, or of another version, which cannot be gone on with
        stale = True
    if stale:
        discard(folder)


def _told(name: str, seed: int, day: int) -> str:
    return f"{name}, seed {seed}, day {day}: "


def run_days(loop: Loop, name: str, seed: int) -> Days:
    """All days of a method at a seed; gives what was measured on each. Nothing is trained after the last."""
    found = []
    shown: sp.csr_matrix | None = None
    for day in range(loop.days):
        ensure_logs(loop, name, seed, day)
        world = _world(loop.base.world)
        logged: LoggedDay = read_logged_day(world, loop.served(name, seed, day))
        before = _nothing(world) if shown is None else shown
        found.append(measures(world, logged, before))
        shown = before + logged.shown(world)
        told = ", ".join(f"{key} {100 * share.value:.2f}" for key, share in found[-1].items())
        print(f"   {_told(name, seed, day)}{told} (percent)", file=sys.stderr)
        if name != PLATFORM and day < loop.days - 1:
            ensure_trained(loop, name, seed, day)
    return found


def _require_same_world(loop: Loop) -> None:
    """Raises InputError where a day is there that another world's users made, before it is made again over hours."""
    problems = []
    for name, seed, day in itertools.product(loop.rows, loop.seeds, range(loop.days)):
        e, folder = loop.day(name, seed, day), loop.served(name, seed, day)
        if (folder / MANIFEST).is_file():
            made = dict(leaves(read_manifest(folder, "logs")["config"]))
            asked = flat(e)
            problems += [f"{folder}: {field}: {value} -> {asked[field]}" for field, value in sorted(made.items())
                         if field in asked and field not in WORLD_FILES and asked[field] != value]  # fmt: skip
    if problems:
        raise InputError("days of another world are in this workdir, and would be made again", [
            *problems[:10], "give another --workdir, or remove these days"])  # fmt: skip


def run(loop: Loop, out: Path, command: str) -> Path:
    """Runs the days of every row, and writes results.json, results.md and loop.html."""
    _require_same_world(loop)
    names = loop.rows
    share_theta_cache(Path(loop.base.workdir))
    by_name: dict[str, list[Days]] = {name: [] for name in names}
    with bar("loops", len(names) * len(loop.seeds), "loop") as moving:
        for seed in loop.seeds:
            for name in names:
                by_name[name].append(run_days(loop, name, seed))
                moving.update()
    rows = [Row(*item) for item in by_name.items()]
    results = {"command": command, **machine(), **loop_results(loop, _world(loop.base.world), rows)}
    with write_folder(out, kind="loop") as folder:
        write_page(results, folder)
        folder.counts.update(days=loop.days, methods=list(loop.methods), seeds=list(loop.seeds))
    return out


def _loop(argv: list[str]) -> tuple[Loop, Path]:
    if wants_help(argv):
        print(f"usage: {USAGE}\n\nmethods: {', '.join(LOOP_METHODS)}")
        sys.exit(0)
    given = {}
    for name in ("--config", "--out", "--days", "--methods", "--controls", "--seeds", "--first-steps"):
        given[name], argv = take_option(argv, name)
    if given["--config"] is None or given["--out"] is None:
        raise InputError("usage", USAGE)
    require_free(argv, _TAKEN)
    loop = load_file(given["--config"], "LOOP", Loop)
    changed: dict[str, Any] = {"base": override(loop.base, argv, "loop")}
    for name in ("--days", "--first-steps"):
        if given[name] is not None:
            changed[_field(name)] = number(name, given[name], int)
    for name in ("--methods", "--controls"):
        if given[name] is not None:
            changed[_field(name)] = tuple(given[name].split(","))
    if given["--seeds"] is not None:
        changed["seeds"] = numbers("--seeds", given["--seeds"], int)
    return replace(loop, **changed), Path(given["--out"])


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


@contextmanager
def _compiled_once() -> Iterator[None]:
    """Keeps what is compiled for the next day: a small day trains for less time than its step takes to compile.

    Not on several CPU devices, where an executable that was kept does not keep its collectives in order.
    """
    if jax.config.jax_compilation_cache_dir is not None or (jax.default_backend() == "cpu" and jax.device_count() > 1):
        yield
        return
    with TemporaryDirectory(prefix="crops_jax_loop_") as kept:
        jax.config.update("jax_compilation_cache_dir", kept)
        yield


def main() -> None:
    """Runs the loop of the command line and prints its tables."""
    loop, out = _loop(sys.argv[1:])
    require_page(out, "loop", [loop.base.workdir])
    with _compiled_once():
        run(loop, out, f"python -m crops_jax.loop {shlex.join(sys.argv[1:])}")
    print((out / "results.md").read_text(encoding="utf-8"))
    print(f"the page: {out / 'loop.html'}")


if __name__ == "__main__":
    run_command(main)
