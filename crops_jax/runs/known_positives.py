"""Positives of a query that other groups hold: with them a batch says which of its documents are no negatives of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from crops_jax.baselines.groups import positive_pairs
from crops_jax.batches.collate import key_words
from crops_jax.batches.stream import Batches, Loaded
from crops_jax.labels import LabelsConfig
from crops_jax.normal_text import normal_form
from crops_jax.records.assemble import Keys
from crops_jax.stable_hash import text_keys


@dataclass(frozen=True)
class KnownPositives:
    """The keys of the positives of each query that has one in any search of the train day."""

    query: np.ndarray  # int64[Q]; keys of the queries, rising
    docs: np.ndarray  # int32[Q, P, 2]; -1 fills up

    @staticmethod
    def read(candidates: Path, labels: LabelsConfig, keys: Keys, most: int) -> KnownPositives:
        """Those whose source `labels` takes for positive, of a query the `most` that occur most often.

        Says how many are left out by `most`: they can be negatives. All candidates are read, in memory.
        """
        table = positive_pairs(candidates, labels)
        texts, of_row = np.unique(table["query"].to_numpy(), return_inverse=True)
        pairs = np.stack(
            [text_keys(map(normal_form, texts.tolist()))[of_row], keys(table["item_id"].to_numpy())], axis=1
        )
        pairs, times = np.unique(pairs, axis=0, return_counts=True)
        pairs = pairs[np.lexsort((pairs[:, 1], -times, pairs[:, 0]))]
        query, start, size = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        place = np.arange(len(pairs)) - np.repeat(start, size)
        if left := int((place >= most).sum()):
            print(f"input.known_positives: {left} of {len(pairs)} known positives are left out, of "
                  f"{int((size > most).sum())} queries that have more than {most}", file=sys.stderr)  # fmt: skip
        docs = np.full((len(query), most, 2), -1, np.int32)
        kept = place < most
        docs[np.repeat(np.arange(len(query)), size)[kept], place[kept]] = key_words(pairs[kept, 1])
        return KnownPositives(query, docs)

    def of(self, query_key: np.ndarray) -> np.ndarray:
        """int32[B, P, 2]: the keys for queries of int32[B, 2] keys; -1 for a query that has none."""
        words = query_key.astype(np.int64)
        wanted = (words[:, 0] << 32) | (words[:, 1] & 0xFFFFFFFF)
        place = np.minimum(np.searchsorted(self.query, wanted), max(len(self.query) - 1, 0))
        found = np.full((len(wanted), *self.docs.shape[1:]), -1, np.int32)
        here = self.query[place] == wanted if len(self.query) else np.zeros(len(wanted), bool)
        found[here] = self.docs[place[here]]
        return found


class BatchesWithKnown:
    """The batches of a run, each query with its known positives."""

    def __init__(self, batches: Batches, known: KnownPositives):
        self._batches, self._known, self.config = batches, known, batches.config

    def start(self) -> np.ndarray:
        """As `Batches`."""
        return self._batches.start()

    def load(self, position: np.ndarray) -> Loaded:
        """As `Batches`."""
        loaded = self._batches.load(position)
        return replace(loaded, batch=replace(loaded.batch, known=self._known.of(loaded.batch.query_key)))

    def requests(self, groups: np.ndarray) -> list[str]:
        """As `Batches`."""
        return self._batches.requests(groups)
