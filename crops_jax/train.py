"""`python -m crops_jax.train --config configs/demo.py [--section.field=value ...]`: trains an arm.

An arm is a dual encoder, a writer of suggestions or a generator of item ids. Reads its record shards, writes its
`train` folder: resolved config, checkpoints, metrics. Started again after a kill it continues where the last checkpoint
stands, with the same batches and the same losses. Started as one of several processes (SLURM, Open MPI, Cloud TPU,
Kubernetes, launch/local_multiprocess.py) it joins the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from crops_jax import __version__
from crops_jax.artifacts.manifest import seal
from crops_jax.batches.prefetch import Prefetcher
from crops_jax.batches.stream import Batches, position_shape
from crops_jax.command_line import from_command_line, next_command
from crops_jax.config import Experiment, flat, to_json
from crops_jax.errors import Diverged, InputError, Preempted, run_command
from crops_jax.generative.config import GeneratorConfig
from crops_jax.parallel import processes
from crops_jax.parallel.sharding import RULES, put_rows, rows_here, take_rows
from crops_jax.runs.compiled import keep_compiled
from crops_jax.runs.folder import (
    began_otherwise,
    held,
    open_folder,
    settings,
    start_identity,
    start_of,
    trained_by,
    trains_dual_encoder,
)
from crops_jax.runs.inputs import TrainInputs, train_inputs
from crops_jax.runs.start import first_moments
from crops_jax.runs.task import Round
from crops_jax.training import optim
from crops_jax.training.checkpoint import BEST_STEP, Checkpoints
from crops_jax.training.monitor import Monitor
from crops_jax.training.step import StepFunction, TrainState, init_state
from crops_jax.training.throughput import Meter
from crops_jax.training.watchdog import Watchdog


def run(experiment: Experiment) -> Path:
    """Trains until `experiment.train.steps` and returns the sealed train folder; every process of the run calls it.

    Raises:
      InputError: whatever `runs.inputs` refuses, a folder that holds a run of another config or a longer one, or in
        which another command trains, processes that were started differently, a step that is not finite, no room for a
        checkpoint.
      Preempted: SIGTERM or Ctrl-C arrived; the state is saved and the same command continues.
    """
    begun = monotonic()
    folder = experiment.arm_folder("train")
    keep_compiled(experiment)
    inputs = processes.together(partial(train_inputs, experiment))
    processes.require_same({**flat(experiment), **inputs.made_of, "code": __version__, "jax": jax.__version__})
    with held(folder):
        _trained(experiment, inputs, begun)
    return folder


def _trained(experiment: Experiment, inputs: TrainInputs, begun: float) -> None:
    """What is left of the run, in its folder, which is sealed at the end."""
    folder, config = experiment.arm_folder("train"), experiment.train
    version = trained_by(folder, __version__)
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
        steps = range(int(state.step), config.steps)
        if steps:
            version = __version__
        with (
            processes.stop_on_signal() as stop,
            _monitor(experiment, folder, steps, inputs) as monitor,
            dog.ending_slowly(),
        ):
            loop = _Loop(experiment, inputs, step, checkpoints, monitor, dog, stop, begun)
            for part in inputs.task.rounds:
                if part.stop > int(state.step):
                    state, position = loop.over(part, state, position)
        with dog.slow_work():
            checkpoints.wait()
        best = processes.first(checkpoints.best_step)
    counts = {"steps": int(state.step), "rounds": len(inputs.task.rounds)}
    counts |= {} if best is None else {BEST_STEP: best}
    processes.first(partial(_seal, folder, experiment, inputs.task.made_from, counts, version))


def _seal(
    folder: Path, experiment: Experiment, made_from: Mapping[str, Path], counts: Mapping[str, int], version: str
) -> None:
    """Writes the manifest of a finished run. A start that was trained again meanwhile is not what it was made from."""
    start = {} if began_otherwise(folder, start_identity(experiment)) else start_of(experiment)
    made_from = {**made_from, **start}
    seal(folder, kind="train", config=settings(experiment), inputs=made_from, counts=counts, code_version=version)


class _Running(NamedTuple):
    """A step that is not yet seen to have finished."""

    number: int
    health: dict[str, jax.Array]  # what has to be finite, or the state after the step is not worth saving
    group_numbers: np.ndarray


@dataclass
class _Loop:
    """The steps of a run: it updates, saves, evaluates and logs, and knows nothing of what is trained."""

    experiment: Experiment
    inputs: TrainInputs
    step: StepFunction
    checkpoints: Checkpoints
    monitor: Monitor
    dog: Watchdog
    stop: Callable[[int], bool]
    begun: float  # when the command did, by the monotonic clock
    waited_s: float = 0.0  # for data, in the rounds before this one

    def over(self, part: Round, state: TrainState, position: np.ndarray | None) -> tuple[TrainState, None]:
        """The steps of a round that are still to do.

        Args:
          position: where reading goes on in the round; None at its beginning.
        """
        config, mesh = self.experiment.train, self.inputs.mesh
        with self.dog.slow_work(), self.monitor.timed_apart("round"):
            self.checkpoints.wait()  # a kill while the round is made ready goes on from here
            given = self.inputs.task.open(part, state.model, mesh, again=int(state.step) > part.start)
        start = given.batches.start() if position is None else position
        running: deque[_Running] = deque()
        with Prefetcher(given.batches, int(state.step), start, part.stop) as feed:
            for number, loaded in feed:
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    state, metrics = self.step(state, put_rows(loaded.batch, mesh), given.constants)
                done = number + 1
                self.monitor.step(done, loaded.batch, metrics["loss"])
                stopping = self.stop(done)
                save = done % config.save_every == 0 or done == part.stop or stopping
                evaluate = self.experiment.validation.due(done, config.steps)
                report = save or evaluate or done % config.log_every == 0 or self.monitor.is_first(done)
                health = {name: metrics[name] for name in ("loss", "gradient_norm", "update_norm")}
                running.append(_Running(done, health, loaded.group_numbers))
                # One stays in flight, so that the device never waits.
                self._settle(running, 0 if report else 1, given.batches)
                if self.monitor.is_first(done):
                    metrics["first_step_s"] = monotonic() - self.begun
                if evaluate:
                    with self.dog.slow_work(), self.monitor.timed_apart("validation"):
                        metrics |= self.inputs.validation.measure(state.model)
                if report:
                    self.monitor.report(done, metrics, self.waited_s + feed.waited_s)
                    self.checkpoints.check()
                score = self.inputs.validation.score(metrics) if evaluate else None
                if save or self.checkpoints.improves(score):
                    with self.dog.slow_work(), self.monitor.timed_apart("checkpoint"):
                        saved = {**vars(state), "position": put_rows(loaded.position, mesh)}
                        self.checkpoints.save(done, saved, score)
                if stopping and done < config.steps:
                    with self.dog.slow_work():
                        self.checkpoints.wait()
                    raise Preempted(f"saved step {done} of {config.steps}; the same command continues")
            self.waited_s += feed.waited_s
        return state, None

    def _settle(self, running: deque[_Running], left: int, batches: Batches) -> None:
        """Waits until `left` steps run; one that is not finite ends the run before anything made with it is saved."""
        while len(running) > left:
            step = running.popleft()
            wrong = [f"the {name} is {float(value)}" for name, value in step.health.items() if not np.isfinite(value)]
            if wrong:
                listed = self.checkpoints.folder / f"not_finite.{jax.process_index()}.txt"
                requests = batches.requests(step.group_numbers)
                listed.write_text("\n".join(requests) + "\n")
                raise Diverged(
                    f"step {step.number}",
                    f"{', '.join(wrong).replace('_', ' ')}; its batch holds requests {', '.join(requests[:8])}, ... "
                    f"(all: {listed}); look at these groups, or begin again (--name, --train.fresh=True) with a lower "
                    "optim.learning_rate",
                )
            self.dog.step_finished()


def _monitor(experiment: Experiment, folder: Path, steps: range, inputs: TrainInputs) -> Monitor:
    """What tells about the steps still to do."""
    task, shards = inputs.task, experiment.input.shards
    of_run = shards / len(rows_here(inputs.mesh, shards))
    meter = Meter(task.count, of_run, task.dtype, inputs.mesh.devices.ravel())
    rate = optim.learning_rate_schedule(experiment.optim, steps.stop)
    return Monitor(experiment.monitor, folder, steps, meter, task.hints, rate, to_json(experiment))


def _first_state(
    experiment: Experiment, inputs: TrainInputs, checkpoints: Checkpoints
) -> tuple[TrainState, np.ndarray | None]:
    """The state to start from, and where reading goes on, None at the beginning of a round. In this order:

    1. the newest good checkpoint of this folder;
    2. the weights that `model.init_from` names, and the optimiser where it names a step;
    3. random weights drawn from `seed`.
    """
    task, mesh = inputs.task, inputs.mesh
    if checkpoints.steps():
        rows = NamedSharding(mesh, RULES.spec(mesh, ("batch", None)))
        places = jax.ShapeDtypeStruct(position_shape(experiment.input), np.int32, sharding=rows)
        _, saved = checkpoints.restore({**vars(task.abstract_state(mesh)), "position": places})
        position = take_rows(saved.pop("position"))
        begins = int(saved["step"]) in {part.start for part in task.rounds}
        return TrainState(**saved), None if begins else position
    begin = partial(init_state, objective=task.objective, optimiser=task.optimiser)
    state = jax.jit(begin)(task.first_model(mesh))
    moments = first_moments(experiment, task.abstract_state(mesh).opt_state)
    return state if moments is None else replace(state, opt_state=moments), None


@contextmanager
def _telling_of_memory(experiment: Experiment) -> Iterator[None]:
    """A step that does not fit the devices is no bug: says what takes less."""
    less = "--model.remat=full, --gradcache.doc_micro_batches, a larger mesh.data"
    if not trains_dual_encoder(experiment):
        less = "--suggest.remat=full, a larger mesh.data"
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            "device memory",
            f"{str(error).splitlines()[0]}; {less} or a smaller input take less; "
            "python -m crops_jax.compile_check lists what a TPU would hold",
        ) from error


def main() -> None:
    """Trains the experiment of the command line."""
    processes.initialize()
    with processes.noticing_lost_peers():
        experiment = processes.together(partial(from_command_line, "train"))
        with _telling_of_memory(experiment):
            folder = run(experiment)
    if processes.is_first():
        print(f"trained: {folder}\nnext: {_next(experiment)}")


def _next(experiment: Experiment) -> str:
    match experiment.suggest:
        case None:
            return next_command("encode")
        case GeneratorConfig():
            return "python -m crops_jax.pipeline --configs FILE..., which keeps this run and evaluates it"
    return "python -m crops_jax.suggest --configs FILE..., which keeps this run and goes on"


if __name__ == "__main__":
    run_command(main, processes.leave)
