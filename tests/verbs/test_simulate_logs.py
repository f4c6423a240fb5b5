"""simulate_logs: both days of a world, and what they were made from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from shop import command, experiment, manifest

from crops_jax import simulate_logs
from crops_jax.artifacts.manifest import fingerprint
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs as check_day
from crops_jax.simulate.platform import PlatformConfig
from crops_jax.simulate.sessions import SessionsConfig
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.simulate.users import UsersConfig


def test_simulate_logs_writes_both_days_of_the_configs_world(tmp_path):
    e = experiment(tmp_path)
    small, quick = (
        SessionsConfig(train_sessions=60, test_sessions=20),
        PlatformConfig(dense_width=8, dense_features=500),
    )
    simulate = replace(e.simulate, users=UsersConfig(n_users=40), sessions=small, platform=quick)
    e = replace(e, world=SyntheticWorldConfig(n_items=130, n_intents=126), simulate=simulate)
    command(simulate_logs, e)
    made = manifest(e.folder("logs"))
    assert made["kind"] == "logs" and made["config"] == json.loads(json.dumps(simulate_logs.settings(e)))
    for day in ("train", "test"):
        rows = check_day(e.folder("logs"), day).rows
        assert rows["items"] == made["counts"]["world"]["items"] == 130
        assert rows["searches"] == made["counts"][day]["searches"]
    assert made["counts"]["train"]["searches"] > 60 > made["counts"]["test"]["searches"] >= 20
    with pytest.raises(InputError, match="none"):
        simulate_logs.run(replace(e, world=None))
    own = tmp_path / "calibration.json"
    shutil.copy(Path(simulate_logs.__file__).parent / "simulate" / "calibration.json", own)
    simulate_logs.run(replace(e, simulate=replace(simulate, calibration=str(own), seed=7)))
    again = manifest(e.folder("logs"))
    assert again["inputs"]["calibration"]["sha256"] == fingerprint(own)
    assert again["files"] != made["files"] and again["config"]["simulate"]["seed"] == 7
