"""What a generator learns from: graded groups, each with its positives, and the items' own texts.

A group is a query with the distribution of its graded positives: a positive of the label l has w_l / (sum of the
group's w). An item's text is an example with that one item (as in DSI, Tay et al. 2022, indexing beside retrieval).
A document that a language model wrote has the codes of an id but the last: a query is led to where such items lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from crops_jax.batch import Tokens
from crops_jax.batches.config import InputConfig
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.generative.item_ids import ItemIds
from crops_jax.generative.reading import GeneratorText
from crops_jax.records import Record, RecordsReader
from crops_jax.stable_hash import hash_texts, mix
from crops_jax.suggestions.batches import AnswerBatches, AnswersBatch, before


@dataclass(frozen=True)
class Example:
    """A text, and P items that are to be written for it."""

    request_id: str  # of the group; of an item's text "item N"
    text: str
    rows: np.ndarray  # int64[P], as `ItemIds.rows_of`
    share: np.ndarray  # float32[P]; their sum is 1, or P is 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GradedBatch(AnswersBatch):
    """Answers are the ids of positives."""

    share: Any  # float32[B, A]: the target distribution of each row; 0 where there is no answer


class GradedExamples:
    """Random access to the examples (`batches.Examples`): the groups first, then every item's text, so often."""

    def __init__(self, reader: RecordsReader, ids: ItemIds, texts: Sequence[str], config: GeneratorConfig, seed: int):
        """Nothing is read yet.

        Args:
          texts: C texts of the items, in the order of their ids; none where `config.item_texts` is 0.
          seed: chooses among the positives of a group, where there are more than `config.positives`.
        """
        self.reader, self.ids, self.texts, self.config, self.seed = reader, ids, texts, config, seed

    def __len__(self) -> int:
        return len(self.reader) + self.config.item_texts * len(self.texts)

    def read(self, numbers: Iterable[int], epochs: Iterable[int] = ()) -> list[Example]:
        """The examples with these numbers, in this order. Each epoch draws anew which positives of a large group it
        has.

        Raises:
          IndexError: there is no such number.
          InputError: a damaged record, a label without a weight, or a positive that has no id.
        """
        wanted = np.fromiter(numbers, np.int64)
        epoch = np.fromiter(epochs, np.int64)
        epoch = epoch if len(epoch) else np.zeros_like(wanted)
        of_group = wanted < len(self.reader)
        groups = iter(self.reader.read(wanted[of_group]))
        return [self._of_group(next(groups), again) if grouped else self._of_item(number - len(self.reader))
                for number, again, grouped in zip(wanted.tolist(), epoch.tolist(), of_group.tolist(),
                                                  strict=True)]  # fmt: skip

    def _of_item(self, number: int) -> Example:
        row = number % len(self.texts)
        return Example(f"item {self.ids.items[row]}", self.texts[row], np.array([row]), np.ones(1, np.float32))

    def _of_group(self, record: Record, epoch: int) -> Example:
        weights = np.array(self.config.label_weights, np.float32)
        if record.label.max() > len(weights):
            said = f"has a document of the label {record.label.max()}; suggest.label_weights has {len(weights)} labels"
            raise InputError(f"request {record.request_id}", said)
        weight = weights[record.label - 1]
        positive = np.flatnonzero(weight > 0)
        draw = mix(hash_texts([record.request_id], self.seed + epoch), record.item_id[positive])
        chosen = positive[np.argsort(draw, kind="stable")[: self.config.positives]]
        rows = self.ids.rows_of(record.item_id[chosen])
        if len(missing := record.item_id[chosen][rows < 0]):
            said = f"item {missing[0]} has no semantic id: the records and the coded vectors are of different documents"
            raise InputError(f"request {record.request_id}", said)
        total = weight[chosen].sum()
        return Example(record.request_id, record.query, rows, weight[chosen] / total if len(rows) else weight[chosen])


def batches_of(
    examples: GradedExamples, text: GeneratorText, config: InputConfig, shards: Sequence[int] | None = None
) -> AnswerBatches:
    """The batches of a run, as far as a process reads these shards of them."""
    return AnswerBatches(examples, partial(batch_of, text=text), config, shards)


def batch_of(examples: Sequence[Example], text: GeneratorText) -> GradedBatch:
    """These examples as a batch."""
    shape = len(examples), text.config.positives
    rows, share = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for n, example in enumerate(examples):
        rows[n, : len(example.rows)] = example.rows
        share[n, : len(example.rows)] = example.share
    ids = text.tokens[rows]
    length = np.where(share > 0, text.length[rows], 0)
    source = text.sources([example.text for example in examples])
    return GradedBatch(Tokens(*source), before(ids, text.end), Tokens(ids, length), share)
