"""The rows of the benchmark as experiments."""

import sys
from dataclasses import replace

import pytest
from places import COMPARISONS

from crops_jax import bench
from crops_jax.baselines.config import AdoreConfig, NegativesConfig
from crops_jax.bench import methods_of
from crops_jax.command_line import load_file
from crops_jax.comparison.asked import from_arguments
from crops_jax.comparison.config import Comparison
from crops_jax.comparison.methods import METHODS, TABLES, arm
from crops_jax.comparison.results import World
from crops_jax.config import differences, flat
from crops_jax.errors import Diverged, InputError
from crops_jax.labels import Band, LabelsConfig, caps
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.models.config import FrozenConfig
from crops_jax.runs.folder import open_folder
from crops_jax.runs.tasks import task_of
from crops_jax.simulate.sessions import SessionsConfig

DEMO = load_file("configs/bench_demo.py", "COMPARISON", Comparison)


def base(name):
    return DEMO.sparse if METHODS[name].sparse else DEMO.dense


def chain(name):
    start = METHODS[name].start
    return [*(chain(start) if start else []), name]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_an_experiment_at_the_same_budget(name):
    e, first = arm(name, base(name), 3, 0.5), base(name)
    task_of(e)  # its settings fit each other
    assert {*METHODS[name].tables} <= {*TABLES}
    assert sum(arm(part, first, 0, 1).train.steps for part in chain(name)) in (
        round(first.train.steps * METHODS[name].share) if name.endswith(("warm", "star")) else first.train.steps,
        round(first.train.steps * 0.8),  # STAR, of which ADORE is the rest
    )
    same = ("world", "simulate", "mining", "held_out", "text", "vocabulary", "evaluate", "mesh")
    assert differences(e, first, same) == []
    assert e.model.backbone == first.model.backbone and e.optim.learning_rate == first.optim.learning_rate / 2
    if first.input.packing is not None:
        assert (e.input.packing.doc_rows, e.input.packing.doc_row_tokens) == (108, 144)
    assert e.labels.group_size <= e.input.docs_per_query, "the arm's own groups fit its batches"
    assert (e.seed, e.input.seed, e.name) == (3, 3, f"{name}/lr0.5_seed3")


@pytest.mark.parametrize("steps", [7, 8, 33, 160, 1001])
def test_the_parts_of_a_chain_are_all_steps_however_they_round(steps):
    first = replace(DEMO.dense, train=replace(DEMO.dense.train, steps=steps))
    whole = [name for name in METHODS if not METHODS[name].sparse and not name.endswith(("warm", "star"))]
    assert {sum(arm(part, first, 0, 1).train.steps for part in chain(name)) for name in whole} == {steps}


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_every_comparison_loads_and_its_methods_fit_its_model(path):
    c = load_file(path, "COMPARISON", Comparison)
    assert c.dense.loss == HInfoNCEConfig() and c.dense.validation.every == 0 and not c.dense.evaluate.scann
    for name in methods_of(c):
        e = arm(name, c.sparse if METHODS[name].sparse else c.dense, 0, 1)
        task_of(e)
        e.optim.schedule_length(e.train.steps)
        assert e.model.frozen.layers == c.dense.model.frozen.layers or METHODS[name].sparse


def test_comparisons_do_not_write_into_one_folder():
    loaded = [load_file(path, "COMPARISON", Comparison) for path in COMPARISONS]
    assert len({c.dense.workdir for c in loaded}) == len({c.title for c in loaded}) == len(loaded) == 4


def test_adore_keeps_the_lower_layers_frozen_that_the_others_do():
    base = replace(DEMO.dense, model=replace(DEMO.dense.model, frozen=FrozenConfig(layers=1)))
    assert arm("adore", base, 0, 1).model.frozen == FrozenConfig(towers=("document",), layers=1, tau=True)


def test_a_baseline_has_as_many_documents_as_crops_or_as_its_source():
    matched, source = (arm(name, DEMO.dense, 0, 1) for name in ("ance", "ance_source"))
    assert matched.negatives.count + 1 == DEMO.dense.input.docs_per_query == 8
    assert source.negatives.count == 1 and source.input.docs_per_query == 2
    for e in (matched, source, arm("nce", DEMO.dense, 0, 1)):
        assert e.input.batch_queries * e.input.docs_per_query == 72 * 8


