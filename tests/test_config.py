import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from places import CONFIGS, EXPERIMENTS, ROOT

from crops_jax.baselines.config import NegativesConfig
from crops_jax.command_line import from_command_line, load_file, next_command, override, take_option, wants_help
from crops_jax.config import Experiment, differences, from_json, to_json
from crops_jax.errors import InputError
from crops_jax.labels import LOG_ONLY, LabelsConfig, levels
from crops_jax.losses.config import HInfoNCEConfig, InfoNCEBinaryConfig
from crops_jax.models.config import BertConfig, DualEncoderConfig
from crops_jax.simulate.judged import JudgedWorldConfig


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_config_loads_and_survives_json(path):
    experiment = load_file(path)
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


def test_the_factored_loss_is_the_default_and_what_every_config_trains_with():
    """The paper's N x N form is for tests: equal in value, K times the memory."""
    forms = {getattr(load_file(path).loss, "form", None) for path in EXPERIMENTS}
    assert "factored" in forms and "nxn" not in forms
    assert HInfoNCEConfig().form == "factored"


def test_a_simulated_model_that_knows_few_of_the_queries_may_decline_the_others():
    """In a judged world it knows only what was held out; mining would end at the first day."""
    judged = [e for e in map(load_file, EXPERIMENTS) if isinstance(e.world, JudgedWorldConfig)]
    assert len(judged) >= 3 and all(e.mining.world_knowledge.max_failed_share == 1 for e in judged)


def test_the_papers_settings():
    e = load_file(CONFIGS / "crops_qwen2_5_0_5b.py")
    assert (e.text.max_query_tokens, e.text.max_doc_tokens) == (128, 128)
    assert e.model.tau_init == 0.05 and not e.model.tie_towers
    assert (e.optim.learning_rate, e.optim.weight_decay) == (2e-5, 1e-4)
    assert e.mining.threshold.alpha == 0.6
    assert (e.model.backbone.width, e.model.backbone.layers, e.model.backbone.vocab_size) == (896, 24, 151936)


def test_an_arm_trains_on_the_sources_that_its_groups_are_read_with():
    graded = Experiment(labels=LabelsConfig(sources=("P0", "P1", "X3")))
    read = replace(graded, input=replace(graded.input, sources=("P1", "P0", "F1")))
    assert graded.trained_sources() == ("P0", "P1", "X3") and read.trained_sources() == ("P0", "P1")
    assert replace(read, negatives=NegativesConfig()).trained_sources() == ("P0",)
    assert replace(read, negatives=NegativesConfig(graded=True)).trained_sources() == ("P0", "P1")


@pytest.mark.parametrize(("change", "said"), [
    ({"labels": LabelsConfig(sources=LOG_ONLY), "loss": HInfoNCEConfig(min_anchor_label=5)},
     "loss.min_anchor_label: 5 is above the highest label of the sources that take part, 4"),
    ({"labels": LabelsConfig(sources=LOG_ONLY), "loss": HInfoNCEConfig(rung_weights=(0.0, 0.0, 0.0, 0.0, 1.0))},
     "loss.rung_weights: all are 0 for the anchors that there are, of labels [1, 2, 3, 4]"),
    ({"negatives": NegativesConfig(), "loss": InfoNCEBinaryConfig(min_positive_label=5)},  # clicks are 4
     "loss.min_positive_label: 5 is above the highest label of the sources that take part, 4"),
    ({"loss": HInfoNCEConfig(rung_weights=(0.0, 0.0, 0.0, 0.0, 1.0))}, None),  # P1 is 5
])  # fmt: skip
def test_a_loss_without_an_anchor_among_the_sources_that_take_part_is_told(change, said):
    assert Experiment(**change).without_anchors() == ([said] if said else [])


@pytest.mark.parametrize(("labels", "said"), [
    (LabelsConfig(sources=LOG_ONLY, min_positive=5), "labels.min_positive: 5 is above the highest label"),
    (LabelsConfig(one_anchor=True, min_anchor=9), "labels.min_anchor: 9 is above the highest label"),
])  # fmt: skip
def test_labels_that_leave_no_group_are_told(labels, said):
    (problem,) = labels.without_groups()
    assert problem.startswith(said) and not LabelsConfig().without_groups()


