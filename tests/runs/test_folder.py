"""Whether a run may go on: with another length, in another world, from other weights."""

from dataclasses import replace

import pytest

from crops_jax.baselines.config import NegativesConfig
from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.pipeline import arm_stages
from crops_jax.runs.folder import RUN, open_folder, require_same_world, start_identity
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
