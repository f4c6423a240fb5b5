"""Examples -> batches of a writer, in a true global shuffle, from a position where a run goes on exactly.

The order, and what a shard of a batch reads of it, are those of `crops_jax.batches.stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from crops_jax.batch import Tokens
from crops_jax.batches.config import InputConfig
from crops_jax.batches.order import numbers_at
from crops_jax.batches.stream import Loaded
from crops_jax.errors import InputError
from crops_jax.suggestions.examples import Example
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.records import ExamplesReader


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SuggestionBatch:
    """B rows: what is read, and A answers of each. The first answer is the query that was taken, losers follow."""

    source: Tokens  # ids int32[B, S], length int32[B]
    before: Any  # int32[B, A, T]: the token before each of the answers' tokens
    answers: Tokens  # ids int32[B, A, T], length int32[B, A]; 0 where a row has fewer losers
    weight: Any  # float32[B, A - 1]
    reference: Any  # float32[B, A]

    @property
    def sizes(self) -> tuple[int, int]:
        """(rows, answers) of the batch."""
        rows, answers = self.answers.length.shape
        return rows, rows * answers


class SuggestionBatches:
    """The batches of a run: `load(position)` is a pure function of records, config and position.

    A position is int32[shards, 1]: how many examples of its sequence each shard has taken.
    """

    def __init__(
        self, reader: ExamplesReader, text: WriterText, config: InputConfig, shards: Sequence[int] | None = None
    ):
        """Args:
          shards: numbers of the shards that this process reads, rising; all by default.

        Raises:
          InputError: the batches are packed, or the losers have no reference.
        """
        self.reader, self.text, self.config = reader, text, config
        self.shards = np.arange(config.shards) if shards is None else np.asarray(shards)
        self._of_shard = config.batch_queries // config.shards
        problems = []
        if config.packing is not None:
            problems.append("input.packing is for the dual encoder; set input.packing=None")
        if text.config.rwr is not None and reader.counts["referenced"] < len(reader):
            problems.append(f"{reader.folder} has no log-probabilities of the reference; write the records again "
                            "(python -m crops_jax.suggest)")  # fmt: skip
        if problems:
            raise InputError("input", problems)

    def start(self) -> np.ndarray:
        """The position before the first batch."""
        return np.zeros((len(self.shards), 1), np.int32)

    def load(self, position: np.ndarray) -> Loaded:
        """The batch at `position`.

        Raises:
          InputError: a damaged record.
        """
        places = position + np.arange(self._of_shard)[None, :]
        places = places.astype(np.int64) * self.config.shards + self.shards[:, None]
        numbers = numbers_at(places.ravel(), len(self.reader), self.config.seed)
        return Loaded(
            batch_of(self.reader.read(numbers), self.text), (position + self._of_shard).astype(np.int32), numbers
        )

    def requests(self, numbers: np.ndarray) -> list[str]:
        """The request ids of these examples, for messages."""
        return [example.request_id for example in self.reader.read(numbers)]


def batch_of(examples: Sequence[Example], text: WriterText) -> SuggestionBatch:
    """These examples as a batch."""
    answers = text.config.answers
    source = text.sources([e.prefix for e in examples], [e.related for e in examples], [e.recent for e in examples])
    texts = [([e.chosen, *e.rejected] + [""] * answers)[:answers] for e in examples]
    rows = text.answers([query for of_row in texts for query in of_row])
    there = np.array([1 + len(e.rejected) for e in examples])[:, None] > np.arange(answers)[None, :]
    weight = np.zeros((len(examples), answers - 1), np.float32)
    reference = np.zeros((len(examples), answers), np.float32)
    for row, example in enumerate(examples):
        losers = min(len(example.rejected), answers - 1)
        weight[row, :losers] = example.weight[:losers]
        said = example.reference[: 1 + losers]
        reference[row, : len(said)] = said
    shape = (len(examples), answers)
    length = np.where(there, rows.length.reshape(shape), 0).astype(np.int32)
    ids = rows.ids.reshape(*shape, -1)
    before = np.concatenate([np.full_like(ids[:, :, :1], text.end), ids[:, :, :-1]], axis=2)
    return SuggestionBatch(Tokens(*source), before, Tokens(ids, length), weight, reference)
