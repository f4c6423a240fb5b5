"""The model card and the data card: the hub's library reads them, and every figure is a manifest's."""

import json
from dataclasses import replace

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import small_world

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import seal
from crops_jax.comparison.card import evals_of_seeds, measured, model_facts
from crops_jax.config import Experiment
from crops_jax.handover.cards import data_card, model_card
from crops_jax.labels import LOG_ONLY, LabelsConfig


@pytest.fixture
def arm(tmp_path):
    """arm(name, config, values): an arm that was trained and evaluated; its values of CT recall@10, query by query."""

    def make(name, config, values, asked="the sets of the day", mined="mined once"):
        e = Experiment(name=name, title="An arm", workdir=str(tmp_path), world=None)
        (learned := e.folder("mined").with_name(mined)).write_text(mined)
        with write_folder(e.arm_folder("records"), kind="records", config={"seed": 3}, inputs={"mined": learned}):
            pass
        with write_folder(
            e.arm_folder("train"), kind="train", config=config, inputs={"records": e.arm_folder("records")}
        ):
            pass
        rows = [{"set": "CT", "metric": "recall@10", "event_id": q, "query": q, "seen": True, "value": v}
                for q, v in values.items()]  # fmt: skip
        (sets := e.folder("testsets").with_name(asked)).write_text(asked)
        made_from = {"train": e.arm_folder("train"), "testsets": sets}
        with write_folder(e.arm_folder("eval"), kind="eval", inputs=made_from) as out:
            (out / "results.json").write_text(json.dumps({"cutoffs": [10, 100], "ndcg_at": 4}))
            pq.write_table(pa.Table.from_pylist(rows), out / "per_query.parquet", write_page_checksum=True)
        return e

    return make


def test_runs_that_differ_in_seeds_alone_are_one_method(arm):
    e = arm("a", {"seed": 0, "input": {"seed": 1, "batch": 2}}, {"q": 0.5, "r": 1.0})
    arm("b", {"seed": 7, "input": {"seed": 2, "batch": 2}}, {"q": 1.0, "r": 1.0})
    arm("c", {"seed": 0, "input": {"seed": 1, "batch": 3}}, {"q": 0.0, "r": 0.0})
    arm("d", {"seed": 5, "input": {"seed": 5, "batch": 2}}, {"s": 0.0}, asked="the sets of another day")
    arm("e", {"seed": 6, "input": {"seed": 6, "batch": 2}}, {"q": 0.0, "r": 0.0}, mined="mined with P3")
    arm("f", {"seed": 7, "input": {"seed": 2, "batch": 2}}, {"q": 0.0, "r": 0.0})  # the seeds of b
    folders = evals_of_seeds(e)
    assert [folder.parent.name for folder in folders] == ["a", "b"]
    (found,) = measured(folders)
    assert (found.name, found.value, found.queries) == ("CT@10", 0.875, 2) and found.low <= 0.75 and found.high == 1.0
    with write_folder(e.arm_folder("train"), kind="train", config={"seed": 0}):
        pass
    assert evals_of_seeds(e) == [], "it was trained again since"


def test_the_seeds_of_a_benchmarks_method_find_each_other(arm):
    e, same = arm("crops/lr1_seed0", {"seed": 0}, {"q": 0.5}), arm("crops/lr1_seed1", {"seed": 1}, {"q": 1.0})
    arm("other/lr1_seed1", {"seed": 1}, {"q": 0.0})
    assert evals_of_seeds(e) == [e.arm_folder("eval"), same.arm_folder("eval")]


def test_the_model_card_is_the_hubs_and_says_what_is_known(arm):
    e = arm("a", {"seed": 0}, {"q": 0.5, "r": 1.0})
    trained = replace(e, labels=LabelsConfig(sources=LOG_ONLY))
    with write_folder(e.folder("logs"), kind="logs") as out:
        small_world(out.path)
    logs, mined, records = e.folder("logs"), e.folder("mined"), e.arm_folder("records")
    with write_folder(mined, kind="mined", inputs={"logs": logs}) as out:
        out.counts.update(P0=7, P1=5)
    with write_folder(records, kind="records", inputs={"mined": mined, "logs": logs}) as out:
        out.counts["splits"] = {"train": {"groups": 11, "documents": 23}}
    seal(e.arm_folder("train"), kind="train", config={"seed": 0}, inputs={"records": records}, counts={})
    seal(e.arm_folder("eval"), kind="eval", config=None, inputs={"train": e.arm_folder("train")}, counts={})
    card = huggingface_hub.ModelCard(model_card(model_facts(e, trained)))
    assert card.data.library_name == "sentence-transformers" and card.data.model_name == "An arm"
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("CT@10", 0.75)]
    for said in ("Logs of 2025-06-15; 11 searches with 23 graded documents", "| P0 | clicked or liked", "| 4 | 7 |",
                 "| CT@10 | 0.7500 |", "one training run", "width 896, causal, last pooling",
                 "In `keyword` and `click_query` every `|` becomes a space."):  # fmt: skip
        assert said in card.text, said
    assert "| P1 |" not in card.text and "imulated" not in card.text, "it trains on no P1, and nothing was simulated"
    with write_folder(mined, kind="mined", inputs={"logs": logs}) as out:
        out.counts.update(P0=8)
    assert "| 4 | 8 |" not in model_card(model_facts(e, trained)), "it was mined again since"
    alone = replace(e, workdir=str(out.path.parent / "elsewhere"))
    with write_folder(alone.arm_folder("train"), kind="train", config={"seed": 0}):
        pass
    bare = model_card(model_facts(alone, trained))
    assert "a day that is not at hand" in bare and "Not measured" in bare and "model-index" not in bare


def test_the_data_card_counts_what_was_mined():
    words = {"enabled": True, "endpoint": {"model": "m-14b"}}
    config = {"mining": {"threshold": {"alpha": 0.6}, "world_knowledge": words}, "simulated_llm": None}
    counts = {"candidates": 1234, "P0": 1000, "P3": 34, "P3_asked": 40, "log_rows": {"searches": 5},
              "day": "2025-06-15"}  # fmt: skip
    text = data_card(counts, config, "0f")
    card = huggingface_hub.DatasetCard(text)
    assert card.data.size_categories == ["1K<n<10K"] and card.data.task_categories == ["text-retrieval"]
    for said in ("1234 rows from the logs of 2025-06-15", "| P0 | clicked or liked in the ranking stage | 4 | 1000 |",
                 "40 questions to m-14b, 34 documents", "above 0.6", "- searches: 5 rows", "`0f`"):  # fmt: skip
        assert said in card.text, said
    assert np.all([letter not in card.text for letter in ("| P1", "| X3")])
    config["mining"]["world_knowledge"] = {"enabled": False}
    assert "None was asked." in data_card(counts, config, "0f")
