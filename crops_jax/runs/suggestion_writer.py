"""A writer of suggestions as a task: examples from the arm's shards, a BART, likelihood or preferences (OneSug)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from crops_jax.artifacts.folders import Folder
from crops_jax.batches.stream import Batches
from crops_jax.config import Experiment, differences
from crops_jax.errors import InputError
from crops_jax.models.bart import Bart
from crops_jax.models.bart_import import check_bart, load_bart
from crops_jax.models.hf_import import find_source
from crops_jax.runs.answers_task import AnswersTask
from crops_jax.runs.featurizer import tokenizer_of
from crops_jax.runs.folder import RUN, read_run
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.suggestions.batches import SuggestionBatch, SuggestionBatches
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.records import ExamplesReader
from crops_jax.training.writer import WriterObjective


class WriterTask(AnswersTask):
    """Trains on the arm's examples."""

    what = "writer"

    def __init__(self, experiment: Experiment, config: WriterConfig):
        super().__init__(experiment, config, WriterObjective(config))

    @cached_property
    def text(self) -> WriterText:
        """What the writer reads and writes, as tokens."""
        return WriterText(tokenizer_of(self.experiment), self.config)

    @cached_property
    def _records(self) -> ExamplesReader:
        return ExamplesReader(self.experiment.ready("records"))

    def abstract_batch(self, mesh: Mesh | AbstractMesh) -> SuggestionBatch:
        """A batch split over `mesh` by rows.

        Raises:
          InputError: the batch's shards do not divide over the mesh.
        """
        answers = self.config.answers
        return SuggestionBatch(
            **vars(self.abstract_texts(mesh, answers, self.config.max_query_tokens)),
            weight=self.rows(mesh, answers - 1, dtype=jnp.float32),
            reference=self.rows(mesh, answers, dtype=jnp.float32),
        )

    # The run.

    def checks(self) -> dict[str, Callable[[], str]]:
        """The tokeniser, the shards and that batches can be made of them, the weights to start from."""
        return {
            "tokenizer": lambda: self.text.tokenizer.fingerprint()[:12],
            "records": lambda: f"{len(self._records)} suggestions, {self.identity()['shards'][:12]}",
            "weights": self.told_start,
        }

    def identity(self) -> dict[str, str]:
        """The fingerprints of shards and tokeniser; and that batches can be made of them."""
        self._batches(range(self.experiment.input.shards))
        return {"shards": self._records.fingerprint(), "tokenizer": self.text.tokenizer.fingerprint()}

    def check_start(self) -> str:
        """The trained writer, or the checkpoint, that the run starts from."""
        if self.config.start:
            return f"the writer in {self._started_from()}"
        if self.config.init_from is None:
            return "random, from the seed"
        folder = find_source(self.config.init_from)
        check_bart(folder, self.config.model)
        return self.config.init_from

    def _started_from(self) -> Path:
        e, folder = self.experiment, self.experiment.arm("train", self.config.start)
        if not (folder / RUN).is_file():
            said = f"{folder} holds no run; train that arm first (python -m crops_jax.suggest)"
            raise InputError(f"suggest.start = {self.config.start!r}", said)
        other, made_of = read_run(folder)
        problems = []
        if not isinstance(other.suggest, WriterConfig):
            problems.append("trains no writer")
        elif other.suggest.model != self.config.model:
            problems += differences(other, e, ("suggest",), tuple(
                f"suggest.{name}" for name in vars(self.config) if name != "model"
            ))  # fmt: skip
        if made_of.get("tokenizer") != self.text.tokenizer.fingerprint():
            problems.append("its tokeniser is another one")
        if problems:
            raise InputError(f"suggest.start = {self.config.start!r}: no writer to start from", problems)
        return folder

    def first_model(self, mesh: Mesh) -> Bart:
        """The arm or the checkpoint that the config names, else random weights from `seed`."""
        if self.config.start:
            return self.restored(self._started_from(), mesh)
        if self.config.init_from is not None:
            return load_bart(find_source(self.config.init_from), mesh)
        return super().first_model(mesh)

    def _batches(self, shards: Sequence[int]) -> Batches:
        return SuggestionBatches(self._records, self.text, self.experiment.input, shards)

    def export(self, model: Bart, out: Folder) -> None:
        """`python -m crops_jax.suggest` writes it, with the queries that it was trained to know."""
        raise InputError("export", "python -m crops_jax.suggest exports a writer of suggestions")
