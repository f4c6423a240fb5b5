"""A writer of suggestions as a task: examples from the arm's shards, a BART, likelihood or preferences (OneSug)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from crops_jax.artifacts import Folder
from crops_jax.batch import Tokens
from crops_jax.batches.stream import Batches
from crops_jax.config import Experiment, differences
from crops_jax.cost.flops import Texts, writer_step_flops
from crops_jax.errors import InputError
from crops_jax.models import bart
from crops_jax.models.bart import Bart
from crops_jax.models.bart_import import check_bart, load_bart
from crops_jax.models.hf_import import find_source
from crops_jax.parallel.sharding import RULES, rows_here
from crops_jax.runs.featurizer import tokenizer_of
from crops_jax.runs.folder import RUN, read_run
from crops_jax.runs.task import Round, RoundInputs, Task
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.suggestions.batches import SuggestionBatch, SuggestionBatches
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.records import ExamplesReader
from crops_jax.training.checkpoint import Checkpoints
from crops_jax.training.throughput import BatchCounts, Counts
from crops_jax.training.validation import Validation
from crops_jax.training.writer import WriterObjective


class WriterTask(Task):
    """Trains on the arm's examples, in one round."""

    def __init__(self, experiment: Experiment, config: WriterConfig):
        problems = []
        if experiment.validation.every:
            problems.append("validation.every: it ranks groups of searches, of which a writer has none; set it to 0")
        if experiment.input.packing is not None:
            problems.append("input.packing: a writer's rows are not packed; set it to None")
        if not experiment.text.append_eos:
            problems.append("text.append_eos = False: a writer needs a token that ends a text (text.eos_token)")
        if problems:
            raise InputError("experiment of a writer", problems)
        self.config = config
        super().__init__(experiment, WriterObjective(config))

    @property
    def dtype(self) -> str:
        """That of the writer."""
        return self.config.dtype

    @property
    def remat(self) -> str:
        """That of the writer."""
        return self.config.remat

    @cached_property
    def text(self) -> WriterText:
        """What the writer reads and writes, as tokens."""
        return WriterText(tokenizer_of(self.experiment), self.config)

    @cached_property
    def _records(self) -> ExamplesReader:
        return ExamplesReader(self.experiment.ready("records"))

    @property
    def described(self) -> Bart:
        """Encoder and decoder."""
        return Bart(self.config.model)

    def abstract_batch(self, mesh: Mesh | AbstractMesh) -> SuggestionBatch:
        """A batch split over `mesh` by rows.

        Raises:
          InputError: the batch's shards do not divide over the mesh.
        """
        RULES.check_rows(mesh, self.experiment.input.shards, "input.shards")

        def rows(*shape: int, dtype: jnp.dtype = jnp.int32) -> jax.ShapeDtypeStruct:
            whole = (self.experiment.input.batch_queries, *shape)
            spec = RULES.spec(mesh, ("batch",) + (None,) * len(shape))
            return jax.ShapeDtypeStruct(whole, dtype, sharding=NamedSharding(mesh, spec))

        answers, slots = self.config.answers, self.config.max_query_tokens
        return SuggestionBatch(
            source=Tokens(rows(self.config.max_source_tokens), rows()),
            before=rows(answers, slots),
            answers=Tokens(rows(answers, slots), rows(answers)),
            weight=rows(answers - 1, dtype=jnp.float32),
            reference=rows(answers, dtype=jnp.float32),
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
        return bart.init(self.config.model, jax.random.key(self.experiment.seed), RULES)

    def restored(self, folder: Path, mesh: Mesh) -> Bart:
        """The newest good weights of a run of the same shape."""
        with Checkpoints(folder, read_only=True) as checkpoints:
            return checkpoints.restore(self.abstract_model(mesh), part="model")[1]

    def open(self, part: Round, model: Bart, mesh: Mesh, again: bool) -> RoundInputs:
        """The arm's examples."""
        return RoundInputs(self._batches(rows_here(mesh, self.experiment.input.shards)))

    def _batches(self, shards: Sequence[int]) -> Batches:
        return SuggestionBatches(self._records, self.text, self.experiment.input, shards)

    def validation(self, mesh: Mesh) -> Validation | None:
        """Nothing while training: what it suggests is measured on the test day."""
        return None

    def export(self, model: Bart, out: Folder) -> None:
        """`python -m crops_jax.suggest` writes it, with the queries that it was trained to know."""
        raise InputError("export", "python -m crops_jax.suggest exports a writer of suggestions")

    # What there is to tell.

    def count(self, batch: SuggestionBatch) -> BatchCounts:
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

    def slots(self, batch: SuggestionBatch) -> dict[str, Texts]:
        """Those of the encoder and of the decoder."""
        rows, slots = batch.source.ids.shape
        _, answers, written = batch.answers.ids.shape
        return {
            "source": Texts(rows * slots, slots, rows),
            "answer": Texts(rows * answers * written, written, rows * answers),
        }

    def step_flops(self, batch: SuggestionBatch) -> int:
        """Products of encoder, decoder and logits."""
        slots = self.slots(batch)
        return writer_step_flops(self.config.model, slots["source"], slots["answer"])
