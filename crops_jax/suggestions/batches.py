"""Examples -> batches of an encoder-decoder, in a true global shuffle, from a position where a run goes on exactly.

The order, and what a shard of a batch reads of it, are those of `crops_jax.batches.stream`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

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
class AnswersBatch:
    """B rows: what is read, and A answers of each."""

    source: Tokens  # ids int32[B, S], length int32[B]
    before: Any  # int32[B, A, T]: the token before each of the answers' tokens
    answers: Tokens  # ids int32[B, A, T], length int32[B, A]; 0 where a row has fewer

    @property
    def sizes(self) -> tuple[int, int]:
        """(rows, answers) of the batch."""
        rows, answers = self.answers.length.shape
        return rows, rows * answers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SuggestionBatch(AnswersBatch):
    """The first answer is the query that was taken, losers follow."""

    weight: Any  # float32[B, A - 1]
    reference: Any  # float32[B, A]


class Examples(Protocol):
    """Examples that are read in any order; each has the request that it comes from."""

    def __len__(self) -> int: ...

    def read(self, numbers: Iterable[int], epochs: Iterable[int] = ()) -> Sequence[Any]:
        """Those with these numbers.

        Args:
          epochs: how often each was read before in the run, for what draws from an example anew each time.
        """
        ...


class AnswerBatches:
    """The batches of a run: `load(position)` is a pure function of examples, config and position.

    A position is int32[shards, 1]: how many examples of its sequence each shard has taken.
    """

    def __init__(
        self, examples: Examples, collate: Callable[[Sequence[Any]], AnswersBatch], config: InputConfig,
        shards: Sequence[int] | None = None,
    ):  # fmt: skip
        """Args:
          collate: makes a batch of examples, a row each.
          shards: numbers of the shards that this process reads, rising; all by default.

        Raises:
          InputError: the batches are packed, or there is no example.
        """
        self.examples, self.config = examples, config
        self.shards = np.arange(config.shards) if shards is None else np.asarray(shards)
        self._collate, self._of_shard = collate, config.batch_queries // config.shards
        if problems := list(self._problems()):
            raise InputError("input", problems)

    def _problems(self) -> Iterator[str]:
        if self.config.packing is not None:
            yield "input.packing is for the dual encoder; set input.packing=None"
        if not len(self.examples):
            yield "there is no example to learn from"

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
        numbers = numbers_at(places.ravel(), len(self.examples), self.config.seed)
        batch = self._collate(self.examples.read(numbers, places.ravel() // len(self.examples)))
        return Loaded(batch, (position + self._of_shard).astype(np.int32), numbers)

    def requests(self, numbers: np.ndarray) -> list[str]:
        """The request ids of these examples, for messages."""
        return [example.request_id for example in self.examples.read(numbers)]


class SuggestionBatches(AnswerBatches):
    """Those of a writer of suggestions."""

    def __init__(
        self, reader: ExamplesReader, text: WriterText, config: InputConfig, shards: Sequence[int] | None = None
    ):
        """Raises InputError as `AnswerBatches`, or where the losers have no reference."""
        self.text = text
        super().__init__(reader, partial(batch_of, text=text), config, shards)

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.text.config.rwr is not None and self.examples.counts["referenced"] < len(self.examples):
            yield (f"{self.examples.folder} has no log-probabilities of the reference; write the records again "
                   "(python -m crops_jax.suggest)")  # fmt: skip


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
    return SuggestionBatch(Tokens(*source), before(ids, text.end), Tokens(ids, length), weight, reference)


def before(ids: np.ndarray, start: int) -> np.ndarray:
    """int32[B, A, T]: the token before each one of `ids`, `start` before the first."""
    return np.concatenate([np.full_like(ids[:, :, :1], start), ids[:, :, :-1]], axis=2)
