"""A generator as a task: graded groups of an arm's shards and the ids of all items, a BART that writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from crops_jax.artifacts.folders import Folder
from crops_jax.artifacts.manifest import fingerprint
from crops_jax.batches.stream import Batches
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.generative.examples import GradedBatch, GradedExamples, batches_of
from crops_jax.generative.item_ids import identity
from crops_jax.generative.reading import GeneratorText
from crops_jax.models.bart import Bart
from crops_jax.records import RecordsReader
from crops_jax.retrieval.corpus import read_corpus
from crops_jax.runs.answers_task import AnswersTask
from crops_jax.runs.featurizer import tokenizer_of
from crops_jax.runs.item_ids import generator_of, ready_item_ids
from crops_jax.training.generator import GradedLikelihood


def learned_from(experiment: Experiment) -> dict[str, Path]:
    """The folders that a generator is trained on: the logs, too, where the items' texts are read."""
    logs = {"logs": experiment.folder("logs")} if generator_of(experiment).item_texts else {}
    return {kind: experiment.arm_folder(kind) for kind in ("records", "item_ids")} | logs


class GeneratorTask(AnswersTask):
    """Trains on graded groups, and on the items' texts."""

    what = "generator"

    def __init__(self, experiment: Experiment, config: GeneratorConfig):
        super().__init__(experiment, config, GradedLikelihood(config))

    @cached_property
    def text(self) -> GeneratorText:
        """Queries and item ids as tokens."""
        return GeneratorText(tokenizer_of(self.experiment), ready_item_ids(self.experiment), self.config)

    @cached_property
    def _examples(self) -> GradedExamples:
        e = self.experiment
        reader = RecordsReader(e.ready("records"), sources=e.input.sources)
        texts: list[str] = []
        if self.config.item_texts:
            corpus = read_corpus(e.ready_logs(), e.text.field_order)
            if not np.array_equal(corpus.item_ids, self.text.ids.items):
                said = "are of other items than the logs; encode them again (python -m crops_jax.pipeline)"
                raise InputError(str(e.arm_folder("item_ids")), said)
            texts = corpus.texts
        return GradedExamples(reader, self.text.ids, texts, self.config, e.seed)

    def abstract_batch(self, mesh: Mesh | AbstractMesh) -> GradedBatch:
        """A batch split over `mesh` by rows.

        Raises:
          InputError: the batch's shards do not divide over the mesh.
        """
        texts = self.abstract_texts(mesh, self.config.positives, self.config.id_tokens)
        return GradedBatch(**vars(texts), share=self.rows(mesh, self.config.positives, dtype=jnp.float32))

    # The run.

    @property
    def made_from(self) -> dict[str, Path]:
        """Records, item ids and logs, as `learned_from`."""
        return learned_from(self.experiment)

    def checks(self) -> dict[str, Callable[[], str]]:
        """The tokeniser, the ids, the shards and that batches can be made of them."""
        return {
            "tokenizer": lambda: self.text.tokenizer.fingerprint()[:12],
            "item ids": lambda: f"{len(self.text.ids.items)} of up to {self.text.ids.sizes} codes",
            "records": lambda: f"{len(self._examples)} groups and texts, {self.identity()['shards'][:12]}",
            "weights": self.told_start,
        }

    def identity(self) -> dict[str, str]:
        """The fingerprints of shards, tokeniser, ids and texts; and that batches can be made of them."""
        self._batches(range(self.experiment.input.shards))
        texts = {"logs": fingerprint(self.experiment.ready("logs"))} if self.config.item_texts else {}
        return {"shards": self._examples.reader.fingerprint(), **self.written(), **texts}

    def written(self) -> dict[str, str]:
        """The fingerprints of tokeniser and ids, without which what it writes means nothing."""
        ids = identity(self.experiment.ready("item_ids"))
        return {"tokenizer": self.text.tokenizer.fingerprint(), "item_ids": ids}

    def check_start(self) -> str:
        """Nothing is loaded."""
        return "random, from the seed"

    def _batches(self, shards: Sequence[int]) -> Batches:
        return batches_of(self._examples, self.text, self.experiment.input, shards)

    def export(self, model: Bart, out: Folder) -> None:
        """There is no form of it that a server loads."""
        raise InputError("export", "a generator is compared with dual encoders, not exported (docs/generative.md)")
