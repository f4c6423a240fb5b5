"""A task says what the training loop does not know: what is trained, on what, and what is measured.

The loop (`crops_jax.train`) owns steps, checkpoints, resume, the watchdog, metrics and validation, and is the same for
every method. A run is a sequence of rounds, each of some steps on one set of records; between two rounds something may
be computed from the model as it is then: negatives, document vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from crops_jax.artifacts.folders import Folder
from crops_jax.batches.stream import Batches
from crops_jax.config import Experiment
from crops_jax.cost.flops import Texts
from crops_jax.errors import InputError
from crops_jax.parallel.sharding import RULES, abstract_on
from crops_jax.runs.folder import RUN
from crops_jax.training import optim
from crops_jax.training.step import Constants, Model, Objective, TrainState, build_step, init_state
from crops_jax.training.throughput import BatchCounts, Counts
from crops_jax.training.validation import Validation


@dataclass(frozen=True)
class Round:
    """A stretch of a run: the steps from `start` up to `stop`, on one set of records."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class RoundInputs:
    """What the steps of a round take."""

    batches: Batches  # as far as this process feeds them
    constants: Constants = None  # handed to the objective


class Task(ABC):
    """One way to train a model for an experiment. Making one reads no file and makes no array; it raises InputError
    where no weight of the model would be trained.
    """

    def __init__(self, experiment: Experiment, objective: Objective):
        self.experiment, self.objective = experiment, objective
        groups = jax.tree.map(lambda leaf: leaf.group, self.described)
        if not {*jax.tree.leaves(groups)} - {"frozen", "tau"}:
            said = "every weight is frozen: at most the temperature would be trained; leave layers or a tower to train"
            raise InputError("model.frozen", said)
        self.optimiser = optim.build(experiment.optim, groups, experiment.train.steps)

    @property
    def dtype(self) -> str:
        """Compute type of the step."""
        return self.experiment.model.dtype

    @property
    def remat(self) -> str:
        """What its backward pass recomputes."""
        return self.experiment.model.remat

    @abstractmethod
    def check_start(self) -> str:
        """What the run starts from, in words; looked at without loading it.

        Raises:
          InputError: it is missing, damaged, or does not fit.
        """

    def told_start(self) -> str:
        """What the run starts from, or that there is a run to go on with. Raises InputError as `check_start`."""
        if (self.experiment.arm_folder("train") / RUN).is_file() and not self.experiment.train.fresh:
            return "those of the run in the train folder"
        return self.check_start()

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds of the run, one after the other: one, unless the method has more."""
        return (Round(0, 0, self.experiment.train.steps),)

    # Shapes: enough to check, to compile ahead and to restore.

    @property
    @abstractmethod
    def described(self) -> Model:
        """The model with a `sharding.Leaf` in the place of every array."""

    def check(self, mesh: Mesh | AbstractMesh) -> None:
        """Raises InputError unless the mesh fits the model and the batch; lists all that does not."""
        problems = []
        for check in (
            partial(RULES.check, mesh, self.described),
            partial(RULES.check_rows, mesh, self.experiment.input.shards, "input.shards"),
        ):
            try:
                check()
            except InputError as error:
                problems += error.problems
        if problems:
            raise InputError(f"mesh {dict(mesh.shape)}", problems)

    def abstract_model(self, mesh: Mesh | AbstractMesh) -> Model:
        """The model as shapes, dtypes and shardings."""
        return abstract_on(self.described, mesh)

    @abstractmethod
    def abstract_batch(self, mesh: Mesh | AbstractMesh) -> Any:
        """A batch of the run, likewise."""

    def abstract_constants(self, mesh: Mesh | AbstractMesh) -> Constants:
        """What rounds hand to the objective, likewise."""
        return None

    def abstract_state(self, mesh: Mesh | AbstractMesh) -> TrainState:
        """The state of the run on `mesh`, which must be the ambient one."""
        start = partial(init_state, objective=self.objective, optimiser=self.optimiser)
        shapes = jax.eval_shape(start, self.abstract_model(mesh))

        def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = leaf.sharding.spec if leaf.sharding is not None else jax.P()
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree.map(placed, shapes)

    def traced_step(self, mesh: Mesh | AbstractMesh) -> jax.stages.Traced:
        """The step that the run takes: traced on `mesh`, which must be the ambient one; its state is donated."""
        update = jax.jit(build_step(self.objective, self.optimiser), donate_argnums=0)
        return update.trace(self.abstract_state(mesh), self.abstract_batch(mesh), self.abstract_constants(mesh))

    # The run.

    @abstractmethod
    def checks(self) -> dict[str, Callable[[], str]]:
        """Checks of what the run reads, by name: each says what it found, or raises InputError."""

    @property
    def made_from(self) -> dict[str, Path]:
        """The folders that the run is made from, by name: its manifest tells of them."""
        return {"records": self.experiment.ready("records")}

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What the run is made of, by name: it goes on with the same alone. Checks that it is there and fits.

        Raises:
          InputError: shards, tokeniser or weights are missing or wrong.
        """

    @abstractmethod
    def first_model(self, mesh: Mesh) -> Model:
        """The model before the first update: pre-trained weights, or random ones from the experiment's seed."""

    @abstractmethod
    def open(self, part: Round, model: Model, mesh: Mesh, again: bool) -> RoundInputs:
        """What a round takes. Every process of a run calls it, with the model as it is when the round begins.

        Args:
          again: the run stands within the round, and what was computed for it is taken as it lies in the run's folder;
            `model` is then another one.
        """

    @abstractmethod
    def validation(self, mesh: Mesh) -> Validation | None:
        """What is measured while training; None where nothing is."""

    @abstractmethod
    def export(self, model: Model, out: Folder) -> None:
        """Writes what the serving team takes into `out`. Called without an ambient mesh."""

    # What there is to tell.

    @abstractmethod
    def count(self, batch: Any) -> BatchCounts:
        """What this process's rows of a batch (numpy) hold and cost."""

    @abstractmethod
    def hints(self, counts: Counts) -> Iterator[str]:
        """What to change where the run does less than it could; asked after every metrics line."""

    @abstractmethod
    def slots(self, batch: Any) -> dict[str, Texts]:
        """Every slot that is computed for an abstract batch, by side."""

    @abstractmethod
    def step_flops(self, batch: Any) -> int:
        """Analytic FLOPs of a step that fills every slot."""


def folder_of_round(train_folder: Path, part: Round) -> Path:
    """Where a round keeps what was computed for it."""
    return train_folder / "rounds" / f"{part.number:04d}"
