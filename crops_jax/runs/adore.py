"""ADORE as a task: the query tower of a trained run is trained further, against the fixed index of that run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from crops_jax.baselines.config import AdoreConfig
from crops_jax.baselines.groups import Clicks
from crops_jax.batches.collate import key_words
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.normal_text import normal_form
from crops_jax.records import read_items
from crops_jax.retrieval.corpus import Corpus, read_corpus
from crops_jax.retrieval.embedding import as_rows, encode_rows
from crops_jax.runs.dual_encoder import DualEncoderTask
from crops_jax.runs.task import Round, RoundInputs
from crops_jax.stable_hash import text_keys
from crops_jax.text.featurizer import encode_documents
from crops_jax.training.adore import AdoreObjective, Index

_READ = 4096  # records in memory at a time


class AdoreTask(DualEncoderTask):
    """The document tower, its vectors and tau stay fixed; every step searches anew with the query tower."""

    def __init__(self, experiment: Experiment, config: AdoreConfig):
        super().__init__(experiment)
        frozen = experiment.model.frozen
        problems = []
        if "document" not in frozen.towers or not frozen.tau:
            problems.append('needs model.frozen.towers=("document",) and model.frozen.tau=True: the index is fixed')
        if experiment.model.init_from is None:
            problems.append("needs model.init_from: the run (STAR's) whose index it searches")
        if experiment.model.widths:
            problems.append(f"model.widths = {experiment.model.widths} would not be trained: it learns whole vectors")
        if problems:
            raise InputError("negatives (ADORE)", problems)
        self.objective = AdoreObjective(config, experiment.gradcache)

    def _read_beside(self) -> tuple[Path, Path]:
        """The corpus and the clicks."""
        return self.experiment.ready("logs"), self.experiment.ready("mined")

    @cached_property
    def _corpus(self) -> Corpus:
        return read_corpus(self.experiment.ready_logs(), self.experiment.text.field_order)

    @cached_property
    def _positives(self) -> tuple[np.ndarray, np.ndarray]:
        """(int32[Q, 2] keys of the queries in the shards, int32[Q, P] rows of the corpus that were clicked for each).

        -1 fills up. With an item come all items of its text.
        """
        clicks = Clicks.read(self.experiment.ready("mined") / "candidates.parquet")
        corpus = self._corpus
        known = dict(zip(text_keys(map(normal_form, clicks.queries)).tolist(), clicks.known, strict=True))
        key_of = read_items(self.experiment.ready_logs()).keys(self.experiment.text.field_order)
        copies = np.argsort(doc_key := key_of(corpus.item_ids), kind="stable")
        queries = sorted(self._query_keys())
        found = []
        for query in queries:
            liked = np.unique(key_of(known.get(query, np.empty(0, np.int64))))
            first, last = (np.searchsorted(doc_key, liked, side, sorter=copies) for side in ("left", "right"))
            found.append(np.concatenate([copies[a:b] for a, b in zip(first, last, strict=True)] or [copies[:0]]))
        rows = np.full((len(queries), max(map(len, found))), -1, np.int32)
        for row, places in zip(rows, found, strict=True):
            row[: len(places)] = places
        return key_words(np.array(queries)), rows

    def _query_keys(self) -> set[int]:
        starts = range(0, len(self.records), _READ)
        numbers = (range(start, min(start + _READ, len(self.records))) for start in starts)
        return {record.query_key for some in numbers for record in self.records.read(some)}

    def abstract_constants(self, mesh: Mesh | AbstractMesh) -> Index:
        """The index, whole on every device."""
        whole = NamedSharding(mesh, jax.P())
        width = self.experiment.model.backbone.width
        return Index(
            jax.ShapeDtypeStruct((len(self._corpus), width), jnp.float32, sharding=whole),
            *[jax.ShapeDtypeStruct(part.shape, jnp.int32, sharding=whole) for part in self._positives],
        )

    def open(self, part: Round, model: DualEncoder, mesh: Mesh, again: bool) -> RoundInputs:
        """The arm's records, whose queries are read, and the corpus encoded by the tower that stays."""
        corpus = self._corpus
        rows = encode_documents(self.featurizer, corpus.item_ids.tolist(), corpus.keywords, corpus.texts)
        encode, states = self.experiment.encode, self.frozen_states(model)
        vectors = encode_rows(model, "document", as_rows(rows), encode, mesh, "index of the run", states)
        index = jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh, jax.P())), Index(vectors, *self._positives)
        )
        return RoundInputs(self._batches(self.records, model, mesh), index)
