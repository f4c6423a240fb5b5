"""Bars say how far a stage has come and how long the rest takes."""

import re
import time

import pytest

from crops_jax import progress


def _bar(pause_s):
    with progress.bar("train", total=4, unit="step") as bar:
        for _ in range(2):
            time.sleep(pause_s)
            bar.update(1)


def _loop(pause_s):
    for i in progress.progress(range(4), "train", unit="step"):
        time.sleep(pause_s if i < 2 else 0)


@pytest.mark.parametrize("stage", [_bar, _loop])
def test_a_bar_shows_the_time_that_is_left(stage, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    stage(0.6)  # a bar is drawn twice a second at most
    drawn = re.findall(r"train: +(\d+)%\|.*?\| (\d)/4 \[\d\d:\d\d<(\d\d:\d\d|\?), ", capsys.readouterr().err)
    assert ("25", "1", "00:01") in drawn  # three steps of 0.6 s


def test_a_short_stage_draws_nothing(capsys):
    _bar(0.0)
    _loop(0.0)
    assert capsys.readouterr().err == ""
