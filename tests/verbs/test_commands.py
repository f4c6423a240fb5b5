"""What the verbs refuse, and what they leave alone."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hand_logs import small_world

from crops_jax import check_logs, pipeline, simulate_logs
from crops_jax.artifacts.manifest import verify
from crops_jax.config import Experiment
from crops_jax.errors import InputError


def test_a_platforms_own_logs_are_never_replaced_by_simulated_ones(tmp_path):
    logs = small_world(tmp_path / "logs")
    check_logs.run(logs)
    check_logs.run(logs)  # after a table was mended, say
    verify(logs)
    before = sorted(p.name for p in logs.iterdir())
    own = Experiment(workdir=str(tmp_path))
    with pytest.raises(InputError, match="holds logs that were not simulated"):
        simulate_logs.run(own)
    assert sorted(p.name for p in logs.iterdir()) == before
    assert [s.name for s in pipeline.data_stages(replace(own, world=None))] == ["mine", "test sets"]


def test_arms_need_folders_of_their_own(tmp_path):
    arms = [Experiment(name="a", workdir=str(tmp_path))] * 2
    with pytest.raises(InputError, match="names must differ"):
        pipeline.run(arms)


def test_at_the_end_each_arm_is_told_with_the_folders_that_it_has(tmp_path, monkeypatch, capsys):
    configs = Path(__file__).parents[2] / "configs"
    files = [str(configs / f"{name}.py") for name in ("demo", "demo_sparse", "generative_demo")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pipeline", "--configs", *files])
    monkeypatch.setattr(pipeline, "run", lambda arms: Path("report"))
    pipeline.main()
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("  ")] == [
        "  crops/ records, train, embeddings, index, eval, export, bundle",
        "  sparse/ records, train, embeddings, index, eval",
        "  generator/ item_ids, train, eval",
    ]
