"""`python -m crops_jax.evaluate --config FILE`: recall and NDCG of the arm on a held-out day, the test day.

The result is that of exact search. ScaNN, which one would use for serving, is reported beside it, and so is BM25.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import checked_file, read_manifest, require_made_from, verify
from crops_jax.command_line import from_command_line, next_command
from crops_jax.comparison.charts import of_forms
from crops_jax.config import BM25_NAME, SETS_OF_DAY, Experiment, to_json
from crops_jax.errors import run_command
from crops_jax.generative.config import GeneratorConfig
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.logs.tables import read_table
from crops_jax.mining.testsets import HeldOutDay
from crops_jax.parallel.sharding import make_mesh
from crops_jax.report.tables import long_tables, short_table, table_notes
from crops_jax.retrieval import compact
from crops_jax.retrieval.blocks import load_index, searcher_of
from crops_jax.retrieval.bm25 import BM25Searcher
from crops_jax.retrieval.corpus import read_corpus
from crops_jax.retrieval.dense import DenseSearcher
from crops_jax.retrieval.embedding import query_encoder
from crops_jax.retrieval.ranking import Searcher
from crops_jax.retrieval.scann_index import compare
from crops_jax.retrieval.testset_metrics import TEST_SETS, Evaluation, evaluate, read_test_set
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.frozen_states import frozen_states
from crops_jax.runs.trained import MADE_BY_ENCODE, read_embeddings, trained_experiment, trained_model
from crops_jax.runs.trained_generator import generative_searcher
from crops_jax.stable_hash import sample


def settings(experiment: Experiment) -> dict:
    """What the results depend on, besides the inputs."""
    told = {"evaluate": to_json(experiment.evaluate), "title": experiment.title}
    return told | ({"beams": experiment.suggest.beams} if isinstance(experiment.suggest, GeneratorConfig) else {})


def inputs(experiment: Experiment, day: HeldOutDay = "test") -> dict[str, Path]:
    """The folders the results are made from."""
    if isinstance(experiment.suggest, GeneratorConfig):
        return bm25_inputs(experiment, day) | {kind: experiment.arm_folder(kind) for kind in ("train", "item_ids")}
    own = ("train", "embeddings", "index") if experiment.evaluate.scann else ("train", "embeddings")
    return bm25_inputs(experiment, day) | {kind: experiment.arm_folder(kind) for kind in own}


def run(experiment: Experiment, day: HeldOutDay = "test") -> Path:
    """Evaluates the trained arm on a held-out day and returns the folder of results."""
    if isinstance(experiment.suggest, GeneratorConfig):
        found = _evaluate(generative_searcher(experiment), experiment, experiment.title, day)
        return _write(found, folder(experiment, day), settings(experiment), inputs(experiment, day))
    experiment.require_search()
    with dense_searcher(experiment) as searcher:
        index = load_index(_index(experiment), resident=False) if experiment.evaluate.scann else None
        found = _evaluate(searcher, experiment, experiment.title, day)
        if index is not None:
            queries = searcher.encode(_asked(experiment, day))  # searched above: not encoded again
            k = max(experiment.evaluate.cutoffs)
            found.results["scann"] = compare(index, len(searcher.ids), searcher.exact, queries, k)
        if experiment.evaluate.compact:
            found.results["compact"] = _compared_forms(experiment, searcher, day)
    return _write(found, folder(experiment, day), settings(experiment), inputs(experiment, day))


@contextmanager
def dense_searcher(experiment: Experiment) -> Iterator[DenseSearcher]:
    """Exact search with the arm's trained query tower among its embeddings."""
    trained = trained_experiment(experiment)
    embeddings = read_embeddings(experiment)
    require_made_from(experiment.arm_folder("embeddings"), "logs", experiment.ready("logs"), MADE_BY_ENCODE)
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        model = trained_model(trained, mesh)
        encode = featurizer_of(trained).encode_queries
        encode_queries = query_encoder(model, encode, experiment.encode, mesh, frozen_states(trained, model))
        yield searcher_of(embeddings, encode_queries)


def folder(experiment: Experiment, day: HeldOutDay = "test") -> Path:
    """Where the arm's results lie."""
    return _of_day(experiment.arm_folder("eval"), day)


def _of_day(of_test: Path, day: HeldOutDay) -> Path:
    return of_test if day == "test" else of_test.with_name("validation_eval")