# Those whose readings say otherwise: groups of a click or of positives alone, examples of one anchor.
OTHER_GROUPS = ("nce", "infonce", "infonce_4", "positives", "positives_known", "log_positives_known")


@pytest.mark.parametrize("labels", [
    LabelsConfig(),  # sixteen documents, as the paper's config has them
    LabelsConfig(caps=caps(P0=1, P1=1, P2=1, P3=1, X3=1, U2=2, F1=1)),
    LabelsConfig(sources=("P0", "P1", "P2", "X3", "U2", "F1")),  # no language model is asked
    LabelsConfig(bands=(Band("U2", 1, 3, 2), Band("U2", 4, 9, 1), Band("F1", 1, 50, 2))),
], ids=["sixteen", "eight", "without P3", "banded"])  # fmt: skip
@pytest.mark.parametrize("slots", [16, 20])
def test_a_query_has_as_many_documents_as_crops_gives_it_whatever_its_caps_are(labels, slots):
    base = replace(DEMO.dense, labels=labels, input=replace(DEMO.dense.input, docs_per_query=slots))
    matched = [n for n, m in METHODS.items() if not m.sparse and "source" not in n and n not in OTHER_GROUPS]
    documents = {}
    for e in (arm(name, base, 0, 1) for name in matched if name != "adore"):  # which reads no groups
        mined = e.negatives.count if isinstance(e.negatives, NegativesConfig) else 0
        alone = mined and not e.negatives.graded
        documents[e.name] = mined + (1 if alone else e.labels.group_size)
    assert {name: n for name, n in documents.items() if n != labels.group_size} == {}


def test_slots_that_augmentation_leaves_empty_go_to_the_logs_sources_in_turn():
    base = replace(DEMO.dense, labels=LabelsConfig())
    found = {name: arm(name, base, 0, 1).labels for name in ("fs_lr", "query_level", "system_level")}
    told = {name: {s: labels.caps[s] for s in labels.sources} for name, labels in found.items()}
    assert told == {
        "fs_lr": {"P0": 3, "X3": 4, "U2": 5, "F1": 4},
        "query_level": {"P0": 3, "X3": 3, "U2": 4, "F1": 4, "P1": 2},
        "system_level": {"P0": 2, "X3": 3, "U2": 4, "F1": 3, "P1": 2, "P2": 2},
    }


def test_a_batch_that_is_not_packed_has_as_many_slots_in_every_method():
    padded = replace(DEMO.dense, input=replace(DEMO.dense.input, packing=None))
    slots = {name: arm(name, padded, 0, 1).input for name in METHODS if not METHODS[name].sparse}
    assert {name for name, given in slots.items() if given.batch_queries * given.docs_per_query != 72 * 8} == set()


def test_a_platforms_own_logs_need_no_simulated_validation_day():
    own = replace(DEMO.dense, world=None, simulate=replace(DEMO.dense.simulate, sessions=SessionsConfig()))
    assert Comparison("mine", "", own).dense.simulate.sessions.validation_sessions == 0


@pytest.mark.parametrize(("flags", "said"), [
    ("--methods sparse_log", "Judged collection has no sparse model"),
    ("--methods crops --knobs judged", "this world reads none of judged"),
    ("--methods crops --knobs noise,noise", "one is named twice"),
    ("--methods crops --seed=3", "--seed: every method is trained once with each of --seeds: give these"),
    ("--methods crops --input.seed 3", "--input.seed: every method is trained once with each of --seeds"),
    ("--methods crops --learning-rates 1,1.0000001", "two of them are one to six digits"),
    ("--methods crops --world.relevant_grade=2", "held_out.min_grade 1: the least grade"),
])  # fmt: skip
def test_what_a_judged_world_cannot_be_asked_is_told(monkeypatch, flags, said):
    monkeypatch.setattr(sys, "argv", ["bench", "--configs", "configs/bench_beir.py", "--out", "out", *flags.split()])
    with pytest.raises(InputError, match=said):
        bench.main()


