"""`python -m crops_jax.train --config configs/demo.py [--section.field=value ...]`: trains a dual encoder.

Reads the arm's record shards, writes the arm's `train` folder: resolved config, checkpoints, metrics. Started again
after a kill it continues where the last checkpoint stands, with the same batches and the same losses. Started as one of
several processes (SLURM, Open MPI, Cloud TPU, Kubernetes, launch/local_multiprocess.py) it joins the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from crops_jax import __version__
from crops_jax.artifacts import seal
from crops_jax.batches.stream import TrainBatches
from crops_jax.command_line import from_command_line
from crops_jax.config import Experiment, flat, to_json
from crops_jax.errors import InputError, Preempted, run_command
from crops_jax.models import hf_import
from crops_jax.parallel import processes
from crops_jax.parallel.sharding import RULES, put_rows, take_rows
from crops_jax.runs.abstract import abstract_state
from crops_jax.runs.folder import open_folder, settings
from crops_jax.runs.inputs import TrainInputs, train_inputs
from crops_jax.training import optim
from crops_jax.training.checkpoint import Checkpoints
from crops_jax.training.monitor import Monitor
from crops_jax.training.step import StepFunction, TrainState, init_state
from crops_jax.training.throughput import Hints, Meter
from crops_jax.training.watchdog import Watchdog


class _Running(NamedTuple):
    """A step that is not yet seen to have finished."""

    number: int
    health: dict[str, jax.Array]  # what has to be finite, or the state after the step is not worth saving
    group_numbers: np.ndarray


def run(experiment: Experiment) -> Path:
    """Trains until `experiment.train.steps` and returns the sealed train folder; every process of the run calls it.

    Raises:
      InputError: whatever `runs.inputs` refuses, a folder that holds a run of another config, processes that were
        started differently, a step that is not finite, no room for a checkpoint.
      Preempted: SIGTERM arrived; the state is saved and the same command continues.
    """
    folder, config = experiment.arm_folder("train"), experiment.train
    inputs = processes.together(partial(train_inputs, experiment))
    processes.require_same({**flat(experiment), **inputs.made_of, "code": __version__, "jax": jax.__version__})
    processes.first(partial(open_folder, folder, experiment, inputs.made_of))

    stacks = folder / f"stuck.{jax.process_index()}.txt"
    with (
        jax.set_mesh(inputs.mesh),
        Watchdog(stacks, config.stuck_after, config.stuck_floor_s, config.stuck_slow_s) as dog,
        Checkpoints(folder, config.keep, config=settings(experiment)) as checkpoints,
    ):
        with dog.slow_work():
            state, position = _first_state(experiment, inputs, checkpoints)
        with dog.slow_work():
            step = inputs.step.compile()  # here, and never again in this run
            processes.wait_for_all("compiled")  # a first collective does not wait for ever for a slower host
        state = _loop(experiment, inputs, step, state, position, checkpoints, dog)
        with dog.slow_work():
            checkpoints.wait()
    counts = {"steps": int(state.step), "groups": len(inputs.batches.reader)}
    made_from = {"records": inputs.batches.reader.folder}
    processes.first(partial(seal, folder, kind="train", config=settings(experiment), inputs=made_from, counts=counts))
    return folder


def _loop(
    experiment: Experiment,
    inputs: TrainInputs,
    step: StepFunction,
    state: TrainState,
    position: np.ndarray,
    checkpoints: Checkpoints,
    dog: Watchdog,
) -> TrainState:
    """Updates until the last step, saving, evaluating and logging on the way."""
    config, mesh, batches = experiment.train, inputs.mesh, inputs.batches
    steps = range(int(state.step), config.steps)
    running: deque[_Running] = deque()
    with (
        processes.stop_on_sigterm() as stop,
        batches.from_position(steps.start, position, steps.stop) as feed,
        _monitor(experiment, checkpoints.folder, steps, batches, mesh) as monitor,
        dog.ending_slowly(),
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
            health = {name: metrics[name] for name in ("loss", "gradient_norm", "update_norm")}
            running.append(_Running(done, health, loaded.group_numbers))
            # One stays in flight, so that the device never waits.
            _settle(running, 0 if report else 1, batches, checkpoints.folder, dog)
            if evaluate:
                with dog.slow_work(), monitor.timed_apart("validation"):
                    metrics |= inputs.validation.measure(state.model)
            if report:
                monitor.report(done, metrics, feed.waited_s)
                checkpoints.check()
            score = inputs.validation.score(metrics) if evaluate else None
            if save or checkpoints.improves(score):
                with dog.slow_work(), monitor.timed_apart("checkpoint"):
                    checkpoints.save(done, {**vars(state), "position": put_rows(loaded.position, mesh)}, score)
            if stopping and done < config.steps:
                with dog.slow_work():
                    checkpoints.wait()
                raise Preempted(f"saved step {done} of {config.steps}; the same command continues")
    return state


def _settle(running: deque[_Running], left: int, batches: TrainBatches, folder: Path, dog: Watchdog) -> None:
    """Waits until `left` steps run; one that is not finite ends the run before anything made with it is saved."""
    while len(running) > left:
        step = running.popleft()
        wrong = [f"the {name} is {float(value)}" for name, value in step.health.items() if not np.isfinite(value)]
        if wrong:
            requests, listed = batches.requests(step.group_numbers), folder / f"not_finite.{jax.process_index()}.txt"
            listed.write_text("\n".join(requests) + "\n")
            raise InputError(
                f"step {step.number}",
                f"{', '.join(wrong).replace('_', ' ')}; its batch holds requests {', '.join(requests[:8])}, ... (all: "
                f"{listed}); look at these groups, or begin again (--name, --train.fresh=True) with a lower "
                "optim.learning_rate",
            )
        dog.step_finished()


def _monitor(experiment: Experiment, folder: Path, steps: range, batches: TrainBatches, mesh: Mesh) -> Monitor:
    """What tells about the steps still to do."""
    meter = Meter(batches, experiment.model, mesh.devices.ravel())
    rate = optim.learning_rate_schedule(experiment.optim, steps.stop)
    return Monitor(experiment.monitor, folder, steps, meter, Hints(batches), rate, to_json(experiment))


def _first_state(
    experiment: Experiment, inputs: TrainInputs, checkpoints: Checkpoints
) -> tuple[TrainState, np.ndarray]:
    """The state to start from and the data position that goes with it. In this order:

    1. the newest good checkpoint of this folder;
    2. the pre-trained weights that `model.init_from` names;
    3. random weights drawn from `seed`.
    """
    position, mesh = inputs.batches.start(), inputs.mesh
    if checkpoints.steps():
        rows = NamedSharding(mesh, RULES.spec(mesh, ("batch", None)))
        places = jax.ShapeDtypeStruct((experiment.input.shards, position.shape[1]), position.dtype, sharding=rows)
        wanted = {**vars(abstract_state(experiment, inputs.optimiser, mesh)), "position": places}
        _, saved = checkpoints.restore(wanted)
        position = take_rows(saved.pop("position"))
        return TrainState(**saved), position
    model = hf_import.create(experiment.model, jax.random.key(experiment.seed), mesh)
    return jax.jit(partial(init_state, optimiser=inputs.optimiser))(model), position


@contextmanager
def _telling_of_memory() -> Iterator[None]:
    """A step that does not fit the devices is no bug: says what takes less."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            "device memory",
            f"{str(error).splitlines()[0]}; --model.remat=full, --gradcache.doc_micro_batches, a larger mesh.data or a "
            "smaller input take less; python -m crops_jax.compile_check lists what a TPU would hold",
        ) from error


def main() -> None:
    """Trains the experiment of the command line."""
    processes.initialize()
    with processes.noticing_lost_peers(), _telling_of_memory():
        experiment = processes.together(partial(from_command_line, "train"))
        folder = run(experiment)
    if processes.is_first():
        print(f"trained: {folder}\nnext: python -m crops_jax.encode --config FILE")


if __name__ == "__main__":
    run_command(main, processes.leave)
