"""Which stages of the pipeline a change makes again: those that depend on it, and no other."""

import json
from dataclasses import replace

import pytest
from shop import manifest

from crops_jax import build_index, bundle, encode, evaluate, export, mine, pipeline, train, write_records
from crops_jax.artifacts.manifest import fingerprint, seal
from crops_jax.command_line import override
from crops_jax.errors import InputError

pytestmark = pytest.mark.slow  # the whole pipeline in small; `make test-all` runs it

VERBS = {
    "mine": (mine, "run"),
    "test sets": (mine, "run_testsets"),
    "tokeniser": (write_records, "run_tokenizer"),
    "BM25": (evaluate, "run_bm25"),
    "shards": (write_records, "run"),
    "train": (train, "run"),
    "encode": (encode, "run"),
    "index": (build_index, "run"),
    "evaluate": (evaluate, "run"),
    "export": (export, "run"),
    "bundle": (bundle, "run"),
}


@pytest.fixture
def made(monkeypatch):
    """made(experiment): the stages that the pipeline would run, in their order. None of them is run."""
    ran = []
    for name, (module, function) in VERBS.items():
        monkeypatch.setattr(module, function, lambda e, name=name: ran.append(name))

    def stages(*arms):
        ran.clear()
        pipeline.run(list(arms))
        return list(ran)

    return stages


def test_what_the_verbs_wrote_is_kept_and_reported(own_shop, made):
    assert made(own_shop) == []
    report = manifest(pipeline.run([own_shop]))
    assert {name: entry["sha256"] for name, entry in report["inputs"].items()} == {
        "bm25": fingerprint(evaluate.bm25_folder(own_shop)), "arm": fingerprint(own_shop.arm_folder("eval"))
    }  # fmt: skip
    rows = json.loads((pipeline.run([own_shop]) / "results.json").read_text())
    assert [row["arm"] for row in rows] == ["BM25", "An arm"]


@pytest.mark.parametrize(("flag", "stages"), [
    ("--theta.max_tokens=64", ["mine", "test sets"]),
    ("--mining.threshold.alpha=0.5", ["mine", "test sets"]),
    ("--mining.query_level.min_watch_ms=1", ["mine", "test sets"]),
    ("--simulated_llm.seed=1", ["mine"]),
    ("--held_out.seed=1", ["test sets"]),
    ("--records.shards=3", ["shards"]),
    ("--labels.seed=1", ["shards", "train"]),
    ("--seed=4", ["shards", "train"]),
    ("--input.batch_queries=16", ["train"]),
    ("--input.sources=P0", ["train"]),  # a bundle says which sources trained the run that is there
    ("--loss.reduction=sum", ["train"]),
    ("--optim.eps=1e-7", ["train"]),
    ("--train.keep=3", ["train"]),
    ("--validation.k=4", ["train"]),
    ("--index.reorder=7", ["index"]),
    ("--bm25.k1=1", ["BM25"]),
    ("--evaluate.ndcg_at=2", ["BM25", "evaluate"]),
    ("--evaluate.scann=False", ["BM25", "evaluate", "bundle"]),  # which then has no index
    ("--title=Another", ["evaluate", "export", "bundle"]),  # the model card has it, too
    ("--handover.evidence=False", ["bundle"]),
    # How something is computed or told, and not what.
    ("--mining.engine.memory_limit=1GB", []),
    ("--records.workers=7", []),
    ("--gradcache.doc_micro_batches=7", []),
    ("--encode.part=5", []),
    ("--monitor.tensorboard=False", []),
    ("--mesh.replica=2", []),
    ("--train.fresh=True", []),
])  # fmt: skip
def test_a_setting_makes_the_stages_again_that_read_it(flag, stages, own_shop, made):
    assert made(override(own_shop, [flag])) == stages


@pytest.mark.parametrize("flag", ["--model.tau_init=0.2", "--text.lowercase=True"])
def test_the_model_and_its_text_make_the_training_again(flag, own_shop, made):
    with pytest.raises(InputError, match="trained with another config"):  # the stand-in trained nothing
        made(override(own_shop, [flag]))
    assert pipeline.train.run is train.run and not pipeline.is_current(
        own_shop.arm_folder("train"), kind="train", config=train.settings(override(own_shop, [flag])),
        inputs={"records": own_shop.arm_folder("records")},
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "stages"), [
    ("logs", ["mine", "test sets", "tokeniser", "BM25", "shards", "encode", "evaluate", "bundle"]),
    ("mined", ["shards", "bundle"]),
    ("testsets", ["BM25", "evaluate"]),
    ("tokenizer", []),  # the records hold texts, and a train folder knows its tokeniser by its bytes
    ("records", ["train"]),
    ("train", ["encode", "evaluate", "export"]),
    ("embeddings", ["index", "evaluate", "bundle"]),
    ("index", ["evaluate", "bundle"]),
])  # fmt: skip
def test_a_folder_that_was_made_anew_makes_again_what_was_made_from_it(kind, stages, own_shop, made):
    folder = own_shop.folder(kind) if kind in ("logs", "mined", "testsets", "tokenizer") else own_shop.arm_folder(kind)
    config = manifest(folder)["config"]
    inputs = {name: entry["path"] for name, entry in manifest(folder)["inputs"].items()}
    seal(folder, kind=kind, config=config, inputs=inputs, counts={"made": "anew"})
    assert made(own_shop) == stages


def test_tokenised_records_depend_on_tokeniser_and_text(own_shop, made):
    tokenised = override(own_shop, ["--records.tokenize=True"])
    assert made(tokenised) == ["shards"]
    assert {"text", "vocabulary"} <= {*write_records.settings(tokenised)}
    assert "tokenizer" in write_records.inputs(tokenised)


def test_a_folder_that_is_not_whole_is_made_again(own_shop, made):
    (own_shop.arm_folder("index") / "ids.npy").unlink()
    assert made(own_shop) == ["index"]
    (own_shop.folder("testsets") / "manifest.json").write_text("{")
    assert made(own_shop) == ["test sets", "BM25", "index", "evaluate"]


def test_arms_share_one_data_set_and_differ_in_name(own_shop, made):
    other = replace(own_shop, name="other", title="Other", held_out=replace(own_shop.held_out, seed=1))
    with pytest.raises(InputError, match=r"held_out\.seed: 0 -> 1"):
        made(own_shop, other)
    assert [s.name for s in pipeline.data_stages(own_shop)] == ["mine", "test sets", "tokeniser"]
    assert [s.name for s in pipeline.arm_stages(own_shop)][-2:] == ["export", "bundle"]