def _index(experiment: Experiment) -> Path:
    embeddings, index = experiment.arm_folder("embeddings"), experiment.ready("index")
    require_made_from(index, "embeddings", embeddings, "python -m crops_jax.build_index --config FILE")
    return index


def bm25_folder(experiment: Experiment, day: HeldOutDay = "test") -> Path:
    """Where BM25's results lie."""
    return _of_day(experiment.arm("eval", BM25_NAME), day)


def bm25_settings(experiment: Experiment) -> dict:
    """What BM25's results depend on, besides the inputs."""
    return {"evaluate": to_json(experiment.evaluate), "bm25": to_json(experiment.bm25)}


def bm25_inputs(experiment: Experiment, day: HeldOutDay = "test") -> dict[str, Path]:
    """The folders BM25's results are made from."""
    return {kind: experiment.folder(kind) for kind in ("logs", SETS_OF_DAY[day])}


def run_bm25(experiment: Experiment, day: HeldOutDay = "test", target: Path | None = None) -> Path:
    """Evaluates BM25 on a held-out day and returns the folder of its results: `target`, or `bm25_folder`."""
    corpus = read_corpus(experiment.ready_logs())
    searcher = BM25Searcher(corpus.item_ids, corpus.texts, experiment.bm25)
    found = _evaluate(searcher, experiment, "BM25", day)
    target = target or bm25_folder(experiment, day)
    return _write(found, target, bm25_settings(experiment), bm25_inputs(experiment, day))


def _evaluate(searcher: Searcher, experiment: Experiment, title: str, day: HeldOutDay) -> Evaluation:
    logs, testsets = open_logs(experiment.ready_logs()), experiment.ready(SETS_OF_DAY[day])
    verify(testsets)
    require_made_from(testsets, "logs", logs.root, "python -m crops_jax.mine --config FILE")
    seen = logs.read("searches", "train", ["query"])["query"].unique().to_pylist()
    return evaluate(searcher, testsets, _judgments(logs), seen, experiment.evaluate, title)


def _judgments(logs: LogFolder) -> pa.Table:
    if logs.has("judgments"):
        return logs.read("judgments")
    return pa.table({"query": pa.array([], pa.string()), "item_id": pa.array([], pa.int64()),
                     "grade": pa.array([], pa.float64())})  # fmt: skip


def _asked(experiment: Experiment, day: HeldOutDay) -> list[str]:
    """A sample of the queries of CT, drawn by their hashes."""
    queries = read_table(experiment.folder(SETS_OF_DAY[day]) / "ct.parquet", columns=["query"])["query"]
    return sample(sorted(queries.unique().to_pylist()), compact.QUERIES)


def _compared_forms(experiment: Experiment, searcher: DenseSearcher, day: HeldOutDay) -> dict[str, Any]:
    folder = experiment.folder(SETS_OF_DAY[day])
    sets = {name: read_test_set(folder / TEST_SETS[name]) for name in ("CT", "QR")}
    trained, k = trained_experiment(experiment).model.widths, max(experiment.evaluate.cutoffs)
    return compact.compare_forms(searcher.blocks(), searcher.encode, sets, trained, k)


def _write(found: Evaluation, target: Path, config: dict[str, Any], made_from: dict[str, Path]) -> Path:
    with write_folder(target, kind="eval", config=config, inputs=made_from) as out:
        (out / "results.json").write_text(json.dumps(found.results, indent=1, sort_keys=True, default=_number) + "\n")
        pq.write_table(found.per_query, out / "per_query.parquet", write_page_checksum=True)
        if "compact" in found.results and importlib.util.find_spec("matplotlib"):  # of the extra `bench`
            (out / "compact.svg").write_text(of_forms(found.results["compact"]), encoding="utf-8")
    return target


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"not JSON: {type(value)}")


def read_results(folder: Path) -> dict[str, Any]:
    """The results of an eval folder.

    Raises:
      InputError: the folder is another kind, not complete, or its results have changed since.
    """
    read_manifest(folder, "eval")
    return json.loads(checked_file(folder, "results.json").read_text())


def main() -> None:
    """Evaluates BM25 and the arm of the command line and prints their tables."""
    experiment = from_command_line("evaluate")
    results = [read_results(run_bm25(experiment)), read_results(run(experiment))]
    for table in (short_table(results), *long_tables(results)):
        print(f"\n{table.title}\n{table.text()}")
    for note in table_notes(results):
        print(f"\n{note}")
    print(f"\nnext: {next_command('export')}")


if __name__ == "__main__":
    run_command(main)
