"""Evaluation on held-out groups while training, and the checkpoint that it selects."""

import math
from dataclasses import replace

import jax
import numpy as np
import pyarrow as pa
import pytest

from crops_jax import train
from crops_jax.artifacts.folders import write_folder
from crops_jax.batch import IdFeatures
from crops_jax.batches.config import InputConfig
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.labels import Group
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.models import dual_encoder
from crops_jax.models.config import DualEncoderConfig, SparseMlpConfig
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh
from crops_jax.records import Items, RecordsConfig, RecordsReader, write_records
from crops_jax.retrieval.config import EncodeConfig
from crops_jax.runs.trained import trained_model
from crops_jax.text.hashed_ids import IdConfig, IdHasher
from crops_jax.training import validation
from crops_jax.training.checkpoint import Checkpoints
from crops_jax.training.config import TrainConfig, ValidationConfig
from crops_jax.training.metric_writers import read_metrics
from crops_jax.training.validation import Validation

TEXTS = {i: f"item {i}" + " and more" * (i % 4) for i in range(-3, 20)}
QUERIES = ("pump", "lamp", "drill", "saw")  # all held out at share 0.75; "query 14" is not
# Query q has items 5q (label 4), 5q + 1 (5), 5q + 2 and 5q + 3 (2), in three events, and documents that were written.
GRADES = [{5 * q: 4, 5 * q + 1: 5, 5 * q + 2: 2, 5 * q + 3: 2} for q in range(4)]
SPARSE = DualEncoderConfig(
    backbone=SparseMlpConfig(
        ids=IdConfig(query_bits=8, video_bits=8, keyword_bits=8, term_bits=8), hidden=(16,), width=8
    )
)
HASHER = IdHasher(SPARSE.backbone.ids)
CONFIG, ENCODE = ValidationConfig(every=1, k=3), EncodeConfig(batch=8)


