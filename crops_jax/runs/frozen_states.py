"""The states of frozen layers (`models.frozen_states`) of an experiment, and batches that bring them along."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from crops_jax.batch import Tokens
from crops_jax.batches.collate import encode_texts
from crops_jax.batches.stream import Loaded, TrainBatches
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.models.frozen_states import FrozenStates

_GROUPS = 1 << 13  # read at a time


def frozen_states(experiment: Experiment, model: DualEncoder) -> FrozenStates | None:
    """The kept states of the frozen layers of the experiment's model; None where they are not kept.

    Raises:
      InputError: the run has several processes.
    """
    if not experiment.model.frozen.keep_states:
        return None
    if jax.process_count() > 1:
        raise InputError("model.frozen.keep_states", "is for a run of one process; set it to False in one of several")
    return FrozenStates(Path(experiment.workdir) / "frozen_states", model)


class FilledBatches:
    """The batches of a run, each text with what the frozen layers make of it."""

    def __init__(self, batches: TrainBatches, states: FrozenStates, model: DualEncoder, mesh: Mesh):
        """Computes the states of all texts of the batches' groups that are not kept yet."""
        self._batches, self._states, self.config = batches, states, batches.config
        for queries, docs in _texts(batches):
            states.prepare(model, "query", queries, mesh)
            states.prepare(model, "document", docs, mesh)

    def start(self) -> np.ndarray:
        """As `Batches`."""
        return self._batches.start()

    def load(self, position: np.ndarray) -> Loaded:
        """As `Batches`."""
        loaded = self._batches.load(position)
        batch = loaded.batch
        filled = {"query": self._states.fill("query", batch.query), "docs": self._states.fill("document", batch.docs)}
        return replace(loaded, batch=replace(batch, **filled))

    def requests(self, groups: np.ndarray) -> list[str]:
        """As `Batches`."""
        return self._batches.requests(groups)


def _texts(batches: TrainBatches) -> Iterator[tuple[Tokens, Tokens]]:
    """(queries, documents) of all groups, some groups at a time."""
    for start in range(0, len(batches.reader), _GROUPS):
        numbers = range(start, min(start + _GROUPS, len(batches.reader)))
        queries, docs = encode_texts(batches.reader.read(numbers), batches.featurizer)
        yield Tokens(*queries), Tokens(*docs)
