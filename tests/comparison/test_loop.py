"""The loop: its days as experiments, its figures, its page."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from page_reader import Reader

from crops_jax import loop
from crops_jax.command_line import load_file
from crops_jax.comparison import loop_page
from crops_jax.comparison.loop_config import PLATFORM, Loop
from crops_jax.comparison.loop_results import Row, loop_results
from crops_jax.config import differences
from crops_jax.errors import InputError
from crops_jax.runs.tasks import task_of
from crops_jax.simulate.measures import MEASURES, Share
from crops_jax.simulate.simulator import build_world
from crops_jax.simulate.synthetic import SyntheticWorldConfig

DEMO = replace(load_file("configs/loop_demo.py", "LOOP", Loop), days=4, resamples=300)
WORLD = build_world(SyntheticWorldConfig(n_items=126, n_intents=126, queries_per_intent=1))
LEVELS = {PLATFORM: (0.5, 0.4, 0.4, 0.4), "fs_lr": (0.5, 0.6, 0.5, 0.4), "crops": (0.5, 0.6, 0.7, 0.8),
          "crops_control": (0.5, 0.6, 0.6, 0.6)}  # fmt: skip


@pytest.mark.parametrize("name", ["fs_lr", "crops", "dpr", "nce"])
def test_a_day_trains_on_from_the_day_before(name):
    first, later = DEMO.day(name, 2, 0), DEMO.day(name, 2, 3)
    task_of(later)  # its settings fit each other
    assert first.model.init_from is None
    assert later.model.init_from == "runs/loop/demo/" + name + "/seed2/day_02/train"
    assert later.arm_folder("records").as_posix() == f"runs/loop/demo/{name}/seed2/day_03/records"
    assert later.folder("logs").as_posix() == f"runs/loop/demo/{name}/seed2/day_03/logs"
    assert later.text.tokenizer == first.text.tokenizer
    assert first.text.tokenizer == "runs/loop/demo/platform/seed2/day_00/tokenizer/tokenizer.json"
    assert (later.simulate.seed, later.seed, later.train.steps) == (2, 2, DEMO.base.train.steps)
    assert differences(later, DEMO.base, ("world", "mining", "theta", "simulated_llm", "optim")) == []


@pytest.mark.parametrize("flag", ["--seed=3", "--input.seed=3", "--name=other"])
def test_a_field_that_the_loop_sets_itself_is_no_flag(flag, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["loop", "--config", "configs/loop_demo.py", "--out", "out", flag])
    with pytest.raises(InputError, match=r"give (these|another --workdir)"):
        loop.main()


def test_bad_loops_are_refused():
    refused = {
        r"method 'cropps' is none of nce": {"methods": ("cropps",)},
        r"method 'sparse_log': give a base with the sparse model": {"methods": ("sparse_log",)},
        r"method 'adore' trains one tower alone": {"methods": ("adore",)},
        r"method 'dpr_warm' is none of nce": {"methods": ("dpr_warm",)},
        r"method 'infonce' takes as many steps as its shards need": {"methods": ("infonce",)},
        r"days = 2": {"days": 2},
        r"control 'dpr' is none of the loop's methods: fs_lr, crops": {"controls": ("dpr",)},
        r"controls = \('crops', 'crops'\): none twice": {"controls": ("crops", "crops")},
        r"first_steps = 0": {"first_steps": 0},
        r"seeds = \(0, 0\)": {"seeds": (0, 0)},
        r"resamples = 5": {"resamples": 5},
        r"base\.world is none": {"base": replace(DEMO.base, world=None)},
    }
    for match, change in refused.items():
        with pytest.raises(InputError, match=match):
            replace(DEMO, **change)


@pytest.mark.parametrize(("flag", "text"), [("--days", "3,9"), ("--first-steps", "many")])
def test_a_flag_that_takes_one_number_takes_no_list(flag, text, monkeypatch):
    monkeypatch.setattr("sys.argv", ["loop", "--config", "configs/loop_demo.py", "--out", "nowhere", flag, text])
    with pytest.raises(InputError, match=f"{flag}: '{text}' is no whole number"):
        loop.main()


def results(seeds=(0,)):
    """Every measure of a method has the same level on a day; some queries have more, some less."""
    days = replace(DEMO, seeds=seeds, controls=("crops",))
    assert days.rows == tuple(LEVELS)

    def day(level, seed):
        asked = np.full(200, 4.0)
        noise = np.random.default_rng(seed).uniform(-0.05, 0.05, 200)
        return {m.name: Share(asked * (level + noise), asked) for m in MEASURES}

    rows = [Row(name, [[day(level, seed) for level in levels] for seed in seeds]) for name, levels in LEVELS.items()]
    found = json.loads(json.dumps(loop_results(days, WORLD, rows)))
    return {"command": "python -m crops_jax.loop", "version": "1", "jax": "2", "device": "cpu", "cores": 2,
            "date": "2026-01-01", **found}  # fmt: skip


def test_what_narrows_is_said_to_narrow_whoever_it_is():
    said = loop_page.findings(results())
    assert said[0].startswith("the platform's own channel: intents served from day 1 to day 3 +0.00")
    assert said[0].endswith("no change beyond chance.")
    assert said[1].startswith("FS-LR: intents served from day 1 to day 3 -20.00") and said[1].endswith("it narrows.")
    assert said[2].startswith("CroPS as printed: intents") and said[2].endswith("it widens.")
    assert said[5].startswith("CroPS as printed against FS-LR on day 3: intents served +40.00 [+")
    control = "CroPS as printed, control against CroPS as printed on day 3: intents served -20.00 ["
    assert said[6].startswith(control), "a control is compared with its method"


def test_figures_and_what_the_intervals_stand_on():
    one, three = results(), results((0, 1, 2))
    crops = one["rows"][2]
    assert crops["change"]["served"]["value"] == pytest.approx(0.2) and crops["change"]["served"]["differs"]
    assert crops["by_seed"]["clicks"][0] == pytest.approx([0.5, 0.6, 0.7, 0.8], abs=0.01)
    assert one["rows"][1]["against"] is None and one["baseline"] == "FS-LR"
    assert "bootstrap" in loop_page.legend(one) and "takes three seeds" in loop_page.legend(one)
    assert three["resamples"] is None and "Student's 95 % intervals over 3 seeds" in loop_page.legend(three)
    assert three["rows"][2]["against"]["served"]["value"] == pytest.approx(0.4)


def test_less_reformulation_is_better():
    page = loop_page.html(results())
    worse = page[page.index("Reformulation rate by day") :]
    assert 'class="worse">+20.00' in worse and 'class="better">-20.00' in worse
    before = page[page.index("Intents served by day") : page.index("Relevant pairs ever shown by day")]
    assert 'class="better">+20.00' in before and 'class="worse">-20.00' in before


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_page_is_one_file(seeds):
    found = results(seeds)
    text = loop_page.html(found)
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and reader.links == [], "well formed, and nothing to load"
    assert reader.tags.count("svg") == len(MEASURES) == reader.tags.count("table")
    assert "currentColor" in text and "#010203" not in text and "prefers-color-scheme: dark" in text
    assert "offline stand-ins" in text and "offline stand-ins" in loop_page.markdown(found)
    assert loop_page.html(found) == text, "the same bytes again"
