"""Whose run a train folder holds, and whether a command may go on with it."""

import json
from dataclasses import replace

import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.baselines.config import NegativesConfig
from crops_jax.config import Experiment, to_json
from crops_jax.errors import InputError
from crops_jax.pipeline import arm_stages
from crops_jax.runs.folder import (
    RUN,
    began_otherwise,
    discard,
    open_folder,
    read_run,
    require_same_world,
    start_identity,
)
from crops_jax.simulate.judged import COLLECTION, JudgedWorldConfig, collection_identity
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.training.config import OptimConfig, TrainConfig


def _of(steps: int, **optim) -> Experiment:
    return replace(Experiment(), train=TrainConfig(steps=steps), optim=OptimConfig(**optim))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_run_is_not_lengthened_under_a_schedule_that_ended_and_told_when_cut_short(schedule, tmp_path, capsys):
    open_folder(tmp_path, _of(24, schedule=schedule), {})
    kept = (tmp_path / RUN).read_text()
    with pytest.raises(InputError, match=rf"steps: 24 -> 36 bends the {schedule} schedule(.|\n)*optim.schedule_steps"):
        open_folder(tmp_path, _of(36, schedule=schedule), {})
    assert (tmp_path / RUN).read_text() == kept
    open_folder(tmp_path, _of(24, schedule=schedule), {})
    assert capsys.readouterr().err == ""
    open_folder(tmp_path, _of(12, schedule=schedule), {})
    assert "warning: train.steps: 24 -> 12 bends" in capsys.readouterr().err


@pytest.mark.parametrize("optim", [{}, {"schedule": "cosine", "schedule_steps": 48}])
def test_a_constant_or_declared_schedule_may_be_lengthened(optim, tmp_path, capsys):
    for steps in (24, 36, 12):
        open_folder(tmp_path, _of(steps, **optim), {})
    assert capsys.readouterr().err == ""


def test_what_a_run_was_made_of_may_lie_elsewhere_if_it_is_the_same(tmp_path):
    def at(place):
        e = Experiment()
        return replace(e, text=replace(e.text, tokenizer=f"{place}/t.json"), model=replace(e.model, init_from=place))

    made_of = {"tokenizer": "1", "start": "2"}
    open_folder(tmp_path, at("here"), made_of)
    open_folder(tmp_path, at("there"), made_of)
    assert read_run(tmp_path) == (at("there"), made_of)
    for name, place in {"tokenizer": r"text\.tokenizer", "start": r"model\.init_from"}.items():
        with pytest.raises(InputError, match=f"the {name} changed since the run began"):
            open_folder(tmp_path, at("there"), made_of | {name: "3"})
        with pytest.raises(InputError, match=f"{place}: there.* -> here"):  # whether it is the same is not known
            open_folder(tmp_path, at("here"), {n: of for n, of in made_of.items() if n != name})


def test_a_run_in_rounds_keeps_its_length_under_any_schedule(tmp_path):
    def of(steps):
        return replace(_of(steps), negatives=NegativesConfig(rounds=2))

    open_folder(tmp_path, of(24), {})
    for steps in (12, 36):
        with pytest.raises(InputError, match=rf"train.steps: 24 -> {steps}, which moves its rounds"):
            open_folder(tmp_path, of(steps), {})
    open_folder(tmp_path, of(24), {})


def test_the_declared_length_of_a_run_is_fixed(tmp_path):
    open_folder(tmp_path, _of(24, schedule="cosine"), {})
    with pytest.raises(InputError, match=r"optim.schedule_steps: None -> 36"):
        open_folder(tmp_path, _of(36, schedule="cosine", schedule_steps=36), {})


def test_a_collection_that_was_made_again_is_refused_before_its_logs_are(tmp_path):
    def collection(item):
        with write_folder(tmp_path / "c", kind="collection") as out:
            for name in ("items.parquet", "judgments.parquet"):
                (out / name).write_text(item)

    collection("a")
    e = replace(Experiment(), workdir=str(tmp_path), world=JudgedWorldConfig(str(tmp_path / "c"), relevant_grade=2.0))
    with write_folder(e.folder("logs"), kind="logs") as out:
        out.counts[COLLECTION] = collection_identity(e.world)
    open_folder(e.arm_folder("train"), e, {})
    collection("a")
    require_same_world([e])
    collection("b")
    with pytest.raises(InputError, match=r"logs would be overwritten(.|\n)*/c was made again, with other bytes"):
        require_same_world([e])
    require_same_world([replace(e, train=replace(e.train, fresh=True))])


def test_another_world_is_refused_before_its_logs_take_the_place_of_these(tmp_path):
    e = replace(Experiment(), workdir=str(tmp_path), world=SyntheticWorldConfig(n_items=700))
    require_same_world([e])
    open_folder(e.arm_folder("train"), e, {})
    other = replace(e, world=replace(e.world, n_items=800))
    with pytest.raises(InputError, match=r"logs would be overwritten(.|\n)*world.n_items: 700 -> 800(.|\n)*--workdir"):
        require_same_world([e, other])
    sessions = replace(e.simulate.sessions, test_sessions=7)
    require_same_world([e, replace(e, simulate=replace(e.simulate, sessions=sessions))])  # the train day is the same
    require_same_world([replace(other, train=replace(e.train, fresh=True))])


