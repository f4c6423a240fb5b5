"""Arms that write item ids in `python -m crops_jax.pipeline`, in small, and what the verbs say to them."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from shop import WORDS, experiment

from crops_jax import bundle, encode, evaluate, export, pipeline, suggest, train, write_records
from crops_jax.artifacts.manifest import read_manifest, seal, verify
from crops_jax.config import from_json, to_json
from crops_jax.errors import InputError
from crops_jax.generative.config import GeneratorConfig
from crops_jax.labels import LOG_ONLY
from crops_jax.models.config import BartConfig
from crops_jax.runs import item_ids
from crops_jax.runs.item_ids import ready_item_ids
from crops_jax.runs.tasks import task_of
from crops_jax.suggestions.config import RQKMeansConfig
from crops_jax.training.config import OptimConfig, TrainConfig, ValidationConfig


def generator_arms(e):
    """(on all positives, on the log's alone) of the shop's arm."""
    model = BartConfig(
        vocab_size=320, width=32, encoder_layers=1, decoder_layers=1, encoder_heads=2, decoder_heads=2, encoder_ffn=64,
        decoder_ffn=64, max_positions=32, init_std=0.2,
    )  # fmt: skip
    config = GeneratorConfig(
        encoder=e.name, ids=RQKMeansConfig(codes=(4, 4), opq_parts=0, balanced=False), model=model, beams=27,
        beam_queries=4, item_texts=1, max_source_tokens=12,
    )  # fmt: skip
    whole = replace(
        e, name="generator", title="All positives", suggest=config, input=replace(e.input, records_of=e.name),
        optim=OptimConfig(learning_rate=5e-3), train=TrainConfig(steps=40, save_every=40),
        validation=ValidationConfig(),
    )  # fmt: skip
    return whole, replace(
        whole, name="log_only", title="The log's positives", input=replace(whole.input, sources=LOG_ONLY)
    )


@pytest.mark.slow
def test_generators_stand_beside_the_encoder_in_one_table_and_are_kept(own_shop, monkeypatch):
    whole, log_only = generator_arms(own_shop)
    report = pipeline.run([own_shop, log_only, whole])
    rows = {row["arm"]: row for row in json.loads((report / "results.json").read_text())}
    assert list(rows) == ["BM25", "An arm", "The log's positives", "All positives"]
    for row in rows.values():  # all answer the same test
        assert row["corpus"] == 27 and row["queries_searched"] == rows["BM25"]["queries_searched"]
    for arm in (whole, log_only):
        # On the test day user j asks for word j again, and clicks what was clicked on the train day. Chance is 5 of 27.
        found = pq.read_table(arm.arm_folder("eval") / "per_query.parquet").to_pylist()
        clicked = {r["query"]: r["value"] for r in found if (r["set"], r["metric"]) == ("CT", "recall@5")}
        assert sum(clicked[word] for word in WORDS) >= 4, clicked
        assert read_manifest(arm.arm_folder("train"))["inputs"].keys() == {"records", "item_ids", "logs"}
        for kind in ("item_ids", "train", "eval"):
            verify(arm.arm_folder(kind))
    # Log-only groups lack what was consumed after a reformulation and in the feed, and what was written: it has the
    # codes of its own vector, without the one that would make it an item.
    learned = [[row for example in _groups(arm) for row in example.rows.tolist()] for arm in (whole, log_only)]
    assert len(learned[0]) > len(learned[1]) > 0
    assert max(learned[0]) >= 27 > max(learned[1])
    ids = ready_item_ids(whole)
    assert len(ids.written) == len(WORDS) and ids.written_codes.shape == (len(WORDS), 2) and ids.written.max() < 0

    ran = []
    monkeypatch.setattr(pipeline.bundle, "run", lambda e: None)  # it would refuse what is not evaluated anew here
    for module in (train, evaluate, item_ids):
        name = module.__name__.rsplit(".", 1)[-1]
        monkeypatch.setattr(module, "run", lambda e, name=name: ran.append((e.name, name)))
    pipeline.run([own_shop, log_only, whole])
    assert ran == []
    pipeline.run([own_shop, log_only, replace(whole, suggest=replace(whole.suggest, beams=20))])
    assert ran == [("generator", "train"), ("generator", "evaluate")]  # a run goes on with another beam, and is whole
    ran.clear()
    write_folder_again(own_shop.arm_folder("embeddings"))
    pipeline.run([own_shop, log_only, whole])
    assert ran[:2] == [("arm", "evaluate"), ("log_only", "item_ids")]


def _groups(arm):
    examples = task_of(arm)._examples
    return examples.read(range(len(examples.reader)))


def write_folder_again(folder):
    """The same files under another manifest, as if another model had made them."""
    told = read_manifest(folder)
    inputs = {name: entry["path"] for name, entry in told["inputs"].items()}
    seal(folder, kind=told["kind"], config=told["config"], inputs=inputs, counts={**told["counts"], "made": "anew"})


def test_what_a_generator_lacks_is_all_named_before_the_first_stage(tmp_path):
    whole, _ = generator_arms(experiment(tmp_path))
    other = replace(whole, name="other", suggest=replace(whole.suggest, encoder="none", beams=4), input=replace(
        whole.input, records_of="nobody"))  # fmt: skip
    with pytest.raises(InputError) as caught:
        pipeline.run([whole, experiment(tmp_path), other])
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "generator: needs the embeddings of the arm 'arm'", "generator: needs the records of the arm 'arm'",
        "other: needs the embeddings of the arm 'none'", "other: needs the records of the arm 'nobody'",
        "other: suggest.beams: 4 finds no 5 items, which evaluate.cutoffs and evaluate.ndcg_at ask for",
    ]  # fmt: skip
    with pytest.raises(InputError, match="generator: writes item ids for search"):
        suggest.run([whole], [0], "")


def test_verbs_of_dual_encoders_say_whose_arm_it_is(tmp_path):
    whole, _ = generator_arms(experiment(tmp_path))
    assert from_json(to_json(whole)) == whole
    for verb in (write_records, encode, export, bundle):
        with pytest.raises(InputError, match="arm 'generator': writes item ids"):
            verb.run(whole)
    with pytest.raises(InputError, match=r"train: no such folder; make it with `python -m crops_jax\.train"):
        evaluate.run(whole)
