"""`python -m crops_jax.train --config configs/demo.py [--section.field=value ...]`: trains a dual encoder.

Reads the arm's record shards, writes the arm's `train` folder: resolved config, checkpoints, metrics. Started again
after a kill it continues where the last checkpoint stands, with the same batches and the same losses.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic

import jax
import numpy as np
from jax.sharding import NamedSharding
from tqdm import tqdm

from crops_jax import optim
from crops_jax.artifacts import MANIFEST, seal
from crops_jax.batch import Batch, Tokens
from crops_jax.checkpoint import Checkpoints
from crops_jax.config import Experiment, differences, from_command_line, from_json, to_json
from crops_jax.encoders import encoder_fingerprint, text_encoder
from crops_jax.errors import InputError, Preempted, run_command
from crops_jax.input_pipeline import TrainBatches
from crops_jax.metrics_log import MetricsLog
from crops_jax.models import dual_encoder, hf_import
from crops_jax.progress import bar
from crops_jax.records import RecordsReader
from crops_jax.sharding import RULES, abstract_on, make_mesh, put_rows
from crops_jax.train_step import StepFunction, TrainState, build_step, init_state

# What must not change between the runs that share a train folder; length, logging and evaluation may.
FIXED_SECTIONS = ("labels", "text", "vocabulary", "input", "model", "loss", "optim", "seed")


def settings(experiment: Experiment) -> dict:
    """What a trained model depends on, besides the shards; `train.fresh` is an act, not a setting."""
    whole = to_json(replace(experiment, train=replace(experiment.train, fresh=False)))
    return {name: whole[name] for name in (*FIXED_SECTIONS, "train")}


def run(experiment: Experiment) -> Path:
    """Trains until `experiment.train.steps` and returns the sealed train folder.

    Raises:
      InputError: no shards, a mesh that does not fit, a folder that holds a run of another config, a NaN loss.
      Preempted: SIGTERM arrived; the state is saved and the same command continues.
    """
    if jax.process_count() > 1:
        raise InputError(f"{jax.process_count()} processes", "a run is one process with all devices of one machine")
    folder = experiment.arm_folder("train")
    reader = RecordsReader(experiment.ready("records"))
    batches = TrainBatches(reader, text_encoder(experiment), experiment.input, experiment.train.steps)
    mesh = make_mesh(experiment.mesh)
    RULES.check_rows(mesh, experiment.input.batch_queries, "input.batch_queries")
    _open_folder(folder, experiment, batches)

    with jax.set_mesh(mesh):
        groups = dual_encoder.groups(experiment.model)
        optimiser = optim.build(experiment.optim, groups, experiment.train.steps)
        step = jax.jit(build_step(experiment.loss, optimiser), donate_argnums=0)
        checkpoints = Checkpoints(folder, experiment.train.keep)
        state = _first_state(experiment, optimiser, mesh, checkpoints)
        with MetricsLog(folder / "metrics.jsonl", resume_at=int(state.step)) as log, _on_sigterm() as stop:
            state = _loop(experiment, batches, step, state, checkpoints, log, partial(put_rows, mesh=mesh), stop)
        checkpoints.close()
    seal(folder, kind="train", config=settings(experiment), inputs={"records": reader.folder},
         counts={"steps": int(state.step), "groups": len(reader)})  # fmt: skip
    return folder


def _loop(
    experiment: Experiment,
    batches: TrainBatches,
    step: StepFunction,
    state: TrainState,
    checkpoints: Checkpoints,
    log: MetricsLog,
    put: Callable[[Batch], Batch],
    stop: threading.Event,
) -> TrainState:
    """Updates until the last step, saving and logging on the way."""
    config = experiment.train
    start = int(state.step)
    clock = _Clock()
    with batches.from_step(start) as feed, bar(f"train {experiment.name}", config.steps - start, "step") as shown:
        for number, batch in feed:
            state, metrics = step(state, put(batch))
            done = number + 1
            clock.count(batch)
            save = done % config.save_every == 0 or done == config.steps or stop.is_set()
            if save or done % config.log_every == 0 or number == start:
                _report(log, shown, done, jax.device_get(metrics), clock.rates(feed.waited_s), batches)
            if save:
                checkpoints.save(done, state)
            shown.update(1)
            if stop.is_set() and done < config.steps:
                raise Preempted(f"saved step {done} of {config.steps}; the same command continues")
    return state


def _report(
    log: MetricsLog, shown: tqdm, done: int, metrics: dict[str, np.ndarray], rates: dict[str, float],
    batches: TrainBatches,
) -> None:  # fmt: skip
    """One metrics line; a loss that is no number ends the run before it is saved."""
    loss, tau = float(metrics["loss"]), float(metrics["tau"])
    if not np.isfinite(loss):
        requests = ", ".join(r.request_id for r in batches.records_at(done - 1)[:8])
        raise InputError(f"step {done}", f"the loss is {loss}; its batch holds requests {requests}, ...; lower "
                         "optim.learning_rate, or look at these groups")  # fmt: skip
    log.write(done, {**metrics, **rates})
    shown.set_postfix(loss=f"{loss:.4f}", tau=f"{tau:.4f}", tokens_s=f"{rates['tokens_per_s']:.0f}")


class _Clock:
    """Counts real tokens and examples between two metric lines."""

    def __init__(self):
        self._restart(0.0)

    def _restart(self, waited: float) -> None:
        self._since, self._waited = monotonic(), waited
        self._tokens = self._slots = self._queries = self._docs = 0

    def count(self, batch: Batch) -> None:
        self._queries += len(batch.query_key)
        self._docs += int(batch.valid.sum())
        for rows in (batch.query, batch.docs):
            if isinstance(rows, Tokens):
                self._tokens += int(rows.length.sum())
                self._slots += rows.ids.size

    def rates(self, waited_s: float) -> dict[str, float]:
        """Per second since the last call: real tokens, query groups, documents; and shares of waiting and padding."""
        seconds = max(monotonic() - self._since, 1e-9)
        rates = {
            "tokens_per_s": self._tokens / seconds,
            "examples_per_s": self._queries / seconds,
            "documents_per_s": self._docs / seconds,
            "data_wait_share": (waited_s - self._waited) / seconds,
            "padding_share": 1 - self._tokens / self._slots if self._slots else 0.0,
        }
        self._restart(waited_s)
        return rates


def _first_state(experiment: Experiment, optimiser, mesh, checkpoints: Checkpoints) -> TrainState:
    """The state to start from. In this order:

    1. the newest good checkpoint of this folder;
    2. the pre-trained weights that `model.init_from` names;
    3. random weights drawn from `seed`.
    """
    if checkpoints.steps():
        abstract = abstract_state(experiment, optimiser, mesh)
        return checkpoints.restore(abstract)[1]
    model = hf_import.create(experiment.model, jax.random.key(experiment.seed), mesh)
    return jax.jit(partial(init_state, optimiser=optimiser))(model)


def abstract_state(experiment: Experiment, optimiser, mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state of this experiment on `mesh`, without any array."""
    model = abstract_on(dual_encoder.abstract(experiment.model), mesh)
    shapes = jax.eval_shape(partial(init_state, optimiser=optimiser), model)

    def concrete(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding is not None else jax.P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(concrete, shapes)


def _open_folder(folder: Path, experiment: Experiment, batches: TrainBatches) -> None:
    """Makes the train folder, or checks that the run in it is this one."""
    if experiment.train.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    made_of = {"shards": batches.reader.fingerprint(), "tokenizer": encoder_fingerprint(batches.encoder)}
    saved = folder / "run.json"
    if saved.is_file():
        earlier = json.loads(saved.read_text())
        problems = differences(from_json(earlier["config"], str(saved)), experiment, FIXED_SECTIONS)
        changed = [name for name in made_of if earlier[name] != made_of[name]]
        problems += [f"the {name} changed since the run began" for name in changed]
        if problems:
            problems.append("give another --name or --workdir, or discard the earlier run: --train.fresh=True, once")
            raise InputError(f"{folder} holds a run of another config", problems)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # unsealed until the run is whole again
    saved.write_text(json.dumps({"config": to_json(experiment), **made_of}, indent=1) + "\n")


@contextmanager
def _on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the loop can save before it leaves."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Trains the experiment of the command line."""
    experiment = from_command_line("train")
    folder = run(experiment)
    print(f"trained: {folder}\nnext: python -m crops_jax.encode --config FILE")


if __name__ == "__main__":
    run_command(main)
