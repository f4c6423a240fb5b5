"""A dual encoder trained with mined negatives, in rounds: DPR, ANCE, STAR, TriSampler, and the ladder with them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import is_current, read_manifest
from crops_jax.baselines.config import NegativesConfig
from crops_jax.baselines.draw import Triangle, uniform
from crops_jax.baselines.groups import NEAR, Clicks, Draw, Positives, click_groups, graded_groups
from crops_jax.baselines.nearest import nearest_negatives
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.models import dual_encoder
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.parallel import processes
from crops_jax.records import RecordsReader, read_items, write_records
from crops_jax.records.candidates import read_groups
from crops_jax.retrieval.bm25 import BM25Searcher
from crops_jax.retrieval.config import BM25Config
from crops_jax.retrieval.corpus import Corpus, read_corpus
from crops_jax.retrieval.embedding import as_rows, encode_rows
from crops_jax.retrieval.ranking import positions_of, top_k
from crops_jax.runs.dual_encoder import DualEncoderTask, seed_of
from crops_jax.runs.task import Round, RoundInputs, folder_of_round
from crops_jax.text.featurizer import encode_documents


class MinedNegativesTask(DualEncoderTask):
    """When a round begins, a ranker orders the corpus for every train query, and each search draws its negatives."""

    def __init__(self, experiment: Experiment, config: NegativesConfig):
        super().__init__(experiment)
        self.config, slots, steps = config, experiment.input.docs_per_query, experiment.train.steps
        labels, problems = experiment.labels, []
        others, what = (labels.group_size, "graded documents") if config.graded else (1, "a click")
        if config.count + others > slots:
            problems.append(f"count = {config.count}: beside {what} there are {slots - others} of input.docs_per_query")
        if config.graded and labels.one_anchor:
            problems.append(
                "graded = True and labels.one_anchor: an anchor is contrasted with its own lower-graded documents"
            )
        if not config.graded and not labels.levels["P0"] >= labels.min_positive > labels.levels[NEAR]:
            found = f"P0: {labels.levels['P0']}, {NEAR}: {labels.levels[NEAR]}"
            problems.append(f"labels.levels ({found}): only P0 has to reach labels.min_positive, {labels.min_positive}")
        if config.rounds > steps:
            problems.append(f"rounds = {config.rounds}, of {steps} steps; take fewer rounds, or more train.steps")
        if experiment.input.sources:
            problems.append("input.sources chooses among written groups, and a round makes its own: set labels.sources")
        if problems:
            raise InputError("negatives", problems)

    @property
    def rounds(self) -> tuple[Round, ...]:
        """Rounds of equal length."""
        n, steps = self.config.rounds, self.experiment.train.steps
        edges = [steps * i // n for i in range(n + 1)]
        return tuple(Round(i, edges[i], edges[i + 1]) for i in range(n))

    def _read_beside(self) -> tuple[Path, Path]:
        """Every round reads them."""
        return self.experiment.ready_mined()

    def open(self, part: Round, model: DualEncoder, mesh: Mesh, again: bool) -> RoundInputs:
        """Groups of clicks and of the negatives that are near them now."""
        folder = folder_of_round(self.experiment.arm_folder("train"), part)
        if again:
            processes.first(partial(self._require, folder, part))
        elif not processes.first(partial(self._is_made, folder, part)):
            self._make(folder, part, model, mesh)
        return RoundInputs(self._batches(RecordsReader(folder), model, mesh, part.number))

    def _settings(self, part: Round) -> dict:
        labels = {"labels": asdict(self.experiment.labels)} if self.config.graded else {}
        ranker = {"bm25": asdict(self.experiment.bm25)} if self.config.ranker == "bm25" else {}
        return {"round": asdict(part), "negatives": asdict(self.config)} | labels | ranker

    def _inputs(self, part: Round) -> dict[str, Path]:
        """What a round is made from: the checkpoint at which it begins, but for the first."""
        logs, mined = self.experiment.ready_mined()
        made_from = {"mined": mined, "logs": logs}
        if part.start:
            made_from["checkpoint"] = self.experiment.arm_folder("train") / "checkpoints" / str(part.start)
        return made_from

    def _is_made(self, folder: Path, part: Round) -> bool:
        return is_current(folder, kind="records", config=self._settings(part), inputs=self._inputs(part))

    def _require(self, folder: Path, part: Round) -> None:
        """Makes sure that the groups of a round within which the run goes on are those that it began with."""
        mend = "put the folder back from a copy, or begin again: --train.fresh=True"
        if not folder.is_dir():
            raise InputError(str(folder), f"is gone: the groups of the round within which the run goes on; {mend}")
        if read_manifest(folder, "records")["config"] != self._settings(part):
            raise InputError(str(folder), f"holds another round; {mend}")

    def _make(self, folder: Path, part: Round, model: DualEncoder, mesh: Mesh) -> None:
        """Every process encodes; the first one ranks, draws and writes."""
        e = self.experiment
        logs, fields = e.ready("logs"), e.text.field_order
        mined = e.ready("mined")
        candidates = mined / "candidates.parquet"
        corpus = read_corpus(logs, fields)
        positives = Positives.read(candidates, e.labels) if self.config.graded else Clicks.read(candidates)
        vectors = self._vectors(corpus, positives, model, mesh) if self.config.ranker == "model" else None

        def write() -> None:
            items = read_items(logs, mined / "knowledge.parquet" if self.config.graded else None)
            keys = items.keys(fields)
            ranked = _Ranked(corpus, positives, keys, self.config)
            draw = ranked.by_bm25(e.bm25) if vectors is None else ranked.by_model(*vectors)
            seed = seed_of(e.seed, part.number)
            if isinstance(positives, Clicks):
                groups = click_groups(positives, draw, seed, e.labels.levels, self._most(part))
            else:
                graded = read_groups(candidates, e.labels, keys)
                groups = graded_groups(graded, positives, draw, seed, keys, e.labels.levels[NEAR])
            tokenizer = self.featurizer if e.records.tokenize else None
            with write_folder(folder, kind="records", config=self._settings(part), inputs=self._inputs(part)) as out:
                write_records(groups, items, out, e.records, e.seed, tokenizer, fields, e.labels.min_positive)
            for old in folder.parent.glob("[0-9]*"):  # the round before stays: its last step may have to be taken again
                if int(old.name) < part.number - 1:
                    shutil.rmtree(old)

        processes.first(write)

    def _most(self, part: Round) -> int:
        """Groups that the steps of a round can read, were every batch full: more need not be drawn and written."""
        read = (part.stop - part.start) * self.experiment.input.batch_queries
        return math.ceil(read / (1 - self.experiment.records.validation_share))

    def _vectors(
        self, corpus: Corpus, positives: Positives, model: DualEncoder, mesh: Mesh
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """(float32[n, D] of the queries, float32[C, D] of the corpus, tau)."""
        encode, states = self.experiment.encode, self.frozen_states(model)
        rows = as_rows(self.featurizer.encode_queries(positives.queries))
        queries = encode_rows(model, "query", rows, encode, mesh, "round: queries", states)
        rows = encode_documents(self.featurizer, corpus.item_ids.tolist(), corpus.keywords, corpus.texts)
        documents = encode_rows(model, "document", as_rows(rows), encode, mesh, "round: documents", states)
        return queries, documents, float(dual_encoder.tau(model))


@dataclass(frozen=True)
class _Ranked:
    """The corpus in the order of a ranker for every train query, and how negatives are drawn from it."""

    corpus: Corpus
    positives: Positives
    keys: Callable[[np.ndarray], np.ndarray]  # of each document's text
    config: NegativesConfig

    def by_model(self, queries: np.ndarray, documents: np.ndarray, tau: float) -> Draw:
        """By exact search among float32[C, D] `documents`: n * C * D multiply-adds."""
        ids, known, config = self.corpus.item_ids, self.positives.known, self.config

        def search(numbers: np.ndarray, k: int) -> np.ndarray:
            return top_k(queries[numbers] @ documents.T, ids, k)[0]

        near = nearest_negatives(search, known, config.top, self.keys)
        if config.draw == "uniform":
            return self._alike(near)
        fill = self._filled(near)
        triangle = Triangle(tau, config.shortlist)

        def draw(query: int, positive: int, rng: np.random.Generator) -> np.ndarray:
            place = positions_of(ids, np.append(near[query], positive))
            if place[-1] < 0:  # a clicked item without text has no vector, and its group is left out of the shards
                drawn = uniform(config.count, len(near[query]), rng)
            else:
                vectors = documents[place]
                cosines, to_positive = vectors @ queries[query], vectors @ vectors[-1]
                drawn = triangle.draw(config.count, cosines[-1], cosines[:-1], to_positive[:-1], rng)
            return fill(query, near[query][drawn], rng)

        return draw

    def by_bm25(self, config: BM25Config) -> Draw:
        """By BM25 over the whole texts."""
        searcher = BM25Searcher(self.corpus.item_ids, self.corpus.texts, config)

        def search(numbers: np.ndarray, k: int) -> np.ndarray:
            return searcher.search([self.positives.queries[i] for i in numbers], k)[0]

        return self._alike(nearest_negatives(search, self.positives.known, self.config.top, self.keys))

    def _alike(self, near: list[np.ndarray]) -> Draw:
        """Each of the nearest alike."""
        fill = self._filled(near)

        def draw(query: int, positive: int, rng: np.random.Generator) -> np.ndarray:
            return fill(query, near[query][uniform(self.config.count, len(near[query]), rng)], rng)

        return draw

    def _filled(self, near: list[np.ndarray]) -> Callable[[int, np.ndarray, np.random.Generator], np.ndarray]:
        """What a query has drawn, and, where its nearest were too few, any other documents of the corpus."""
        count = self.config.count

        @lru_cache(maxsize=1)  # a pass over the corpus; groups of one query follow each other
        def others(query: int) -> np.ndarray:
            rest = np.setdiff1d(self.corpus.item_ids, near[query])
            return rest[~np.isin(self.keys(rest), self.keys(self.positives.known[query]))]

        def fill(query: int, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            if len(drawn) == count:
                return drawn
            return np.concatenate([drawn, rng.permutation(others(query))[: count - len(drawn)]])

        return fill
