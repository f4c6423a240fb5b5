"""Our side of the measurements: groups in memory, and the real training step, timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import jax
import numpy as np
from jax.sharding import Mesh

from crops_jax.batch import Batch
from crops_jax.batches.stream import TrainBatches
from crops_jax.config import Experiment
from crops_jax.parallel.sharding import make_mesh, put_rows
from crops_jax.records import Record, RecordsReader
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.tasks import task_of
from crops_jax.training.step import StepFunction, TrainState, build_step, init_state


class Groups:
    """Groups in memory that `TrainBatches` reads like a records folder."""

    def __init__(self, records: list[Record], folder: Path, token_ids: dict | None = None):
        """`token_ids`: of the folder, where its records hold tokens; None: texts."""
        self.records, self.folder, self.token_ids = records, folder, token_ids
        self.max_docs_per_query = max(map(len, records))

    def __len__(self) -> int:
        return len(self.records)

    def read(self, numbers: Iterable[int]) -> list[Record]:
        """The groups with these numbers."""
        return [self.records[i] for i in numbers]


def read_groups(experiment: Experiment, count: int) -> list[Record]:
    """The first `count` groups of the experiment's shards."""
    reader = RecordsReader(experiment.ready("records"))
    return reader.read(range(min(count, len(reader))))


def documents(record: Record, keep: np.ndarray | slice) -> Record:
    """The record with some of its documents."""
    kept = {}
    for name, value in vars(record).items():
        if isinstance(value, np.ndarray):
            kept[name] = value[keep]
        elif isinstance(value, list):
            kept[name] = [value[i] for i in np.arange(len(value))[keep]]
    return replace(record, **kept)


def first_batches(experiment: Experiment, groups: Groups, count: int) -> list[Batch]:
    """The first batches that the experiment would train on."""
    batches = TrainBatches(groups, featurizer_of(experiment), experiment.input)
    position, found = batches.start(), []
    for _ in range(count):
        loaded = batches.load(position)
        position = loaded.position
        found.append(loaded.batch)
    return found


def begun(experiment: Experiment, mesh: Mesh) -> tuple[TrainState, StepFunction]:
    """The state before the first update, and the update; under the mesh."""
    task = task_of(experiment)
    begin = partial(init_state, objective=task.objective, optimiser=task.optimiser)
    state = jax.jit(begin)(task.first_model(mesh))
    return state, jax.jit(build_step(task.objective, task.optimiser), donate_argnums=0)


def timed_step(experiment: Experiment) -> Callable[[Batch], float]:
    """One update on a batch, timed in seconds without the transfer; its first call compiles."""
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        state, step = begun(experiment, mesh)

    def run(batch: Batch) -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            on_device = jax.block_until_ready(put_rows(batch, mesh))
            start = perf_counter()
            state, _ = jax.block_until_ready(step(state, on_device))
        return perf_counter() - start

    return run


def real_tokens(batch: Batch) -> int:
    """Tokens of the batch's texts, padding not counted."""
    return int(batch.query.length.sum() + batch.docs.length.sum())


def token_slots(batch: Batch) -> int:
    """Token slots that the towers compute."""
    return batch.query.ids.size + batch.docs.ids.size


def device_name() -> str:
    """The device that JAX runs on, and JAX's version."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform}, {jax.device_count()} of them), jax {jax.__version__}"