def test_each_world_has_a_grid_of_rates_of_its_own():
    def rates(*flags):
        files = ["configs/bench_demo.py", "configs/bench_homedepot.py"]
        asked = from_arguments(["--configs", *files, "--out", "out", "--methods", "crops", *flags])
        return [c.learning_rates for c in asked.comparisons]

    assert rates() == [(1.0,), (1.0,)]
    assert rates("--learning-rates", "own") == [(0.5, 1.0, 2.0), (2.0, 4.0, 8.0, 16.0)]
    assert rates("--learning-rates", "0.25,1") == [(0.25, 1.0)] * 2
    with pytest.raises(InputError, match="rate_grid: 0 is not above zero"):
        replace(DEMO, rate_grid=(0,))


def test_a_learning_rate_that_diverges_is_left_out_and_the_lowest_is_an_error(monkeypatch, capsys):
    def diverging(e, days):
        if e.optim.learning_rate > bound * DEMO.dense.optim.learning_rate:
            raise Diverged("step 7", "the loss is nan")

    monkeypatch.setattr(bench, "run_arm", diverging)
    monkeypatch.setattr(bench.evaluate, "read_results", lambda folder: folder)
    monkeypatch.setattr(bench, "validation_score", lambda folder: 0.5)
    c, bound = replace(DEMO, learning_rates=(1.0, 2.0)), 1.5
    assert [bench.score_at(c, "dpr", factor) for factor in c.learning_rates] == [0.5, None]
    assert "dpr: learning rate x 2 is left out, training diverges: step 7: the loss is nan" in capsys.readouterr().err
    bound = 0.5
    with pytest.raises(Diverged, match="step 7"):
        bench.score_at(c, "dpr", 1.0)


@pytest.mark.parametrize(("rates", "diverges", "at"), [
    ((1.0, 2.0), lambda e: e.seed == 1, "with seed 1 at 1 times"), ((0.5,), lambda e: True, "with seed 0 at 0.5 times"),
])  # fmt: skip
def test_a_method_whose_training_diverges_is_left_out_and_the_others_stay(monkeypatch, capsys, rates, diverges, at):
    def diverging(e, days):
        if e.name.startswith("dpr/") and diverges(e):
            raise Diverged("step 7", "the loss is nan")

    monkeypatch.setattr(bench, "run_arm", diverging)
    monkeypatch.setattr(bench, "trained", lambda chains: {})
    monkeypatch.setattr(bench.evaluate, "read_results", lambda folder: folder)
    monkeypatch.setattr(bench, "validation_score", lambda folder: 0.5)
    c = replace(DEMO, learning_rates=rates, seeds=(0, 1))
    world = World(c)
    for name in ("dpr", "fs_lr"):
        bench.run_method(c, name, world)
    assert [row.name for row in world.rows] == ["fs_lr"]
    said = f"DPR is left out: training diverges {at} the config's learning rate (step 7)."
    assert world.left_out == [said] and said in capsys.readouterr().err


def test_a_plan_over_the_runs_of_another_world_is_refused_as_the_benchmark_is(tmp_path):
    c = replace(DEMO, methods=("fs_lr",), sparse=None, dense=replace(DEMO.dense, workdir=str(tmp_path)))
    run = arm("fs_lr", c.dense, 0, 1.0)
    open_folder(run.arm_folder("train"), run, {})
    assert [*bench.plan([c])] == ["Synthetic world: 1 run of 1 method, 1 to train; how long it takes is known after "
                                  "the first: ask again with --plan"]  # fmt: skip
    other = replace(c, dense=replace(c.dense, world=replace(c.dense.world, n_items=620)))
    with pytest.raises(InputError, match=r"runs of another world (.|\n)*n_items: 5000 -> 620"):
        [*bench.plan([other])]


def test_a_judged_collection_that_is_not_there_is_told_before_any_work(tmp_path):
    home = load_file("configs/bench_homedepot.py", "COMPARISON", Comparison)
    world = replace(home.dense.world, collection=str(tmp_path / "none"))
    home = replace(home, dense=replace(home.dense, world=world, workdir=str(tmp_path / "work")))
    with pytest.raises(InputError, match=r"Home Depot.*: there is no folder .*none; a recipe in data/ makes it"):
        list(bench.plan([home]))