@pytest.mark.parametrize(("make", "said"), [
    (lambda: LabelsConfig(levels=levels(P1=10**10)), r"levels\.P1: 10000000000 is not within 1\.\.100"),
    (lambda: LabelsConfig(sources=("P0", "P0", "X3")), "sources: P0 is named twice"),
    (lambda: DualEncoderConfig(widths=(4, 4)), r"widths: \(4, 4\) names one twice"),
])  # fmt: skip
def test_labels_and_widths_that_cannot_be_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_a_typo_names_the_nearest_field():
    said = r"^--optim.learning_rat: no such field; did you mean --optim.learning_rate\?$"
    with pytest.raises(InputError, match=said):
        override(Experiment(), ["--optim.learning_rat=3"])
    with pytest.raises(InputError, match=r"^--days: no such field; did you mean --day\?$"):
        override(Experiment(), ["--days=3"], "mine")


def test_overrides_reach_nested_and_tuple_fields():
    e = override(Experiment(), ["--optim.learning_rate=0.5", "--labels.sources", "P0", "X3", "--train.fresh=True"])
    assert (e.optim.learning_rate, e.labels.sources, e.train.fresh) == (0.5, ("P0", "X3"), True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--train.steps=many"], "invalid literal for int"),
        (["--train.stesp=3"], "error: --train.stesp: no such field; did you mean --train.steps?"),
        ([], "needs --config FILE"),
    ],
)
def test_bad_flags_exit_with_2_and_no_traceback(argv, said):
    config = ["--config", str(EXPERIMENTS[0])] if argv else []
    ran = subprocess.run(
        [sys.executable, "-m", "crops_jax.train", *config, *argv], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert said in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize("argv", [["--config", ""], ["--config="]])
def test_a_variable_without_a_value_is_no_config(argv):
    with pytest.raises(InputError, match="needs --config FILE"):
        from_command_line("train", argv)


def training_commands():
    """The arguments of every command of a page that trains with a config of ours, as a shell would hand them over."""
    for page in (ROOT / "README.md", ROOT / "launch/README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text().replace("\\\n", " ")
        values = dict(re.findall(r'(?m)^(\w+)="([^"]*)"', text))
        for command in re.findall(r"(?m)(?:crops_jax\.train|launch/run\.sh) (--config configs/[^`#\n|]*)", text):
            yield f"{page.name}: {command}", re.sub(r"\$(\w+)", lambda name, v=values: v[name[1]], command).split()


@pytest.mark.parametrize("argv", [pytest.param(argv, id=command) for command, argv in training_commands()])
def test_what_the_pages_train_can_be_trained(argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    if not wants_help(argv):
        experiment = from_command_line("train", argv)
        assert experiment.optim.schedule_length(experiment.train.steps) >= experiment.train.steps


def test_sections_that_may_be_none_are_put_in_and_left_out():
    base = load_file(CONFIGS / "demo.py")
    adapted = override(base, ["--model.lora.rank=4", "--model.lora.projections", "q", "v"])
    assert (adapted.model.lora.rank, adapted.model.lora.projections) == (4, ("q", "v"))
    assert override(adapted, ["--model.lora=None"]) == base
    assert override(base, ["--input.packing=None"]).input.packing is None
    with pytest.raises(InputError, match=r"did you mean --model\.lora\.rank"):
        override(base, ["--model.lora.rnak=4"])
    for flags in (["--model.lora.rank=4", "--model.lora=None"], ["--model.lora=None", "--model.lora.rank=4"]):
        with pytest.raises(InputError, match=r"--model\.lora\.rank=4: --model\.lora=None leaves that section out"):
            override(adapted, flags)
    with pytest.raises(InputError, match="lora"):  # the sparse model has nothing to adapt
        override(load_file(CONFIGS / "demo_sparse.py"), ["--model.lora.rank=4"])


def test_sections_that_may_be_none_are_left_out_by_a_flag_whatever_kinds_they_have():
    demo, generator = load_file(CONFIGS / "demo.py"), load_file(CONFIGS / "generative_demo.py")
    left = override(replace(demo, negatives=NegativesConfig()), ["--world=None", "--negatives=None"])
    assert left == replace(demo, world=None)
    assert override(generator, ["--suggest=None"]) == replace(generator, suggest=None)
    with pytest.raises(InputError, match="--loss: no such field"):  # which cannot be none
        override(demo, ["--loss=None"])


def test_help_lists_every_field_with_type_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as end:
        from_command_line("train", ["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--optim.weight_decay FLOAT" in text
    assert "--model.tau_init FLOAT" in text and "Starting temperature (paper: 0.05). (default: 0.05)" in text


@pytest.mark.parametrize(
    ("verb", "files"),
    [("pipeline", "--configs FILE..."), ("suggest", "--configs FILE..."), ("chain", "--config FILE"),
     ("preflight", "--config FILE")],
)  # fmt: skip
def test_help_begins_with_the_line_that_runs_the_verb(verb, files, capsys):
    with pytest.raises(SystemExit):
        override(Experiment(), ["--help"], verb)
    usage, told = capsys.readouterr().out.split("\n\n")[:2]
    assert usage.startswith(f"usage: python -m crops_jax.{verb} {files} [-h]")
    assert "?." not in told and "...." not in told


@pytest.mark.parametrize(
    ("verb", "flag"),
    [("mine", "--no-theta"), ("compile_check", "--topology"), ("suggest", "--until"), ("chain", "--first")],
)
def test_help_names_the_flags_that_are_no_fields(verb, flag, capsys):
    with pytest.raises(SystemExit):
        from_command_line(verb, ["--help"])
    text = capsys.readouterr().out
    assert "Flags of its own: " in text and flag in text


def test_the_next_command_is_of_the_same_config_and_fields(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train", "--config", "my configs/a.py", "--name=two", "--workdir=runs/b"])
    assert next_command("encode") == (
        "python -m crops_jax.encode --config 'my configs/a.py' --name=two --workdir=runs/b"
    )
    assert next_command("score", ["--config", "a.py"]) == "python -m crops_jax.score --config a.py"


@pytest.mark.parametrize(("flag", "said"), [
    ("--mining.threshold.alpha=1.1", "alpha: 1.1 is no threshold of cosines"),
    ("--mining.threshold.precision=90", "precision: 90.0 is no share"),
    ("--mining.query_level.min_query_similarity=nan", "min_query_similarity = nan: must be a number of 0 or more"),
    ("--mining.system_level.max_items_per_user=-1", "max_items_per_user = -1: must be a number of 0 or more"),
    ("--held_out.min_grade=nan", "min_grade = nan: must be a number of 0 or more"),
    ("--bm25.b=1.5", "b = 1.5: must lie between 0 and 1"),
    ("--loss.min_anchor_label=6", "min_anchor_label: 6 is above the highest label of labels.levels, 5"),
    ("--loss.min_anchor_label=0", "min_anchor_label: 0 is not above zero"),
    ("--name=logs", "name: 'logs' is no folder for an arm"),
    ("--name=bm25", "name: 'bm25' is no folder for an arm"),
    ("--name=../x", "name: '../x' is no folder for an arm"),
    ("--name=crops/eval", "name: 'crops/eval' is no folder for an arm: eval is"),
    ("--name=a\nb", "is no folder for an arm, which is one below workdir"),
    ("--workdir=", "workdir: is empty"),
    ("--theta.source=", "source: is empty"),
    ("--model.init_from=", "init_from: is empty"),
    ("--seed=-1", "seed: -1 is below zero"),
    ("--vocabulary=99999999999", "vocabulary: 99999999999 is not within 1.."),
    ("--mining.query_level.window_ms=99999999999999999999", "window_ms: 99999999999999999999 is no int"),
    ("--optim.learning_rate=nan", "learning_rate: nan is not above zero"),
    ("--mining.engine.threads=100000", "threads: 100000 is not within 0..1024"),
    ("--optim.clip_norm=0", "clip_norm: 0.0 is not above zero"),
    ("--optim.b2=1", "b2 = 1.0: both have to be below 1"),
    ("--optim.weight_decay=-1", "weight_decay = -1.0: must be a number of 0 or more"),
    ("--suggest_mining.rewards.order=inf", "order = inf: must be a number of 0 or more"),
    ("--suggest_mining.preferences.min_gap=inf", "suggest_mining.preferences config: min_gap: inf is endless"),
    ("--suggest_mining.co_occurrence.min_users=0", "suggest_mining.co_occurrence config: min_users: 0"),
])  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_its_name(flag, said):
    with pytest.raises(InputError, match=re.escape(said)):
        override(load_file(CONFIGS / "demo.py"), [flag])


def test_a_config_file_must_define_an_experiment(tmp_path):
    (tmp_path / "a.py").write_text("EXPERIMENT = 3\n")
    with pytest.raises(InputError, match="defines no EXPERIMENT"):
        load_file(tmp_path / "a.py")
    with pytest.raises(InputError, match=r"no such file; did you mean .*a\.py"):
        load_file(tmp_path / "b.py")
    (tmp_path / "c.py").write_text("from crops_jax.training.config import TrainConfig\nTrainConfig(steps=-5)\n")
    with pytest.raises(InputError, match=r"c\.py: line 2: train config: steps: -5 is not above zero"):
        load_file(tmp_path / "c.py")


def test_an_option_is_taken_in_both_forms_and_not_twice():
    assert take_option(["--a", "1", "--b=2"], "--a") == ("1", ["--b=2"])
    assert take_option(["--a", "1", "--b=2=3"], "--b") == ("2=3", ["--a", "1"])
    assert take_option(["--a", "--b"], "--c") == (None, ["--a", "--b"])
    for argv, said in ((["--a"], "needs a value"), (["--a=1", "--a", "2"], "is given twice: '1' and '2'")):
        with pytest.raises(InputError, match=f"--a: {said}"):
            take_option(argv, "--a")


def test_config_files_of_two_folders_import_their_own_neighbours(tmp_path):
    for seed, folder in enumerate((tmp_path / "one", tmp_path / "two")):
        folder.mkdir()
        text = f"from crops_jax.config import Experiment\nEXPERIMENT = Experiment(seed={seed})\n"
        (folder / "base.py").write_text(text)
        (folder / "arm.py").write_text("from base import EXPERIMENT\n")
    assert [load_file(tmp_path / name / "arm.py").seed for name in ("one", "two")] == [0, 1]


def test_a_config_file_may_have_dataclasses_of_its_own(tmp_path):
    imports = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    imports += "from crops_jax.config import Experiment\n"
    text = "@dataclass\nclass Sizes:\n    seed: int = 7\n\nEXPERIMENT = Experiment(seed=Sizes().seed)\n"
    (tmp_path / "a.py").write_text(imports + text)
    assert load_file(tmp_path / "a.py").seed == 7


@pytest.mark.parametrize(("text", "said"), [
    ("x = 1\ny = x / 0\n", "line 2: ZeroDivisionError: division by zero"),
    ("assert False, 'never'\n", "line 1: AssertionError: never"),
    ("\nraise SystemExit(0)\n", "line 2: SystemExit: 0"),
    ("\ndef f(): return f()\nf()\n", "line 2: RecursionError"),
    ("EXPERIMENT = 3 +\n", "SyntaxError"),
    ("\nimport deemo\n", "line 2: ModuleNotFoundError: No module named 'deemo'; a config imports its neighbours"),
    ("EXPERIMENT = Experiment(train=None)\n", "train: None is no TrainConfig"),
    ("EXPERIMENT = Experiment(optim={})\n", "optim: {} is no OptimConfig"),
    ("o = OptimConfig(learning_rate=np.float32(1))\nEXPERIMENT = Experiment(optim=o)\n", "np.float32(1.0) is no float"),
    ("EXPERIMENT = Experiment(workdir=3)\n", "workdir: 3 is no str"),
    ("EXPERIMENT = Experiment(input=InputConfig(sources=['P0']))\n", "input.sources: ['P0'] is no tuple[str, ...]"),
])  # fmt: skip
def test_what_goes_wrong_in_a_config_file_is_told_by_line_or_field(text, said, tmp_path):
    rooms = {"config": "Experiment", "training.config": "OptimConfig", "batches.config": "InputConfig"}
    imports = "import numpy as np; " + "".join(f"from crops_jax.{room} import {name}; " for room, name in rooms.items())
    (tmp_path / "a.py").write_text(imports + text)
    with pytest.raises(InputError, match=re.escape(said)):
        load_file(tmp_path / "a.py")
    (tmp_path / "README.md").write_text("text")
    with pytest.raises(InputError, match="is no Python file"):
        load_file(tmp_path / "README.md")


def test_json_of_another_version_lists_what_differs():
    data = to_json(Experiment())
    data["optim"]["momentum"] = 0.9
    del data["train"]["steps"]
    with pytest.raises(InputError) as error:
        from_json(data)
    assert error.value.problems == ["optim.momentum: unknown field", "train.steps: missing"]
    data = to_json(Experiment())
    # Of 0.8 and 0.9.4, which had no such fields and did what their defaults do.
    del data["mining"]["funnel"], data["held_out"]["require_qr"]
    assert from_json(data) == Experiment()


def test_differences_name_fields_of_the_chosen_sections_only():
    a = Experiment()
    b = replace(a, model=replace(a.model, backbone=BertConfig()), train=replace(a.train, steps=7))
    found = differences(a, b, ("model",))
    assert "model.backbone.type: Qwen2Config -> BertConfig" in found
    assert not any(line.startswith("train") for line in found)
