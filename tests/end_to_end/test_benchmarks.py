"""The benchmarks that need neither torch nor a run's data still run, in small, and print their tables."""

import re
import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.slow
def test_the_loss_benchmark_prints_both_tables():
    flags = ["--queries=8", "--group=4", "--width=16", "--runs=1", "--timed-tokens=128"]
    command = [sys.executable, "benchmarks/loss.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    memory, share = done.stdout.split("loss / step")
    assert "B=8 K=4 N=32 D=16, median of 1 runs" in memory
    for form in ("nxn", "factored", "streaming"):
        assert re.search(rf"^{form} +\d+\.\d +1/\d+\.\d +\d+\.\d$", memory, re.MULTILINE)
        assert re.search(rf"^{form} .*GFLOP 0\.\d+% +(0.*GFLOP .*%|not counted) +\d+\.\d+%$", share, re.MULTILINE)


@pytest.mark.slow
def test_the_mining_benchmark_finds_by_hand_what_it_mines():
    done = subprocess.run(
        [sys.executable, "benchmarks/mining.py", "--candidates=20_000"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^20,000 candidates, 5,000 feed, 1,000 items, 1,000 searches$", done.stdout, re.MULTILINE)
    ours, by_hand = re.search(r"unique pairs: ours ([\d,]+), by hand ([\d,]+)", done.stdout).groups()
    assert ours == by_hand and len(ours) > 4
    assert re.search(r"^all of mining +\d+\.\d +[\d,]+$", done.stdout, re.MULTILINE)
