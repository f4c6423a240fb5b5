"""What tasks that train an encoder-decoder on answers have in common: suggestions that are written, ids of items."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from crops_jax.batch import Tokens
from crops_jax.batches.stream import Batches
from crops_jax.config import Experiment
from crops_jax.cost.flops import Texts, writer_step_flops
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.models import bart
from crops_jax.models.bart import Bart
from crops_jax.parallel.sharding import RULES, rows_here
from crops_jax.runs.task import Round, RoundInputs, Task
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.suggestions.batches import AnswersBatch
from crops_jax.training.checkpoint import Checkpoints
from crops_jax.training.config import GradCacheConfig
from crops_jax.training.step import Objective
from crops_jax.training.throughput import BatchCounts, Counts
from crops_jax.training.validation import Validation


class AnswersTask(Task):
    """Trains a BART to write answers, in one round."""

    what = "encoder-decoder"
    """Its name in messages."""

    def __init__(self, experiment: Experiment, config: WriterConfig | GeneratorConfig, objective: Objective):
        problems = []
        if experiment.validation.every:
            problems.append(f"validation.every: it ranks with a dual encoder, which a {self.what} is not; set it to 0")
        if experiment.input.packing is not None:
            problems.append(f"input.packing: a {self.what}'s rows are not packed; set it to None")
        if experiment.gradcache != GradCacheConfig():
            problems.append(f"gradcache: a {self.what}'s step has no micro-batches; suggest.remat takes less memory")
        if not experiment.text.append_eos:
            problems.append(f"text.append_eos = False: a {self.what} needs a token that ends a text (text.eos_token)")
        if problems:
            raise InputError(f"experiment of a {self.what}", problems)
        self.config = config
        super().__init__(experiment, objective)

    @property
    def dtype(self) -> str:
        """That of the encoder-decoder."""
        return self.config.dtype

    @property
    def remat(self) -> str:
        """That of the encoder-decoder."""
        return self.config.remat

    @property
    def described(self) -> Bart:
        """Encoder and decoder."""
        return Bart(self.config.model)

    def rows(self, mesh: Mesh | AbstractMesh, *shape: int, dtype: jnp.dtype = jnp.int32) -> jax.ShapeDtypeStruct:
        """An array of a batch, [B, *shape], split over `mesh` by rows.

        Raises:
          InputError: the batch's shards do not divide over the mesh.
        """
        RULES.check_rows(mesh, self.experiment.input.shards, "input.shards")
        whole = (self.experiment.input.batch_queries, *shape)
        spec = RULES.spec(mesh, ("batch",) + (None,) * len(shape))
        return jax.ShapeDtypeStruct(whole, dtype, sharding=NamedSharding(mesh, spec))

    def abstract_texts(self, mesh: Mesh | AbstractMesh, answers: int, slots: int) -> AnswersBatch:
        """What every batch has: B texts, A answers of each."""
        source = Tokens(self.rows(mesh, self.config.max_source_tokens), self.rows(mesh))
        written = self.rows(mesh, answers, slots)
        return AnswersBatch(source, written, Tokens(written, self.rows(mesh, answers)))

    def first_model(self, mesh: Mesh) -> Bart:
        """Random weights from `seed`."""
        return bart.init(self.config.model, jax.random.key(self.experiment.seed), RULES)

    def restored(self, folder: Path, mesh: Mesh) -> Bart:
        """The newest good weights of a run of the same shape."""
        with Checkpoints(folder, read_only=True) as checkpoints:
            return checkpoints.restore(self.abstract_model(mesh), part="model")[1]

    def open(self, part: Round, model: Bart, mesh: Mesh, again: bool) -> RoundInputs:
        """The arm's examples."""
        return RoundInputs(self._batches(rows_here(mesh, self.experiment.input.shards)))

    @abstractmethod
    def _batches(self, shards: Sequence[int]) -> Batches:
        """The examples, as far as a process reads these shards of them."""

    def validation(self, mesh: Mesh) -> Validation | None:
        """Nothing while training: what it writes is measured on the test day."""
        return None

    # What there is to tell.

    def count(self, batch: AnswersBatch) -> BatchCounts:
        """Rows, answers and tokens."""
        read, written = (np.asarray(tokens.length) for tokens in (batch.source, batch.answers))
        tokens = {"source": int(read.sum()), "answer": int(written.sum())}
        real = {side: replace(texts, tokens=tokens[side]) for side, texts in self.slots(batch).items()}
        flops = writer_step_flops(self.config.model, real["source"], real["answer"])
        slots = batch.source.ids.size + batch.answers.ids.size
        return BatchCounts(len(read), int((written > 0).sum()), tokens, slots, flops)

    def hints(self, counts: Counts) -> Iterator[str]:
        """None."""
        yield from ()

    def slots(self, batch: AnswersBatch) -> dict[str, Texts]:
        """Those of the encoder and of the decoder."""
        rows, slots = batch.source.ids.shape
        _, answers, written = batch.answers.ids.shape
        return {
            "source": Texts(rows * slots, slots, rows),
            "answer": Texts(rows * answers * written, written, rows * answers),
        }

    def step_flops(self, batch: AnswersBatch) -> int:
        """Products of encoder, decoder and logits."""
        slots = self.slots(batch)
        return writer_step_flops(self.config.model, slots["source"], slots["answer"])
