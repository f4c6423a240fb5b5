"""A run of several rounds: ANCE in small, its negatives mined from the model as it is when a round begins."""

import shutil
from contextlib import contextmanager
from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import WORDS, elsewhere, losses, metrics, sparse, tiny_experiment, with_logs

from crops_jax import pipeline, train
from crops_jax.artifacts.manifest import fingerprint, read_manifest, seal
from crops_jax.baselines.config import AdoreConfig, NegativesConfig
from crops_jax.errors import InputError, Preempted
from crops_jax.labels import source_bits
from crops_jax.losses.config import HInfoNCEConfig, PairwiseConfig
from crops_jax.models.config import FrozenConfig
from crops_jax.parallel import processes
from crops_jax.parallel.sharding import leaf_name, make_mesh
from crops_jax.records import RecordsReader
from crops_jax.records.candidates import read_groups
from crops_jax.runs import inputs, mined_negatives
from crops_jax.runs.tasks import task_of
from crops_jax.runs.trained import trained_model
from crops_jax.training.config import TrainConfig


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A trained run to start from."""
    arm = with_logs(sparse(tiny_experiment(tmp_path_factory.mktemp("work"))))
    arm = replace(elsewhere(arm, "warm"), train=TrainConfig(steps=4, save_every=4))
    train.run(arm)
    return arm


def ance_arm(warm, name):
    return replace(
        elsewhere(warm, name),
        loss=PairwiseConfig(),
        negatives=NegativesConfig(rounds=3, top=6, count=2),
        model=replace(warm.model, init_from=str(warm.arm_folder("train"))),
        optim=replace(warm.optim, warmup_steps=2, schedule="linear"),
        train=TrainConfig(steps=9, save_every=2, log_every=1, keep=2),
    )


@pytest.fixture(scope="module")
def straight(warm):
    arm = ance_arm(warm, "straight")
    train.run(arm)
    return arm


def named(arm):
    mesh = make_mesh(arm.mesh)
    with jax.set_mesh(mesh):
        leaves, _ = jax.tree_util.tree_flatten_with_path(trained_model(arm, mesh))
        return {leaf_name(path): np.asarray(leaf) for path, leaf in leaves}


def test_every_round_trains_on_negatives_that_its_model_found(straight):
    rounds = straight.arm_folder("train") / "rounds"
    assert [p.name for p in sorted(rounds.iterdir())] == ["0001", "0002"]  # older ones are gone
    read = [RecordsReader(p) for p in sorted(rounds.iterdir())]
    groups = [reader.read(range(len(reader))) for reader in read]
    known = {word: {i, i + 8} for i, word in enumerate(WORDS)}
    for group in groups[0] + groups[1]:
        positive, *negatives = group.item_id.tolist()
        assert group.label.tolist() == [4, 1, 1]
        assert group.source.tolist() == [source_bits("P0"), source_bits("N1"), source_bits("N1")]
        assert positive in known[group.query] and known[group.query].isdisjoint(negatives)
    assert [g.item_id.tolist() for g in groups[0]] != [g.item_id.tolist() for g in groups[1]]
    assert read_manifest(rounds / "0002")["inputs"].keys() == {"mined", "logs", "checkpoint"}
    made_from = read_manifest(straight.arm_folder("train"))["inputs"]
    assert made_from["mined"]["sha256"] == fingerprint(straight.folder("mined"))
    [stage] = [stage for stage in pipeline.arm_stages(straight) if stage.kind == "train"]
    assert made_from.keys() == stage.inputs.keys() == {"records", "mined", "start"} and stage.is_current()
    assert losses(straight).keys() == set(range(1, 10))


@contextmanager
def _stopping_at(step):
    yield lambda done: done == step


@pytest.mark.parametrize("step", [1, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 5, 6))])
def test_a_run_stopped_in_a_round_or_between_two_ends_bitwise_where_a_straight_one_does(
    step, warm, straight, monkeypatch
):
    arm = ance_arm(warm, f"stopped-{step}")
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(processes, "stop_on_signal", lambda: _stopping_at(step))
        train.run(arm)
    train.run(arm)
    assert losses(arm) == losses(straight)
    found, wanted = named(arm), named(straight)
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    rates, wanted = ([line["learning_rate"] for line in metrics(run)] for run in (arm, straight))
    assert rates == wanted and wanted[0] == 0 < wanted[-1] < wanted[2]


def test_a_run_killed_while_it_mines_mines_again(warm, straight, monkeypatch):
    arm, mine, calls = ance_arm(warm, "killed"), mined_negatives.nearest_negatives, []

    def dies_in_the_second_round(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return mine(*args)

    monkeypatch.setattr(mined_negatives, "nearest_negatives", dies_in_the_second_round)
    with pytest.raises(KeyboardInterrupt):
        train.run(arm)
    train.run(arm)
    assert len(calls) == 4  # the first round was kept
    assert losses(arm) == losses(straight)


@pytest.mark.slow
def test_the_ladder_can_have_mined_documents_below_it(warm):
    arm = ance_arm(warm, "graded")
    plain = {g.request_id: g for g in read_groups(arm.ready("mined") / "candidates.parquet", arm.labels)}
    slots = arm.labels.group_size + 1
    arm = replace(
        arm,
        loss=HInfoNCEConfig(min_anchor_label=2),
        negatives=NegativesConfig(rounds=2, top=6, count=1, graded=True),
        input=replace(arm.input, docs_per_query=slots),
    )
    train.run(arm)
    made = RecordsReader(arm.arm_folder("train") / "rounds" / "0001")
    groups = made.read(range(len(made)))
    near = source_bits("N1")
    assert {g.request_id for g in groups} == plain.keys()
    for group in groups:
        graded = group.source != near
        np.testing.assert_array_equal(group.item_id[graded], plain[group.request_id].item_id)
        np.testing.assert_array_equal(group.label[graded], plain[group.request_id].label)
    assert any((group.source == near).any() for group in groups)
    with pytest.raises(InputError, match=r"count = 2: beside graded documents there are 1 of input.docs_per_query"):
        task_of(replace(arm, negatives=replace(arm.negatives, count=2)))


def test_a_lost_round_and_what_does_not_fit_a_group_are_told(warm, monkeypatch):
    arm = ance_arm(warm, "lost")
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(processes, "stop_on_signal", lambda: _stopping_at(4))
        train.run(arm)
    (arm.arm_folder("train") / "rounds" / "0001").rename(arm.arm_folder("train") / "away")
    with pytest.raises(InputError, match="0001: is gone"):
        train.run(arm)
    with pytest.raises(InputError, match=r"count = 4[\s\S]*rounds = 10, of 9 steps"):
        task_of(replace(arm, negatives=NegativesConfig(rounds=10, count=4)))
    with pytest.raises(InputError, match=r"input\.sources chooses among written groups"):
        task_of(replace(arm, input=replace(arm.input, sources=("P0",))))


def test_only_a_run_of_the_same_model_can_be_started_from(warm):
    arm = ance_arm(warm, "other")
    other = replace(arm, model=replace(arm.model, backbone=replace(arm.model.backbone, width=4)))
    with pytest.raises(InputError, match=r"model\.backbone\.width: 8 -> 4"):
        train.run(other)
    own = replace(warm, model=replace(warm.model, init_from=str(warm.arm_folder("train"))), name="warm")
    with pytest.raises(InputError, match="the folder that this run writes"):
        train.run(replace(own, train=replace(own.train, fresh=True)))


def test_a_run_whose_start_was_trained_again_does_not_go_on(warm, straight, monkeypatch):
    sealed = read_manifest(straight.arm_folder("train"))
    assert sealed["inputs"]["start"]["sha256"] == fingerprint(warm.arm_folder("train"))
    told = read_manifest(warm.arm_folder("train"))  # sealed anew, as after an upgrade, it is the same start
    made_from = {name: entry["path"] for name, entry in told["inputs"].items()}
    counts = {**told["counts"], "sealed": "anew"}
    seal(warm.arm_folder("train"), kind="train", config=told["config"], inputs=made_from, counts=counts)
    train.run(straight)
    sealed = read_manifest(straight.arm_folder("train"))
    assert sealed["inputs"]["start"]["sha256"] == fingerprint(warm.arm_folder("train"))
    folder, manifest = straight.arm_folder("train"), warm.arm_folder("train") / "manifest.json"
    known = (folder / "run.json").read_bytes()
    manifest.rename(manifest.with_name("away"))  # the start is being trained again: what it was is not forgotten
    copy = shutil.copytree(folder / "checkpoints/9", folder / "checkpoints/9.bak")
    train.run(straight)
    assert (folder / "run.json").read_bytes() == known and "start" not in read_manifest(folder)["inputs"]
    shutil.rmtree(copy)
    manifest.with_name("away").rename(manifest)
    train.run(straight)
    assert read_manifest(straight.arm_folder("train")) == sealed
    monkeypatch.setattr(inputs, "start_identity", lambda e: {"start": "others"})
    with pytest.raises(InputError, match="the start changed since the run began"):
        train.run(straight)
    assert read_manifest(straight.arm_folder("train")) == sealed


def test_adore_trains_the_query_tower_against_the_index_of_the_run_it_starts_from(warm):
    arm = replace(
        elsewhere(warm, "adore"),
        negatives=AdoreConfig(top=6),
        model=replace(
            warm.model,
            init_from=str(warm.arm_folder("train")),
            frozen=FrozenConfig(towers=("document",), tau=True),
        ),
        train=TrainConfig(steps=4, save_every=2, log_every=1),
    )
    train.run(arm)
    before, after = named(warm), named(arm)
    assert before.keys() == after.keys()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and all(name.startswith("query_tower") for name in moved)
    found = losses(arm)
    assert found[4] < found[1]
    with pytest.raises(InputError, match=r"frozen\.tau=True[\s\S]*init_from"):
        task_of(replace(arm, model=replace(arm.model, frozen=FrozenConfig(), init_from=None)))