def held_out_groups():
    for event in range(12):
        q, other = event % 4, 1 + event // 4
        ids, labels = [5 * q, 5 * q + other, -other], [4, GRADES[q][5 * q + other], 4]
        yield Group(f"r{event}", event, QUERIES[q], np.array(ids), np.array(labels, np.int32), np.ones(3, np.int32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    table = pa.table({"item_id": list(TEXTS), **{name: list(TEXTS.values()) for name in TEXT_FIELDS}})
    folder = tmp_path_factory.mktemp("data") / "records"
    trained = Group("t", 0, "query 14", np.array([0]), np.array([4], np.int32), np.ones(1, np.int32))
    with write_folder(folder, kind="records") as out:
        config = RecordsConfig(shards=1, validation_share=0.75)
        write_records([trained, *held_out_groups()], Items({"items": table}), out, config, seed=0)
    return folder


def measure(folder, encode=ENCODE, min_positive=4):
    """With random weights, over eight devices."""
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        model = dual_encoder.init(SPARSE, jax.random.key(0))
        return Validation(RecordsReader(folder, "validation"), HASHER, CONFIG, encode, mesh, min_positive).measure(
            model
        )


def by_hand(scores):
    """(recall@3, NDCG@3) from float[4 queries, 20 items]; items that no query has are not ranked."""
    corpus = sorted(item for grades in GRADES for item in grades)
    recall, ndcg = [], []
    for row, grades in zip(scores, GRADES, strict=True):
        best = sorted(corpus, key=lambda item: -row[item])[:3]
        recall.append(sum(grades.get(item, 0) >= 4 for item in best) / 2)
        gain = sum((2 ** grades.get(item, 0) - 1) / math.log2(place + 2) for place, item in enumerate(best))
        ndcg.append(gain / (31 + 15 / math.log2(3) + 3 / 2))
    return np.mean(recall), np.mean(ndcg)


def test_it_is_what_single_texts_and_plain_loops_give(folder):
    model = dual_encoder.init(SPARSE, jax.random.key(0))
    items = range(20)
    texts = [TEXTS[i] for i in items]
    docs = HASHER.encode_documents(list(items), texts, ["\n".join([text] * 4) for text in texts])
    queries, docs = (IdFeatures(*rows) for rows in (HASHER.encode_queries(QUERIES), docs))
    encode = jax.jit(dual_encoder.encode, static_argnums=1)
    vectors = [np.asarray(encode(model, *args)) for args in (("query", queries), ("document", docs))]
    recall, ndcg = by_hand(vectors[0] @ vectors[1].T)
    assert 0 < recall < 1
    found = measure(folder)
    assert found == pytest.approx({"validation_recall_3": recall, "validation_ndcg_3": ndcg}, abs=1e-9)


def test_worked_numbers(folder, monkeypatch):
    """The first query ranks its labels 5, none, 4; for the others all documents tie, so that the three that the
    split has first come first: items 0, 1 and 5, of which the second query has 5 with label 4."""
    scores = np.zeros((4, 16), np.float32)
    scores[0, [1, 2, 0]] = 0.9, 0.8, 0.7  # items 1, 5, 0: in the order of first appearance

    def encoded(model, tower, rows, *_):
        assert len(rows.ids) == (4 if tower == "query" else 16)  # each once, and no written document
        return np.eye(4, dtype=np.float32) if tower == "query" else scores.T

    monkeypatch.setattr(validation, "encode_rows", encoded)
    ideal = 31 + 15 / math.log2(3) + 3 / 2
    expected = {"validation_recall_3": (1 + 1 / 2) / 4, "validation_ndcg_3": (31 + 15 / 2 + 15 / 2) / ideal / 4}
    assert measure(folder) == pytest.approx(expected, abs=1e-12)
    assert measure(folder, min_positive=5)["validation_recall_3"] == 1 / 4, "items 1, 6, 11 and 16, of which 1 is found"


def test_a_sample_of_so_many_groups_is_read_and_always_the_same(folder):
    reader, read = RecordsReader(folder, "validation"), []
    of_split = reader.read
    reader.read = lambda numbers: read.append([int(n) for n in numbers]) or of_split(numbers)
    for groups in (5, 5, 12, 13):
        Validation(reader, HASHER, replace(CONFIG, groups=groups), ENCODE, make_mesh(MeshConfig()), 4)
    assert [len({*numbers}) for numbers in read] == [5, 5, 12, 12]
    assert read[0] == read[1] != [0, 1, 2, 3, 4]  # not the first of the split


def test_bad_input_is_refused_with_a_mend(folder, tmp_path):
    with pytest.raises(InputError, match="every = 0: it must be above zero to select by 'recall'"):
        ValidationConfig(select="recall")
    table = pa.table({"item_id": [1, -1], **{name: ["text", "text"] for name in TEXT_FIELDS}})
    ones = np.ones(1, np.int32)
    groups = [Group("t", 0, "query 14", np.array([1]), 4 * ones, ones)]
    written = Group("v", 0, "pump", np.array([-1]), 4 * ones, ones)
    for name, extra in (("empty", []), ("written", [written])):
        with write_folder(tmp_path / name, kind="records") as out:
            config = RecordsConfig(validation_share=0.75)
            write_records([*groups, *extra], Items({"items": table}), out, config, seed=0)
        with pytest.raises(InputError, match=r"no held-out query has a document to find; raise .*validation_share"):
            measure(tmp_path / name)
    with pytest.raises(InputError, match=r"encode.batch = 12 does not divide over 8 devices"):
        measure(folder, encode=EncodeConfig(batch=12))


def test_the_last_step_is_evaluated_too():
    config = ValidationConfig(every=4)
    assert [step for step in range(1, 11) if config.due(step, 10)] == [4, 8, 10]
    assert not any(ValidationConfig().due(step, 10) for step in range(1, 11))


def test_the_best_step_outlives_the_newest_and_is_read_first(tmp_path):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = {"w": jax.ShapeDtypeStruct((3,), np.float32, sharding=sharding)}

    def saved(step):
        return {"w": jax.device_put(np.full(3, step, np.float32), sharding)}

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, score, better in (
            (1, 0.2, True),
            (2, 0.9, True),
            (3, None, False),
            (4, 0.5, False),
            (5, None, False),
        ):
            assert checkpoints.improves(score) == better
            checkpoints.save(step, saved(step), score)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.steps() == [2, 5]
        assert checkpoints.restore(shape)[0] == 5  # a run goes on from the newest
        assert checkpoints.improves(0.91) and not checkpoints.improves(0.9)
        checkpoints.save(6, saved(6), 0.9)  # as good, and later
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [6]
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(7, saved(7), 0.95)
        checkpoints.save(8, saved(8))
    payload = next(path for path in (tmp_path / "checkpoints/7").rglob("*/d/*") if path.is_file())
    payload.write_bytes(payload.read_bytes()[:-1])
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(InputError, match="step 7 is damaged"):
        checkpoints.restore(shape, best=True)
    (tmp_path / "checkpoints/7/manifest.json").write_text("{")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(shape)[0] == 8 and checkpoints.improves(0.1)  # no score is left that can be read
        checkpoints.save(9, saved(9), 0.1)
        checkpoints.wait()
        assert checkpoints.steps() == [8, 9]


@pytest.fixture
def experiment(tmp_path):
    """Forty queries, of which some are held out, for each of which an item has the query's words."""
    words = [f"query {i}" for i in range(40)]
    table = pa.table({"item_id": list(range(40)), **dict.fromkeys(TEXT_FIELDS, words)})
    labels = np.array([4, 2], np.int32)
    groups = [Group(f"r{i}", i, words[i], np.array([i, (i + 1) % 40]), labels, labels) for i in range(40)]
    e = Experiment(
        workdir=str(tmp_path),
        input=InputConfig(batch_queries=8, docs_per_query=2),
        model=SPARSE,
        train=TrainConfig(steps=4, save_every=4, log_every=4, keep=1),
        validation=ValidationConfig(every=1, groups=8, select="recall"),
        encode=ENCODE,
    )
    with write_folder(e.arm_folder("records"), kind="records") as out:
        write_records(groups, Items({"items": table}), out, RecordsConfig(shards=1, validation_share=0.3), seed=0)
    return e


@pytest.mark.slow
def test_a_run_evaluates_keeps_its_best_step_and_later_verbs_read_it(experiment, monkeypatch):
    said = iter([0.2, 0.9, 0.5, 0.4])
    measure = Validation.measure
    monkeypatch.setattr(Validation, "measure", lambda self, m: measure(self, m) | {"validation_recall_10": next(said)})
    train.run(experiment)
    lines = read_metrics(experiment.arm_folder("train") / "metrics.jsonl")
    assert [line["validation_recall_10"] for line in lines] == [0.2, 0.9, 0.5, 0.4]
    assert all(0 < line["validation_ndcg_10"] <= 1 and line["validation_s"] > 0 for line in lines)
    with Checkpoints(experiment.arm_folder("train"), read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4]
    mesh = make_mesh(MeshConfig())
    held_out = RecordsReader(experiment.arm_folder("records"), "validation")
    sample = Validation(held_out, HASHER, experiment.validation, ENCODE, mesh, 4)
    for select, line in (("recall", lines[1]), ("last", lines[3])):
        chosen = replace(experiment, validation=replace(experiment.validation, select=select))
        with jax.set_mesh(mesh):
            model = trained_model(chosen, mesh)
            assert measure(sample, model)["validation_ndcg_10"] == pytest.approx(line["validation_ndcg_10"], abs=1e-6)
        assert float(dual_encoder.tau(model)) == pytest.approx(line["tau"], 1e-6)
    other = replace(experiment, validation=replace(experiment.validation, groups=4))
    with pytest.raises(InputError, match=r"validation\.groups: 8 -> 4"):
        train.run(other)
