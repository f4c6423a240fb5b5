"""Evaluation while training: the held-out queries, ranked against all documents of the held-out groups.

A signal, not a result: the corpus is small and the truth is the labels of the shards (paper Table 1), so the figures
compare the steps and runs of one data set. What the paper's tables hold is `crops_jax.evaluate`'s work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh

from crops_jax.batches.collate import encode_groups
from crops_jax.errors import InputError
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.parallel import processes
from crops_jax.parallel.sharding import RULES
from crops_jax.records import Record, RecordsReader
from crops_jax.retrieval.config import EncodeConfig
from crops_jax.retrieval.embedding import Rows, as_rows, encode_rows
from crops_jax.retrieval.metrics import ndcg_full, recall_at_k
from crops_jax.retrieval.ranking import top_k
from crops_jax.text.featurizer import Featurizer
from crops_jax.text.hashed_ids import IdRows
from crops_jax.text.tokenizer import TokenRows
from crops_jax.training.config import ValidationConfig


class Validation:
    """A sample of the held-out groups as model input, and its truth. Every process of a run holds all of it."""

    def __init__(
        self, reader: RecordsReader, featurizer: Featurizer, config: ValidationConfig, encode: EncodeConfig, mesh: Mesh,
        min_positive: int,
    ):  # fmt: skip
        """Reads and encodes the sample.

        Args:
          reader: of the split "validation".
          encode: rows of one device call; every call has the full width, so that each tower is compiled once.
          min_positive: the lowest label of a positive.

        Raises:
          InputError: nothing in the split could be retrieved, or the mesh does not divide `encode.batch`.
        """
        RULES.check_rows(mesh, encode.batch, "encode.batch")
        self._config, self._mesh, self._encode = config, mesh, replace(encode, buckets=())
        self._min_positive = min_positive
        chosen = np.random.default_rng(0).permutation(len(reader))[: config.groups]
        records = reader.read(np.sort(chosen))
        # Documents that a language model wrote teach, but are never retrieved.
        real = np.flatnonzero(_column(records, "item_id") >= 0)
        doc_key, label = _column(records, "doc_key")[real], _column(records, "label")[real]
        if not (label >= min_positive).any():
            mend = "raise --records.validation_share and write the shards again, or set --validation.every=0"
            raise InputError(str(reader.folder), f"no held-out query has a document to find; {mend}")
        groups = encode_groups(records, featurizer)
        document, first = _numbered(doc_key)
        self._docs = _rows([group.docs for group in groups], real[first])
        self._doc_numbers = np.arange(len(first))
        query, first = _numbered(np.array([r.query_key for r in records]))
        self._queries = _rows([group.query for group in groups], first)
        self._grades: list[dict[int, int]] = [{} for _ in first]
        query = np.repeat(query, [len(r) for r in records])[real]
        for q, doc, grade in zip(query.tolist(), document.tolist(), label.tolist(), strict=True):
            self._grades[q][doc] = grade  # a query's groups agree on it (`records.assemble`)

    def measure(self, model: DualEncoder) -> dict[str, float]:
        """Means over the sample's queries, the same in every process, which all have to call this.

        `validation_recall_<K>`: of a query's positives, labelled `labels.min_positive` or more (Eq. 4: 4 and 5);
        `validation_ndcg_<K>`: by label, the documents of other queries as 0 (Eqs. 5 and 6).

        Raises:
          InputError: an embedding is not finite.
        """
        queries = encode_rows(model, "query", self._queries, self._encode, self._mesh, "validation queries")
        docs = encode_rows(model, "document", self._docs, self._encode, self._mesh, "validation documents")
        # Products may differ in their last bits between machines: one of them ranks for all.
        return processes.first(partial(self._ranked, queries, docs))

    def _ranked(self, queries: np.ndarray, docs: np.ndarray) -> dict[str, float]:
        k = self._config.k
        found, _ = top_k(queries @ docs.T, self._doc_numbers, k)
        positives = [[key for key, label in grade.items() if label >= self._min_positive] for grade in self._grades]
        recall, (ndcg, _) = recall_at_k(found, positives, k), ndcg_full(found, self._grades, k)
        return {f"validation_recall_{k}": recall.mean, f"validation_ndcg_{k}": ndcg.mean}

    def score(self, measured: Mapping[str, Any]) -> float | None:
        """The value by which steps are selected, out of what `measure` returned; None where the last step is taken."""
        select = self._config.select
        return None if select == "last" else measured[f"validation_{select}_{self._config.k}"]


def _numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the keys by first appearance, which orders equal scores; the place of each one's first)."""
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[number], first[order]


def _column(records: Sequence[Record], name: str) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *[getattr(record, name) for record in records]])


def _rows(parts: Sequence[TokenRows | IdRows], chosen: np.ndarray) -> Rows:
    """These rows of all parts together."""
    return as_rows(type(parts[0])(*[np.concatenate(field)[chosen] for field in zip(*parts, strict=True)]))