def test_a_plan_over_runs_with_other_settings_is_refused_as_training_them_on_is(tmp_path):
    c = replace(DEMO, methods=("fs_lr", "infonce"), sparse=None, learning_rates=(0.5, 1.0), seeds=(0, 1),
                dense=replace(DEMO.dense, workdir=str(tmp_path)))  # fmt: skip
    for name in c.methods:  # the second's steps are those that its shards need
        run = arm(name, c.dense, 1, 1.0)
        open_folder(run.arm_folder("train"), run, {})
    other = arm("fs_lr", c.dense, 0, 2.0)  # of a rate that is not asked for
    open_folder(other.arm_folder("train"), replace(other, loss=HInfoNCEConfig(min_anchor_label=4)), {})
    assert [*bench.plan([c])]
    longer = replace(c.dense, train=replace(c.dense.train, steps=161))
    shorter = replace(c.dense, text=replace(c.dense.text, max_query_tokens=11))
    for dense, said in ((longer, "161"), (shorter, "max_query_tokens: 16 -> 11")):
        with pytest.raises(InputError, match=rf"lr1_seed1/train holds a run of another config(.|\n)*{said}"):
            [*bench.plan([replace(c, dense=dense)])]


def test_fewer_steps_than_rounds_are_refused_before_other_methods_are_trained(tmp_path):
    c = replace(DEMO, methods=("fs_lr", "ance"), sparse=None, dense=replace(DEMO.dense, workdir=str(tmp_path)))
    assert [*bench.plan([c])]
    short = replace(c, dense=replace(c.dense, train=replace(c.dense.train, steps=6)))
    with pytest.raises(InputError, match="ance: finds its negatives in 10 rounds, and has fewer steps"):
        [*bench.plan([short])]


def test_two_worlds_do_not_write_into_one_folder_however_it_is_spelled(tmp_path, monkeypatch):
    (tmp_path / "one").symlink_to(tmp_path / "two")
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            "from dataclasses import replace\nfrom bench_demo import COMPARISON as demo\n"
            f"COMPARISON = replace(demo, sparse=None, dense=replace(demo.dense, workdir={str(tmp_path / name)!r}))\n"
        )
    monkeypatch.syspath_prepend("configs")
    files = [str(tmp_path / f"{name}.py") for name in ("one", "two")]
    with pytest.raises(InputError, match="two worlds write into one folder"):
        from_arguments(["--configs", *files, "--out", "out", "--methods", "crops"])


def test_what_a_method_starts_from():
    adore = arm("adore", DEMO.dense, 1, 2)
    assert adore.model.init_from.endswith("bench/demo/star/lr2_seed1/train")
    assert isinstance(adore.negatives, AdoreConfig) and not adore.model.tie_towers
    star = arm("star", DEMO.dense, 1, 2)
    assert star.model.init_from.endswith("dpr_warm/lr2_seed1/train") and star.loss.in_batch
    warm = arm("dpr_warm", DEMO.dense, 1, 2)
    assert warm.model.init_from is None and warm.negatives == NegativesConfig("bm25", top=100, count=7)
    assert warm.optim.warmup_steps < warm.train.steps


def test_crops_is_the_base_but_for_its_name_and_seeds():
    told = {**flat(arm("crops", DEMO.dense, 0, 1))}
    changed = {name for name, value in flat(DEMO.dense).items() if told[name] != value}
    assert changed == {"name", "title", "train.keep"}


def test_bad_comparisons_are_refused():
    refused = {
        r"method 'cropps' is none of nce, dpr": {"methods": ("cropps",)},
        r"method 'star' is none of nce, dpr, ance, adore": {"methods": ("star",)},  # it has no row of its own
        r"seeds = \(0, 0\)": {"seeds": (0, 0)},
        r"resamples = 5": {"resamples": 5},
        r"method 'fs_lr' has groups of up to 8 documents, and input\.docs_per_query is 7: raise it": {
            "dense": replace(DEMO.dense, input=replace(DEMO.dense.input, docs_per_query=7))
        },
        r"sparse\.workdir is elsewhere": {"sparse": replace(DEMO.sparse, workdir="elsewhere")},
    }
    for match, change in refused.items():
        with pytest.raises(InputError, match=match):
            replace(DEMO, **change)
    sessions = replace(DEMO.dense.simulate.sessions, validation_sessions=0)
    with pytest.raises(InputError, match="nothing could be chosen"):
        replace(DEMO, dense=replace(DEMO.dense, simulate=replace(DEMO.dense.simulate, sessions=sessions)))
