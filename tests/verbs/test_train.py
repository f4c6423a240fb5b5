"""Training on a handful of invented groups: a small Qwen2, eight CPU devices unless a test says otherwise."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import elsewhere, losses, sparse, tiny_experiment

from crops_jax import train
from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest, write_manifest
from crops_jax.batches.collate import encode_groups, padded_batch
from crops_jax.batches.stream import TrainBatches
from crops_jax.errors import InputError
from crops_jax.losses.build import build_loss
from crops_jax.models import dual_encoder
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import RULES, make_mesh, put_rows
from crops_jax.records import RecordsReader
from crops_jax.runs import inputs
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.folder import held
from crops_jax.runs.tasks import task_of
from crops_jax.runs.trained import trained_experiment, trained_model
from crops_jax.text.tokenizer import train_tokenizer
from crops_jax.training import dual_encoder as training
from crops_jax.training import optim
from crops_jax.training.checkpoint import Checkpoints
from crops_jax.training.config import GradCacheConfig, MonitorConfig, OptimConfig, TrainConfig, ValidationConfig
from crops_jax.training.metric_writers import read_metrics
from crops_jax.training.step import init_state


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return tiny_experiment(tmp_path_factory.mktemp("work"))


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
    assert [r["step"] for r in records] == list(range(1, 25))
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    names = {"tau", "gradient_norm", "learning_rate", "tokens_per_s", "pairs_per_s", "data_wait_share", "padding_share"}
    assert names | {f"loss_label_{label}" for label in (1, 2, 3, 4, 5)} <= set(records[0])
    assert records[0]["count_label_5"] == 16 and records[0]["count_label_3"] == 0
    assert records[-1]["cosine_P1"] > records[0]["cosine_P1"] and records[0]["cosine_P3"] == 0.0
    assert [r["step"] for r in records if r.get("first_step_s", 0) > 0] == [1], "told once, and it took time"


@pytest.mark.slow
def test_the_sparse_model_learns_from_the_same_groups(experiment):
    arm = sparse(elsewhere(experiment, "sparse"))
    train.run(replace(arm, train=replace(arm.train, steps=20, save_every=20)))
    found = losses(arm)
    assert found[20] < found[1] - 0.3
    tables = trained_model(arm, make_mesh(MeshConfig())).query_tower.tables
    assert all(not np.any(np.asarray(table)[0]) for table in tables)  # row 0 is out-of-vocabulary and stays zero


@pytest.mark.slow
def test_what_a_run_saves_says_and_starts_from_follows_its_settings(experiment, monkeypatch):
    watched = []

    class Watched(train.Watchdog):
        def __init__(self, *args):
            watched.append(args)
            super().__init__(*args)

        def step_finished(self):
            watched.append("step")
            super().step_finished()

    monkeypatch.setattr(train, "Watchdog", Watched)
    arm = sparse(elsewhere(experiment, "settings"))
    limits = {"stuck_after": 7, "stuck_floor_s": 500, "stuck_slow_s": 900}
    said = TrainConfig(steps=8, save_every=5, log_every=3, keep=1, **limits)
    arm = replace(arm, train=said, seed=5, monitor=MonitorConfig(tensorboard=False, profile_steps=1, profile_at=2))
    train.run(arm)
    folder = arm.arm_folder("train")
    assert [*losses(arm)] == [1, 3, 5, 6, 8]  # the first, every third, every one that is saved
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == [8]
    assert not (folder / "tensorboard").exists() and any((folder / "profile").rglob("*.xplane.pb"))
    assert watched == [(folder / "stuck.0.txt", 7, 500, 900), *["step"] * 8]
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        weights = [np.asarray(task_of(replace(arm, seed=s)).first_model(mesh).query_tower.weights[0]) for s in (5, 6)]
        drawn = dual_encoder.init(arm.model, jax.random.key(5)).query_tower.weights[0]
    np.testing.assert_array_equal(weights[0], drawn)
    assert not np.array_equal(*weights)


def test_a_resumed_run_ends_bitwise_where_a_straight_one_does(experiment, straight):
    arm = elsewhere(experiment, "resumed")
    train.run(replace(arm, train=replace(arm.train, steps=3)))
    train.run(arm)
    assert losses(arm) == losses(straight)
    assert all(np.array_equal(a, b) for a, b in zip(parameters(arm), parameters(straight), strict=True))


def test_two_commands_do_not_train_in_one_folder(experiment):
    arm = sparse(elsewhere(experiment, "twice"))
    arm = replace(arm, train=replace(arm.train, steps=1))
    step = arm.arm_folder("train") / "checkpoints/1.orbax-checkpoint-tmp"
    step.mkdir(parents=True)
    with held(arm.arm_folder("train")):
        for fresh in (False, True):
            with pytest.raises(InputError, match="twice/train: another command trains in it now"):
                train.run(replace(arm, train=replace(arm.train, fresh=fresh)))
        assert step.is_dir(), "the other one is writing it"
    train.run(arm)
    assert losses(arm).keys() == {1}


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(experiment, straight, monkeypatch):
    arm = elsewhere(experiment, "moved")
    train.run(replace(arm, train=replace(arm.train, steps=4)))
    monkeypatch.setattr(inputs, "make_mesh", lambda config: make_mesh(config, jax.devices()[:2]))
    train.run(arm)
    found, expected = losses(arm), losses(straight)
    assert found.keys() == expected.keys() and found != expected
    np.testing.assert_allclose([found[s] for s in range(5, 25)], [expected[s] for s in range(5, 25)], atol=1e-4)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_by_name(experiment, straight, capsys):
    arm = elsewhere(experiment, "damaged")
    arm = replace(arm, train=replace(arm.train, steps=6))
    train.run(arm)
    checkpoints = arm.arm_folder("train") / "checkpoints"
    payload = max((checkpoints / "6").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(data)
    train.run(arm)
    said = capsys.readouterr().err
    assert "checkpoint step 6 is damaged" in said and "using step 3" in said
    assert losses(arm) == {step: loss for step, loss in losses(straight).items() if step <= 6}
    for step in (3, 6):
        next((checkpoints / str(step) / "d").iterdir()).unlink()
    with pytest.raises(InputError, match=r"step 6 is damaged \(d/.*: missing\)\n.*step 3 .*\n.*--train.fresh=True"):
        trained_model(arm, make_mesh(MeshConfig()))


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


def spoilt(what):
    """Losses that are NaN, or whose gradient alone is."""

    def build(config):
        objective = build_loss(config)

        def loss(e_query, e_doc, log_tau, batch):
            value, aux = objective(e_query, e_doc, log_tau, batch)
            zero = jnp.sum((e_query - jax.lax.stop_gradient(e_query)) ** 2)
            return (value + jnp.sqrt(zero) if what == "gradient" else value * jnp.nan), aux

        return loss

    return build


@pytest.mark.parametrize(
    "what", ["loss", *(pytest.param(what, marks=pytest.mark.slow) for what in ("gradient", "update"))]
)
def test_a_step_that_is_not_finite_stops_before_it_is_saved(what, experiment, monkeypatch):
    arm = sparse(elsewhere(experiment, f"nan-{what}"))
    said = {"loss": "the loss is nan", "gradient": "the gradient norm is nan", "update": "the update norm is inf"}[what]
    if what == "update":
        arm = replace(arm, optim=OptimConfig(learning_rate=1e38, clip_norm=None))
    else:
        monkeypatch.setattr(training, "build_loss", spoilt(what))
    arm = replace(arm, train=replace(arm.train, save_every=1))
    with pytest.raises(InputError, match=f"step 1: {said}.*; its batch holds requests r[0-9]+, "):
        train.run(arm)
    folder = arm.arm_folder("train")
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == []
    batches = TrainBatches(RecordsReader(arm.arm_folder("records")), featurizer_of(arm), arm.input)
    first = batches.requests(batches.load(batches.start()).group_numbers)
    assert (folder / "not_finite.0.txt").read_text().split() == first and len(first) == 16


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_refused_costs_an_earlier_run_nothing(straight, fresh):
    before = contents(straight.arm_folder("train"))
    begin = replace(straight, train=replace(straight.train, fresh=fresh))
    refused = {
        "2 KV heads": replace(begin, mesh=MeshConfig(tensor=4)),
        "does not divide the 8 rows": replace(begin, gradcache=GradCacheConfig(doc_micro_batches=3)),
        "encode.batch = 12": replace(
            begin, encode=replace(begin.encode, batch=12), validation=ValidationConfig(every=5)
        ),
    }
    if fresh:
        refused["no local folder"] = replace(begin, model=replace(begin.model, init_from="/nowhere"))
    for said, wrong in refused.items():
        with pytest.raises(InputError, match=said):
            train.run(wrong)
    assert contents(straight.arm_folder("train")) == before


def test_a_finished_run_keeps_the_version_that_trained_it_and_is_not_taken_for_a_shorter_one(straight):
    folder = straight.arm_folder("train")
    told, last = read_manifest(folder), folder / "checkpoints/24"
    write_manifest(last, read_manifest(last) | {"code_version": "0.0.1"})
    (folder / "manifest.json").unlink()  # killed before it was sealed anew
    train.run(straight)
    sealed = read_manifest(folder)
    assert sealed["code_version"] == "0.0.1" and sealed["inputs"] == told["inputs"]
    with pytest.raises(InputError, match=r"train\.steps: 12, and the run has done 24"):
        train.run(replace(straight, train=replace(straight.train, steps=12)))
    assert read_manifest(folder)["counts"]["steps"] == 24


@pytest.mark.slow
def test_how_a_result_is_computed_may_change(straight):
    model = replace(straight.model, remat="full", attention_scores=2**10)
    other = replace(straight, model=model, input=replace(straight.input, prefetch=1))
    train.run(other)
    assert trained_experiment(other).model == model


def test_a_step_that_does_not_fit_is_told_with_what_takes_less(monkeypatch):
    def full(_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand a table")

    monkeypatch.setattr(train, "run", full)
    monkeypatch.setattr("sys.argv", ["train", "--config=configs/demo.py"])
    monkeypatch.setattr(train.processes, "initialize", lambda: None)
    with pytest.raises(InputError, match=r"device memory: RESOURCE_EXHAUSTED: out of memory; --model.remat=full"):
        train.main()


def test_a_batch_that_the_mesh_does_not_divide_is_refused(experiment):
    arm = elsewhere(experiment, "odd")
    with pytest.raises(InputError, match=r"input.shards = 4 does not divide over 8 devices"):
        train.run(replace(arm, input=replace(arm.input, shards=4)))


@pytest.mark.parametrize(
    ("limit", "said"), [({"max_positions": 15}, "up to 16 tokens"), ({"vocab_size": 10}, "tokens, but")]
)
def test_texts_that_the_tables_have_no_rows_for_are_refused(limit, said, experiment):
    backbone = replace(experiment.model.backbone, **limit)
    with pytest.raises(InputError, match=said):
        featurizer_of(replace(experiment, model=replace(experiment.model, backbone=backbone)))


@pytest.mark.slow
def test_one_device_equals_eight(experiment):
    experiment = replace(experiment, model=replace(experiment.model, tie_towers=True))  # half as much to compile
    reader = RecordsReader(experiment.arm_folder("records"))
    encoder = featurizer_of(experiment)
    batches = TrainBatches(reader, encoder, experiment.input)

    def run(devices, mesh_config):
        mesh = make_mesh(mesh_config, devices)
        with jax.set_mesh(mesh):
            task = task_of(experiment)
            begin = partial(init_state, objective=task.objective, optimiser=task.optimiser)
            state, step = jax.jit(begin)(task.first_model(mesh)), task.traced_step(mesh).lower().compile()
            found, position = [], batches.start()
            for _ in range(3):
                loaded = batches.load(position)
                position = loaded.position
                state, metrics = step(state, put_rows(loaded.batch, mesh), None)
                found.append([float(metrics[name]) for name in ("loss", "gradient_norm", "tau")])
            return np.array(found)

    one = run(jax.devices()[:1], MeshConfig())
    np.testing.assert_allclose(run(jax.devices(), MeshConfig()), one, rtol=2e-5)
    np.testing.assert_allclose(run(jax.devices(), MeshConfig(replica=2, tensor=2)), one, rtol=2e-5)


def test_empty_group_slots_do_not_change_the_scale(experiment):
    experiment = sparse(experiment)
    reader = RecordsReader(experiment.arm_folder("records"))
    groups = encode_groups(reader.read(range(16)), featurizer_of(experiment))
    shards = [groups[2 * s : 2 * s + 2] for s in range(8)]
    model = dual_encoder.init(experiment.model, jax.random.key(0))
    objective = build_loss(experiment.loss)

    @jax.jit
    def loss(batch):
        queries, docs = (
            dual_encoder.encode(model, "query", batch.query),
            dual_encoder.encode(model, "document", batch.docs),
        )
        return objective(queries, docs, model.log_tau, batch)[0]

    full, half_empty = (padded_batch(shards, slots, 4, 0) for slots in (2, 4))
    np.testing.assert_allclose(loss(half_empty), loss(full), rtol=1e-6)


def test_weight_decay_leaves_tau_norms_and_biases_alone(experiment):
    model = jax.jit(dual_encoder.init, static_argnums=(0, 2))(experiment.model, jax.random.key(0), RULES)
    optimiser = optim.build(
        OptimConfig(learning_rate=0.1, weight_decay=0.5), dual_encoder.parameter_groups(experiment.model), 3
    )
    no_gradient = jax.tree.map(np.zeros_like, model)
    update, _ = jax.jit(lambda g, p: optimiser.update(g, optimiser.init(p), p))(no_gradient, model)
    tower, moved = model.query_tower, update.query_tower
    np.testing.assert_allclose(moved.layers.gate, -0.1 * 0.5 * tower.layers.gate, rtol=1e-6)
    assert not np.any(moved.layers.attention_norm) and not np.any(moved.layers.q_bias) and not np.any(update.log_tau)
