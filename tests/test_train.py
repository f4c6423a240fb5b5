"""Training on a handful of invented groups: a small Qwen2, eight CPU devices unless a test says otherwise."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pytest

from crops_jax import optim, train
from crops_jax.artifacts import write_folder
from crops_jax.checkpoint import Checkpoints
from crops_jax.config import Experiment, TrainConfig
from crops_jax.encoders import trained_experiment, trained_model
from crops_jax.errors import InputError
from crops_jax.id_features import IdConfig
from crops_jax.input_pipeline import InputConfig, TrainBatches
from crops_jax.labels import Group
from crops_jax.metrics_log import read_metrics
from crops_jax.models import dual_encoder
from crops_jax.models.dual_encoder import DualEncoderConfig
from crops_jax.models.qwen2 import Qwen2Config
from crops_jax.models.sparse_mlp import SparseMlpConfig
from crops_jax.optim import OptimConfig
from crops_jax.records import Items, RecordsConfig, RecordsReader, write_records
from crops_jax.sharding import MeshConfig, make_mesh, put_rows
from crops_jax.text import TextConfig, train_tokenizer
from crops_jax.train_step import build_step, init_state

WORDS = ("pump", "lamp", "drill", "saw", "vase", "rope", "tile", "sink")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """An experiment whose shards and tokeniser exist: query `word` wants items that hold the word."""
    work = tmp_path_factory.mktemp("work")
    texts = [f"{WORDS[i % 8]} number {i} {WORDS[(i + 3) % 8]}" for i in range(40)]
    e = Experiment(
        workdir=str(work),
        vocabulary=300,
        text=TextConfig(append_eos=True, max_query_tokens=8, max_doc_tokens=16),
        input=InputConfig(batch_queries=16, docs_per_query=4, seed=1),
        model=DualEncoderConfig(
            backbone=Qwen2Config(vocab_size=300, width=32, layers=2, heads=4, kv_heads=2, head_size=8, ffn=64),
            pooling="last",
        ),
        optim=OptimConfig(learning_rate=3e-3),
        train=TrainConfig(steps=6, save_every=3, log_every=1, keep=3),
    )
    with write_folder(e.folder("tokenizer"), kind="tokenizer") as out:
        train_tokenizer(texts, 300, out / "tokenizer.json")
    fields = ("ocr_cover", "photo_caption", "keyword", "click_query")
    items = Items({"items": pa.table({"item_id": list(range(40)), **dict.fromkeys(fields, texts)})})
    groups = [
        Group(f"r{g}", g, WORDS[g % 8], np.array([g % 8, g % 8 + 8, (g + 1) % 8 + 16]),
              np.array([5, 4, 2], np.int32), np.array([2, 1, 32], np.int32))
        for g in range(48)
    ]  # fmt: skip
    with write_folder(e.arm_folder("records"), kind="records") as out:
        write_records(groups, items, out, RecordsConfig(shards=2), seed=0)
    return e


def elsewhere(experiment, name):
    """The same experiment in an arm folder of its own that shares the shards."""
    arm = replace(experiment, name=name)
    arm.arm_folder("records").parent.mkdir(exist_ok=True)
    if not arm.arm_folder("records").exists():
        arm.arm_folder("records").symlink_to(experiment.arm_folder("records"))
    return arm


def losses(experiment):
    return {r["step"]: r["loss"] for r in read_metrics(experiment.arm_folder("train") / "metrics.jsonl")}


def parameters(experiment):
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        return [np.asarray(x) for x in jax.tree.leaves(trained_model(experiment, mesh))]


@pytest.fixture(scope="module")
def straight(experiment):
    arm = elsewhere(experiment, "straight")
    train.run(arm)
    return arm


def test_the_loss_falls_and_every_metric_is_there(straight):
    records = read_metrics(straight.arm_folder("train") / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    names = {"tau", "gradient_norm", "tokens_per_s", "examples_per_s", "data_wait_share", "padding_share"}
    assert names | {f"loss_label_{label}" for label in (1, 2, 3, 4, 5)} <= set(records[0])
    assert records[0]["count_label_5"] == 16 and records[0]["count_label_3"] == 0
    assert records[-1]["cosine_P1"] > records[0]["cosine_P1"] and records[0]["cosine_P3"] == 0.0


def test_the_sparse_model_learns_from_the_same_groups(experiment):
    ids = IdConfig(query_bits=8, video_bits=8, keyword_bits=8, term_bits=8)
    model = DualEncoderConfig(backbone=SparseMlpConfig(ids=ids, hidden=(16,), width=8))
    arm = replace(elsewhere(experiment, "sparse"), model=model)
    train.run(replace(arm, optim=OptimConfig(learning_rate=1e-2), train=replace(arm.train, steps=20, save_every=20)))
    found = losses(arm)
    assert found[20] < found[1] - 0.3
    tables = trained_model(arm, make_mesh(MeshConfig())).query_tower.tables
    assert all(not np.any(table[0]) for table in tables)  # row 0 is out-of-vocabulary and stays zero


def test_a_resumed_run_ends_bitwise_where_a_straight_one_does(experiment, straight):
    arm = elsewhere(experiment, "resumed")
    train.run(replace(arm, train=replace(arm.train, steps=3)))
    train.run(arm)
    assert losses(arm) == losses(straight)
    assert all(np.array_equal(a, b) for a, b in zip(parameters(arm), parameters(straight), strict=True))


def test_a_damaged_checkpoint_is_passed_over_by_name(experiment, straight, capsys):
    arm = elsewhere(experiment, "damaged")
    train.run(arm)
    payload = max((arm.arm_folder("train") / "checkpoints/6").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(data)
    train.run(arm)
    said = capsys.readouterr().err
    assert "checkpoint step 6 is damaged" in said and "using step 3" in said
    assert losses(arm) == losses(straight)
    for step in (3, 6):
        (arm.arm_folder("train") / f"checksums/{step}.json").write_text('[{"path": "gone"}]')
    with pytest.raises(InputError, match="gone is missing"):
        trained_model(arm, make_mesh(MeshConfig()))


def test_a_step_that_was_killed_before_its_seal_is_written_again(experiment, straight):
    arm = elsewhere(experiment, "unsealed")
    train.run(replace(arm, train=replace(arm.train, steps=3)))
    (arm.arm_folder("train") / "checksums/3.json").unlink()
    train.run(arm)
    assert losses(arm) == losses(straight)


def test_a_tokeniser_written_anew_is_refused(experiment, straight, tmp_path):
    arm = replace(straight, workdir=str(tmp_path))
    for kind in ("tokenizer", straight.name):
        shutil.copytree(Path(straight.workdir) / kind, tmp_path / kind)
    with write_folder(arm.folder("tokenizer"), kind="tokenizer") as out:
        train_tokenizer(["other texts"], 300, out / "tokenizer.json")
    with pytest.raises(InputError, match="the tokenizer changed since the run began"):
        train.run(arm)
    with pytest.raises(InputError, match="the tokenizer is not the one it was trained with"):
        trained_experiment(arm)


def test_a_run_of_another_config_is_refused_field_by_field(straight):
    other = replace(straight, model=replace(straight.model, tau_init=0.07), optim=replace(straight.optim, b1=0.8))
    with pytest.raises(InputError) as error:
        train.run(other)
    assert error.value.problems[:2] == ["model.tau_init: 0.05 -> 0.07", "optim.b1: 0.9 -> 0.8"]
    with pytest.raises(InputError, match="trained with another config"):
        trained_experiment(other)


def test_a_checkpoint_of_another_shape_lists_every_array(straight):
    wider = replace(straight.model, backbone=replace(straight.model.backbone, ffn=128))
    with pytest.raises(InputError) as error:
        trained_model(replace(straight, model=wider), make_mesh(MeshConfig()))
    assert len(error.value.problems) == 6  # gate, up and down of both towers
    gate = "model.query_tower.layers.gate: (2, 32, 64) in the checkpoint, (2, 32, 128) in this model"
    assert gate in error.value.problems


def test_a_loss_that_is_no_number_stops_before_it_is_saved(experiment):
    arm = elsewhere(experiment, "nan")
    arm = replace(arm, optim=OptimConfig(learning_rate=1e38, clip_norm=None))
    with pytest.raises(InputError, match=r"step \d: the loss is nan; its batch holds requests r\d+"):
        train.run(arm)
    assert Checkpoints(arm.arm_folder("train"), read_only=True).steps() == []


def test_a_batch_that_the_mesh_does_not_divide_is_refused(experiment):
    arm = elsewhere(experiment, "odd")
    with pytest.raises(InputError, match=r"input.batch_queries = 12 does not divide over 8 devices"):
        train.run(replace(arm, input=replace(arm.input, batch_queries=12)))


def test_one_device_equals_eight(experiment):
    experiment = replace(experiment, model=replace(experiment.model, tie_towers=True))  # half as much to compile
    reader = RecordsReader(experiment.arm_folder("records"))
    encoder = train.text_encoder(experiment)
    batches = TrainBatches(reader, encoder, experiment.input, 3)

    def run(devices, mesh_config):
        mesh = make_mesh(mesh_config, devices)
        with jax.set_mesh(mesh):
            optimiser = optim.build(experiment.optim, dual_encoder.groups(experiment.model), 3)
            model = jax.jit(dual_encoder.init, static_argnums=(0, 2))(experiment.model, jax.random.key(0), train.RULES)
            state = jax.jit(partial(init_state, optimiser=optimiser))(model)
            step = jax.jit(build_step(experiment.loss, optimiser), donate_argnums=0)
            found = []
            for i in range(3):
                state, metrics = step(state, put_rows(batches.batch_at(i), mesh))
                found.append([float(metrics[name]) for name in ("loss", "gradient_norm", "tau")])
            return np.array(found)

    one = run(jax.devices()[:1], MeshConfig())
    np.testing.assert_allclose(run(jax.devices(), MeshConfig()), one, rtol=2e-5)
    np.testing.assert_allclose(run(jax.devices(), MeshConfig(replica=2, tensor=2)), one, rtol=2e-5)


def test_weight_decay_leaves_tau_norms_and_biases_alone(experiment):
    model = jax.jit(dual_encoder.init, static_argnums=(0, 2))(experiment.model, jax.random.key(0), train.RULES)
    optimiser = optim.build(OptimConfig(learning_rate=0.1, weight_decay=0.5), dual_encoder.groups(experiment.model), 3)
    no_gradient = jax.tree.map(np.zeros_like, model)
    update, _ = jax.jit(lambda g, p: optimiser.update(g, optimiser.init(p), p))(no_gradient, model)
    tower, moved = model.query_tower, update.query_tower
    np.testing.assert_allclose(moved.layers.gate, -0.1 * 0.5 * tower.layers.gate, rtol=1e-6)
    assert not np.any(moved.layers.attention_norm) and not np.any(moved.layers.q_bias) and not np.any(update.log_tau)
