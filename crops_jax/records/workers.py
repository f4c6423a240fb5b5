"""Mined candidates -> shards, part by part, on all cores of a machine; or, on Spark, by its executors (`executors`).

Parts are made by worker processes and dealt to the shards in their order: one worker and eight write the same bytes,
and so do one file of candidates and a folder of them. Memory does not grow with the candidates or the corpus, but with
the largest query, which is never split. Finished parts stay in a folder beside the shards until these are whole.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from crops_jax.artifacts.folders import Folder
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.progress import progress, stage
from crops_jax.records import executors
from crops_jax.records.candidates import cut
from crops_jax.records.coverage import Coverage
from crops_jax.records.documents import write_documents
from crops_jax.records.parts import FinishedPart, Job, PartCounts, PartSettings, make_part
from crops_jax.records.provenance import labels_json
from crops_jax.records.shards import Held, Split, finish, open_shards
from crops_jax.records.write import RecordsConfig


@dataclass(frozen=True)
class Mined:
    """What shards are made of."""

    candidates: Path  # a file or a folder of them
    knowledge: Path  # the documents of the language model, if there are any
    logs: Path
    inputs: dict[str, Path]  # the artefacts that these lie in, by name


def write_mined(
    mined: Mined, out: Folder, config: RecordsConfig, settings: PartSettings, seed: int, engine: EngineConfig,
    scratch: Path,
) -> Coverage:  # fmt: skip
    """Labels, groups and writes all candidates as shards into `out`, and notes the counts in `out.counts`.

    Returns what the sources say of the queries.

    Args:
      scratch: folder of the parts; what it holds of an unfinished run with the same inputs and settings is used.

    Raises:
      InputError: candidates or logs are missing or damaged, a worker was killed, or no group is left to train on.
    """
    parts = cut(mined.candidates)
    scratch.mkdir(parents=True, exist_ok=True)
    documents = scratch / "documents"
    jobs = [Job(part, n, scratch / f"{n:05d}", documents, settings, mined.inputs) for n, part in enumerate(parts)]
    on_cluster = engine.backend == "spark"
    made = executors.are_made(jobs, engine) if on_cluster else [job.is_made() for job in jobs]
    missing = {job.number: job.part for job, is_made in zip(jobs, made, strict=True) if not is_made}
    if missing:
        with stage("joining the texts of documents"):
            write_documents(missing, settings.labels.sources, mined.logs, mined.knowledge, documents, engine)
    if on_cluster:
        held, counts = executors.write_shards(jobs, missing, out, config, seed, engine, scratch / "shards")
    else:
        held, counts = _write_shards(jobs, missing, out, config, seed)
    out.counts["assembly"] = dict(counts.assembly)
    finish(out, held, counts.tally, settings.to_json()["token_ids"], labels_json(settings.labels))
    return counts.coverage


def _write_shards(
    jobs: Sequence[Job], missing: Collection[int], out: Folder, config: RecordsConfig, seed: int
) -> tuple[dict[Split, list[Held]], PartCounts]:
    """As `executors.write_shards`, by worker processes; a part is dealt while others are made."""
    counts = PartCounts()
    made = _made(jobs, missing, config.workers or _cores())
    with open_shards(out.path, config.shards, config.validation_share > 0, seed) as splits:
        for part in progress(made, "writing records", total=len(jobs), unit="part"):
            for split, framed, found in part.framed():
                splits[split].write(framed, found)
            counts.add(part.counts())
    return {split: shards.held for split, shards in splits.items()}, counts


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _made(jobs: Sequence[Job], missing: Collection[int], workers: int) -> Iterator[FinishedPart]:
    """All parts in their order, as soon as each is there and all before it."""
    workers = min(workers, len(missing) // 2)  # a process starts in the time that a part takes
    if workers <= 1:
        for number, job in enumerate(jobs):
            if number in missing:
                make_part(job)
            yield FinishedPart(job.folder)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads of Arrow and of the engine
    with ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent) as pool:
        try:
            with _main_module_hidden():  # the first call starts all workers
                running = {number: pool.submit(make_part, jobs[number]) for number in missing}
            for number, job in enumerate(jobs):
                if number in running:
                    running.pop(number).result()
                yield FinishedPart(job.folder)
        except BrokenProcessPool:
            mend = "if memory ran out, take fewer --records.workers; the same command goes on with the finished parts"
            raise InputError("write_records", f"a worker process was ended from outside; {mend}") from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Workers that start here do not import the module of the command, which may load all of jax.

    `make_part` is found by its own module.
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main).pop(name) for name in ("__spec__", "__file__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


def _end_with_parent() -> None:
    """Ends this worker with the process that started it, however that ends; the keyboard is left to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def remove_parts(scratch: Path) -> None:
    """Removes what `write_mined` left in its scratch folder, once the shards are whole."""
    shutil.rmtree(scratch, ignore_errors=True)
