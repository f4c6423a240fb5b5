"""ANCE as a task: the dual encoder, trained in rounds on negatives that the model itself finds near its queries."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from crops_jax import labels
from crops_jax.artifacts import is_current, read_manifest, write_folder
from crops_jax.baselines.config import AnceConfig
from crops_jax.baselines.nearest import MINED, clicks, nearest_negatives, write_candidates
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.parallel import processes
from crops_jax.records import RecordsReader, read_items, write_records
from crops_jax.retrieval.corpus import read_corpus
from crops_jax.retrieval.embedding import as_rows, encode_rows
from crops_jax.runs.dual_encoder import DualEncoderTask
from crops_jax.runs.task import Round, RoundInputs, folder_of_round
from crops_jax.text.featurizer import encode_documents


class AnceTask(DualEncoderTask):
    """Between two rounds corpus and train queries are encoded, and each query gets new negatives (ANCE, section 3)."""

    def __init__(self, experiment: Experiment, config: AnceConfig):
        super().__init__(experiment)
        self.config = config
        e, problems = experiment, []
        if missing := {"P0", MINED} - {*e.labels.sources}:
            problems.append(
                f"labels.sources lacks {', '.join(sorted(missing))}: it trains on clicks and mined negatives"
            )
        if e.labels.group_size > e.input.docs_per_query:
            problems.append(f"input.docs_per_query is {e.input.docs_per_query}, but labels.caps let a group have "
                            f"{e.labels.group_size} documents")  # fmt: skip
        if config.rounds > e.train.steps:
            problems.append(f"{config.rounds} rounds of {e.train.steps} steps")
        if problems:
            raise InputError("baseline", problems)

    @property
    def rounds(self) -> tuple[Round, ...]:
        """Rounds of equal length."""
        n, steps = self.config.rounds, self.experiment.train.steps
        edges = [steps * i // n for i in range(n + 1)]
        return tuple(Round(i, edges[i], edges[i + 1]) for i in range(n))

    def open(self, part: Round, model: DualEncoder, mesh: Mesh, again: bool) -> RoundInputs:
        """Groups of clicks and of negatives that `model` finds now."""
        train = self.experiment.arm_folder("train")
        folder = folder_of_round(train, part)
        if again:
            processes.first(partial(self._require, folder, part))
        elif not processes.first(partial(self._is_made, folder, part)):
            self._make(folder, part, model, mesh)
        return RoundInputs(self._batches(RecordsReader(folder), mesh))

    def _settings(self, part: Round) -> dict:
        return {"round": asdict(part), "baseline": asdict(self.config)}

    def _inputs(self, part: Round) -> dict[str, Path]:
        """What a round is made from: the checkpoint at which it begins, but for the first."""
        made_from = {"mined": self.experiment.ready("mined"), "logs": self.experiment.ready("logs")}
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
        """Every process encodes; the first one ranks and writes."""
        e = self.experiment
        logs, positives = e.ready("logs"), clicks(e.ready("mined") / "candidates.parquet")
        corpus, queries = read_corpus(logs, e.text.field_order), sorted(set(positives["query"].to_pylist()))
        documents = encode_documents(self.featurizer, corpus.item_ids.tolist(), corpus.keywords, corpus.texts)
        docs = encode_rows(model, "document", as_rows(documents), e.encode, mesh, "round: documents")
        rows = as_rows(self.featurizer.encode_queries(queries))
        query = encode_rows(model, "query", rows, e.encode, mesh, "round: queries")

        def write() -> None:
            known: dict[str, list[int]] = {text: [] for text in queries}
            for text, item in zip(positives["query"].to_pylist(), positives["item_id"].to_pylist(), strict=True):
                known[text].append(item)
            items = [np.unique(known[text]) for text in queries]
            negatives = nearest_negatives(query, docs, corpus.item_ids, items, self.config.top)
            config = replace(e.labels, seed=e.labels.seed + part.number)  # each round draws anew
            with write_folder(folder, kind="records", config=self._settings(part), inputs=self._inputs(part)) as out:
                candidates, assembly = out / "candidates.parquet", Counter()
                write_candidates(positives, queries, negatives, candidates)
                groups = labels.read_groups(candidates, config, assembly)
                tokenizer = self.featurizer if e.records.tokenize else None
                write_records(groups, read_items(logs / "items.parquet"), out, e.records, e.seed, tokenizer)
                out.counts["assembly"] = dict(assembly)
            for old in folder.parent.glob("[0-9]*"):  # the round before stays: its last step may have to be taken again
                if int(old.name) < part.number - 1:
                    shutil.rmtree(old)

        processes.first(write)
