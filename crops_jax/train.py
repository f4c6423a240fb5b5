"""`python -m crops_jax.train --config configs/demo.py [--section.field=value ...]`: trains a dual encoder.

Reads the arm's record shards, writes the arm's `train` folder: resolved config, checkpoints, metrics. Started again
after a kill it continues where the last checkpoint stands, with the same batches and the same losses. Started as one of
several processes (SLURM, Open MPI, Cloud TPU, Kubernetes, launch/local_multiprocess.py) it joins the others.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from crops_jax import __version__, distributed, optim
from crops_jax.abstract import abstract_batch, abstract_state
from crops_jax.artifacts import MANIFEST, seal
from crops_jax.checkpoint import Checkpoints
from crops_jax.config import Experiment, differences, flat, from_command_line, from_json, to_json
from crops_jax.encoders import encoder_fingerprint, text_encoder
from crops_jax.errors import InputError, Preempted, run_command
from crops_jax.input_pipeline import TrainBatches
from crops_jax.models import dual_encoder, hf_import
from crops_jax.monitor import Monitor, require_installed
from crops_jax.records import RecordsReader
from crops_jax.sharding import RULES, make_mesh, put_rows, rows_here, take_rows
from crops_jax.throughput import Hints, Meter
from crops_jax.train_step import StepFunction, TrainState, build_step, init_state
from crops_jax.validation import Validation
from crops_jax.watchdog import Watchdog

_Running = tuple[int, jax.Array, np.ndarray]  # step, loss, groups: not yet seen to have finished
# What must not change between the runs that share a train folder; length, logging and evaluation may.
FIXED_SECTIONS = ("labels", "text", "vocabulary", "input", "model", "loss", "optim", "seed")


def settings(experiment: Experiment) -> dict:
    """What a trained model depends on, besides the shards; `train.fresh` is an act, not a setting."""
    whole = to_json(replace(experiment, train=replace(experiment.train, fresh=False)))
    return {name: whole[name] for name in (*FIXED_SECTIONS, "validation", "train")}


def run(experiment: Experiment) -> Path:
    """Trains until `experiment.train.steps` and returns the sealed train folder; every process of the run calls it.

    Raises:
      InputError: no shards, a mesh that does not fit, a folder that holds a run of another config, processes that were
        started differently, a NaN loss, no room for a checkpoint.
      Preempted: SIGTERM arrived; the state is saved and the same command continues.
    """
    folder = experiment.arm_folder("train")
    mesh, batches, validation = distributed.together(partial(_inputs, experiment))
    made_of = {"shards": batches.reader.fingerprint(), "tokenizer": encoder_fingerprint(batches.encoder)}
    distributed.require_same({**flat(experiment), **made_of, "code": __version__, "jax": jax.__version__})
    distributed.first(partial(_open_folder, folder, experiment, made_of))

    with jax.set_mesh(mesh), Checkpoints(folder, experiment.train.keep, config=settings(experiment)) as checkpoints:
        groups = dual_encoder.groups(experiment.model)
        optimiser = optim.build(experiment.optim, groups, experiment.train.steps)
        state, position = _first_state(experiment, optimiser, mesh, checkpoints, batches)
        update = jax.jit(build_step(experiment.loss, optimiser, experiment.gradcache), donate_argnums=0)
        step = update.lower(state, abstract_batch(experiment, mesh)).compile()  # here, and never again in this run
        distributed.wait_for_all("compiled")  # some hosts take longer, and a first collective does not wait for ever
        state = _loop(experiment, mesh, batches, validation, step, state, position, checkpoints)
    counts = {"steps": int(state.step), "groups": len(batches.reader)}
    inputs = {"records": batches.reader.folder}
    distributed.first(partial(seal, folder, kind="train", config=settings(experiment), inputs=inputs, counts=counts))
    return folder


def _inputs(experiment: Experiment) -> tuple[Mesh, TrainBatches, Validation | None]:
    """The mesh, the batches as far as this process feeds them, and the held-out groups, if there is evaluation."""
    require_installed(experiment.monitor)
    mesh = make_mesh(experiment.mesh)
    shards = experiment.input.shards
    RULES.check_rows(mesh, shards, "input.shards")
    records, encoder, config = experiment.ready("records"), text_encoder(experiment), experiment.validation
    batches = TrainBatches(RecordsReader(records), encoder, experiment.input, rows_here(mesh, shards))
    if config.every == 0:
        return mesh, batches, None
    held_out = RecordsReader(records, "validation")
    return mesh, batches, Validation(held_out, encoder, config, experiment.encode, mesh)


def _loop(
    experiment: Experiment,
    mesh: Mesh,
    batches: TrainBatches,
    validation: Validation | None,
    step: StepFunction,
    state: TrainState,
    position: np.ndarray,
    checkpoints: Checkpoints,
) -> TrainState:
    """Updates until the last step, saving, evaluating and logging on the way."""
    config, folder = experiment.train, checkpoints.folder
    steps = range(int(state.step), config.steps)
    running: deque[_Running] = deque()
    stacks = folder / f"stuck.{jax.process_index()}.txt"
    with (
        distributed.stop_on_sigterm() as stop,
        batches.from_position(steps.start, position, steps.stop) as feed,
        _monitor(experiment, folder, steps, batches, mesh) as monitor,
        Watchdog(stacks, config.stuck_after, config.stuck_floor_s, config.stuck_slow_s) as dog,
    ):
        for number, loaded in feed:
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, metrics = step(state, put_rows(loaded.batch, mesh))
            done = number + 1
            monitor.step(done, loaded.batch, metrics["loss"])
            stopping = stop(done)
            save = done % config.save_every == 0 or done == config.steps or stopping
            evaluate = experiment.validation.due(done, config.steps)
            report = save or evaluate or done % config.log_every == 0 or number == steps.start
            running.append((done, metrics["loss"], loaded.groups))
            _settle(running, 0 if report else 1, batches, dog)  # one stays in flight, so that the device never waits
            if evaluate:
                with dog.aside(), monitor.aside("validation"):
                    metrics |= validation.measure(state.model)
            if report:
                monitor.report(done, metrics, feed.waited_s)
                checkpoints.check()
            score = validation.score(metrics) if evaluate else None
            if save or checkpoints.improves(score):
                with dog.aside(), monitor.aside("checkpoint"):
                    checkpoints.save(done, {**vars(state), "position": put_rows(loaded.position, mesh)}, score)
            if stopping and done < config.steps:
                with dog.aside():
                    checkpoints.wait()
                raise Preempted(f"saved step {done} of {config.steps}; the same command continues")
    return state


def _settle(running: deque[_Running], left: int, batches: TrainBatches, dog: Watchdog) -> None:
    """Waits until `left` steps run; a loss that is no number ends the run before anything made with it is saved."""
    while len(running) > left:
        step, loss, groups = running.popleft()
        if not np.isfinite(loss):
            requests = ", ".join(batches.requests(groups[:8]))
            raise InputError(f"step {step}", f"the loss is {float(loss)}; its batch holds requests {requests}, ...; "
                             "lower optim.learning_rate, or look at these groups")  # fmt: skip
        dog.step_finished()


def _monitor(experiment: Experiment, folder: Path, steps: range, batches: TrainBatches, mesh: Mesh) -> Monitor:
    """What tells about the steps still to do."""
    meter = Meter(batches, experiment.model, mesh.devices.ravel())
    rate = optim.learning_rate_schedule(experiment.optim, steps.stop)
    return Monitor(experiment.monitor, folder, steps, meter, Hints(batches), rate, to_json(experiment))


def _first_state(
    experiment: Experiment, optimiser, mesh: Mesh, checkpoints: Checkpoints, batches: TrainBatches
) -> tuple[TrainState, np.ndarray]:
    """The state to start from and the data position that goes with it. In this order:

    1. the newest good checkpoint of this folder;
    2. the pre-trained weights that `model.init_from` names;
    3. random weights drawn from `seed`.
    """
    position = batches.start()
    if checkpoints.steps():
        rows = NamedSharding(mesh, RULES.spec(mesh, ("batch", None)))
        places = jax.ShapeDtypeStruct((experiment.input.shards, position.shape[1]), position.dtype, sharding=rows)
        _, saved = checkpoints.restore({**vars(abstract_state(experiment, optimiser, mesh)), "position": places})
        position = take_rows(saved.pop("position"))
        return TrainState(**saved), position
    model = hf_import.create(experiment.model, jax.random.key(experiment.seed), mesh)
    return jax.jit(partial(init_state, optimiser=optimiser))(model), position


def _open_folder(folder: Path, experiment: Experiment, made_of: dict[str, str]) -> None:
    """Makes the train folder, or checks that the run in it is this one."""
    if experiment.train.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    saved = folder / "run.json"
    if saved.is_file():
        earlier = json.loads(saved.read_text())
        fixed = (*FIXED_SECTIONS, *(["validation"] if experiment.validation.select != "last" else []))
        problems = differences(from_json(earlier["config"], str(saved)), experiment, fixed)
        changed = [name for name in made_of if earlier[name] != made_of[name]]
        problems += [f"the {name} changed since the run began" for name in changed]
        if problems:
            problems.append("give another --name or --workdir, or discard the earlier run: --train.fresh=True, once")
            raise InputError(f"{folder} holds a run of another config", problems)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # unsealed until the run is whole again
    saved.write_text(json.dumps({"config": to_json(experiment), **made_of}, indent=1) + "\n")


def main() -> None:
    """Trains the experiment of the command line."""
    distributed.initialize()
    experiment = distributed.together(partial(from_command_line, "train"))
    folder = run(experiment)
    if distributed.is_first():
        print(f"trained: {folder}\nnext: python -m crops_jax.encode --config FILE")


if __name__ == "__main__":
    run_command(main, distributed.leave)