def test_pre_trained_weights_that_were_written_again_in_place_are_another_start(tmp_path):
    weights = tmp_path / "pretrained" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    e = replace(Experiment(), workdir=str(tmp_path))
    e = replace(e, model=replace(e.model, init_from=str(weights.parent)))
    folder = e.arm_folder("train")
    training = next(stage for stage in arm_stages(e) if stage.name == "train")
    open_folder(folder, e, start_identity(e))
    open_folder(folder, e, start_identity(e))
    assert training.begun_alike()
    weights.write_bytes(b"two")
    assert not training.begun_alike()  # so that the pipeline does not take a finished run for current
    with pytest.raises(InputError, match="the weights changed since the run began"):
        open_folder(folder, e, start_identity(e))
    weights.unlink()
    weights.parent.rmdir()
    open_folder(folder, e, start_identity(e))  # a finished run does not need them any more


def begun(folder, experiment, made_of, checkpoint="5"):
    """What an unfinished run of `experiment` leaves, in small."""
    (folder / f"checkpoints/{checkpoint}").mkdir(parents=True)
    (folder / f"checkpoints/{checkpoint}/manifest.json").touch()
    (folder / "run.json").write_text(json.dumps({"config": to_json(experiment), **made_of}))


def test_fresh_discards_any_run_but_an_unfinished_one_of_the_same_command(tmp_path):
    made_of, plain = {"shards": "1", "tokenizer": "2"}, Experiment()
    fresh = replace(plain, train=replace(plain.train, fresh=True))
    slower = replace(fresh, optim=OptimConfig(learning_rate=1e-6))
    cases = {
        "same": (fresh, made_of, True),
        "not begun afresh": (plain, made_of, False),
        "of another config": (slower, made_of, False),
        "of other shards": (fresh, made_of | {"shards": "0"}, False),
        "finished": (fresh, made_of, False),
    }
    for name, (earlier, earlier_made_of, kept) in cases.items():
        begun(tmp_path / name, earlier, earlier_made_of)
        if name == "finished":
            (tmp_path / name / "manifest.json").touch()
        open_folder(tmp_path / name, fresh, made_of)
        assert (tmp_path / name / "checkpoints").exists() == kept, name
        assert read_run(tmp_path / name) == (fresh, made_of)


@pytest.mark.parametrize(("known", "now", "otherwise"), [
    ({"start": "a"}, {"start": "a"}, False),
    ({"start": "a"}, {"start": "b"}, True),
    ({}, {"start": "b"}, False),
    ({"start": "a"}, {}, False),  # it is being trained
    ({"start": "a", "start_step": "s"}, {"start": "b", "start_step": "s"}, False),  # lengthened since
    ({"start": "a", "start_step": "s"}, {"start": "a", "start_step": "t"}, True),
    ({"start": "a"}, {"start": "b", "start_step": "s"}, True),  # of 0.8.2
])  # fmt: skip
def test_what_a_run_began_from_is_compared_as_far_as_it_is_known(tmp_path, known, now, otherwise):
    begun(tmp_path, Experiment(), known)
    assert began_otherwise(tmp_path, now) == otherwise


def test_a_discarded_run_leaves_nothing_and_a_link_stays(tmp_path):
    for folder in (tmp_path / "train", tmp_path / "disk"):
        begun(folder, Experiment(), {})
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    discard(tmp_path / "train")
    discard(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "link"]


def test_a_finished_run_that_goes_on_is_unsealed_until_it_ends(tmp_path):
    made_of, plain = {"shards": "1", "tokenizer": "2"}, Experiment()
    begun(tmp_path / "train", plain, made_of)
    (tmp_path / "train/manifest.json").touch()
    open_folder(tmp_path / "train", plain, made_of)
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["checkpoints", "run.json"]


def test_checkpoints_of_an_unknown_run_are_left_alone_and_a_linked_folder_is_emptied(tmp_path):
    made_of, plain = {"shards": "1", "tokenizer": "2"}, Experiment()
    (tmp_path / "scratch").mkdir()
    linked = tmp_path / "train"
    linked.symlink_to(tmp_path / "scratch")
    begun(linked, plain, made_of)
    (linked / "run.json").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints, but no run.json"):
        open_folder(linked, plain, made_of)
    assert (linked / "checkpoints/5").exists()
    open_folder(linked, replace(plain, train=replace(plain.train, fresh=True)), made_of)
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["run.json"]


@pytest.mark.parametrize("damage", ["[]", "{", '{"config": 1}', "{}"])
def test_a_damaged_run_file_is_named(damage, tmp_path):
    begun(tmp_path, Experiment(), {})
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(InputError, match=r"run\.json"):
        open_folder(tmp_path, Experiment(), {"shards": "1"})
