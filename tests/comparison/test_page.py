"""From eval folders to figures, sentences, Markdown and the page."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from page_reader import Reader

from crops_jax.artifacts.manifest import seal
from crops_jax.command_line import load_file
from crops_jax.comparison import page
from crops_jax.comparison.config import Comparison
from crops_jax.comparison.html import require_page
from crops_jax.comparison.methods import TABLES
from crops_jax.comparison.results import World, columns, validation_score, world_results
from crops_jax.errors import InputError

DEMO = replace(load_file("configs/bench_demo.py", "COMPARISON", Comparison), resamples=300, seeds=(0, 1))
COLUMNS = columns((10, 50, 100), 4)
RECALL = {"bm25": 0.5, "fs_lr": 0.6, "crops": 0.7, "binary": 0.8}


CASES = [{"query": "a <b>", "gain": 2.0, "seen": True, "lists": {
    "FS-LR": [{"text": "first", "grade": None, "evidence": []}],
    "CroPS": [{"text": "second", "grade": 3.0, "evidence": ["P2: watched in the feed by user 7, who asked this"]}],
}}]  # fmt: skip


def eval_folder(folder, level, seed, events=300):
    """Every event of a query reaches `level`, and some noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for column in COLUMNS:
        for i in range(events):
            value = None if i == 0 else float(np.clip(level + rng.normal(0, 0.05), 0, 1))
            rows.append({"set": column.set, "metric": column.metric, "event_id": f"e{i}", "query": f"q{i // 3}",
                         "seen": i % 2 == 0, "value": value})  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "per_query.parquet")
    seal(folder, kind="eval", config={}, inputs={}, counts={})
    return folder


def made(validation, **more):
    return {"validation": validation, "steps": 160, "train_seconds": 40.0, "documents_a_step": 400, "rate": 1.0,
            "tau": [[1, 0.05], [160, 0.04]], "cosine_by_label": {"1": 0.2, "5": 0.8}, **more}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    world = World(DEMO)
    for n, (name, level) in enumerate(RECALL.items()):
        seeds = (0,) if name == "bm25" else (0, 1)
        folders = [eval_folder(root / f"{name}{s}", level, 10 * n + s) for s in seeds]
        title = {"bm25": "BM25", "fs_lr": "FS-LR", "crops": "CroPS as printed", "binary": "binary <labels>"}[name]
        world.add(name, title, folders, made(level) | ({"k1": 0.9, "b": 0.4} if name == "bm25" else {}))
    found = json.loads(json.dumps(world_results(world))) | {"cases": CASES}
    return {"command": "python -m crops_jax.bench", "version": "1", "jax": "2", "device": "cpu", "cores": 2,
            "date": "2026-01-01", "worlds": [found]}  # fmt: skip


def test_figures_are_means_with_paired_differences(results):
    world = results["worlds"][0]
    rows = {row["name"]: row for row in world["rows"]}
    assert world["best_baseline"] == "fs_lr", "by the validation day"
    assert world["headline"] == ["CT@100", "QR@100", "never exposed@100", "NDCG@4"]
    ct = rows["crops"]["metrics"]["CT@100"]["all"]
    assert ct["value"] == pytest.approx(0.7, abs=0.01) and ct["low"] < ct["value"] < ct["high"]
    assert (ct["events"], ct["queries"]) == (299, 100), "an event without truth is not counted"
    halves = [rows["crops"]["metrics"]["CT@100"][split]["events"] for split in ("seen", "unseen")]
    assert halves == [149, 150]
    gain = rows["crops"]["against"]["best baseline"]["QR@100"]
    assert gain["differs"] and gain["value"] == pytest.approx(0.1, abs=0.01)
    assert rows["fs_lr"]["against"].keys() == {"CroPS as printed"} and "best baseline" not in rows["fs_lr"]["against"]
    assert np.mean(rows["crops"]["by_seed"]["CT@100"]) == pytest.approx(ct["value"])


def test_a_world_without_a_set_or_judgments_has_no_column_of_it(tmp_path):
    """Production may have shown all that is relevant, and nobody may have reworded a query."""
    world = World(DEMO)
    for name, level in (("fs_lr", 0.6), ("crops", 0.7)):
        folders = [eval_folder(tmp_path / f"{name}{seed}", level, seed) for seed in (0, 1)]
        for folder in folders:
            table = pq.read_table(folder / "per_query.parquet")
            gone = pc.is_in(table["set"], pa.array(["QR", "unexposed", "judgments"]))
            pq.write_table(table.filter(pc.invert(gone)), folder / "per_query.parquet")
            seal(folder, kind="eval", config={}, inputs={}, counts={})
        world.add(name, name, folders, made(level))
    found = world_results(world)
    assert found["headline"] == ["CT@100"]
    assert found["columns"] == [c.title for c in COLUMNS if c.set in ("CT", "ranked", "shown")]
    assert len(page.findings(found)) == 2 and "never exposed" not in str(page.sections(found))
    told = "QR: nothing to count, so no column. never exposed: nothing to count, so no column. NDCG: nothing"
    assert told in found["about"]


def test_the_page_tells_the_world_and_the_steps_that_were_run(tmp_path):
    smaller = replace(DEMO.dense, world=replace(DEMO.dense.world, n_items=600, n_intents=40))
    world = World(replace(DEMO, seeds=(0,), dense=smaller))
    world.add("crops", "CroPS", [eval_folder(tmp_path / "crops", 0.5, 0)], made(0.5))
    about = world_results(world)["about"]
    assert "The world has 600 items and 40 intents. Every method trains for 160 steps" in about
    assert "5,000" not in about and "504" not in about


def test_an_ndcg_that_tells_nothing_is_left_out_and_recall_never_is(tmp_path):
    world = World(replace(DEMO, seeds=(0,)))
    for name in ("fs_lr", "crops"):
        world.add(
            name, name, [eval_folder(tmp_path / name, 9.0, 0)], made(1.0)
        )  # everything is found, in the best order
    found = world_results(world)
    assert found["without"] == ["NDCG@4"] and found["columns"] == [c.title for c in COLUMNS if c.set != "judgments"]
    text = page.markdown({"command": "bench", "version": "1", "jax": "2", "device": "cpu", "cores": 2,
                          "date": "2026-01-01", "worlds": [found]})  # fmt: skip
    assert "NDCG@4: 100 for every row, and left out." in text


def test_what_speaks_against_crops_is_said_first(results):
    said = page.findings(results["worlds"][0])
    assert re.fullmatch(
        r"CT@100: better than CroPS as printed, beyond chance: parts and readings of CroPS: "
        r"binary <labels> \(\+(9|10)\.\d\)\.",
        said[0],
    )
    assert any(s.startswith("CroPS as printed against FS-LR") and "CT@100 +" in s for s in said)
    assert page.markdown(results).index("better than CroPS") < page.markdown(results).index("| BM25")


def test_the_page_is_one_file_that_shows_every_row(results):
    text = page.html(results)
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and reader.links == [], "well formed, and nothing to load"
    assert reader.tags.count("svg") == 3 and "currentColor" in text and "#010203" not in text
    assert "binary &lt;labels&gt;" in text and "binary <labels>" not in text
    assert 'class="best better">' in text and "prefers-color-scheme: dark" in text
    assert text.index("better than CroPS") < text.index("<table"), "the first paragraph"
    for row in results["worlds"][0]["rows"]:
        cell = f"{100 * row['metrics']['CT@100']['all']['value']:.1f} ±"
        assert cell in text and cell in page.markdown(results)
    assert "a &lt;b&gt;" in text and "not graded" in text and "grade 3" in text and "by user 7, who asked" in text
    assert page.html(results) == text, "the same bytes again"


@pytest.mark.parametrize(("names", "titles"), [
    (["bm25", "binary"], ["methods", "labels"]),  # each the only one of its table
    (["binary"], ["labels"]),
    (["bm25", "fs_lr", "crops"], ["methods", "engine"]),  # neither BM25 nor CroPS is shown alone once more
])  # fmt: skip
def test_a_method_that_is_alone_in_its_table_is_shown_all_the_same(results, names, titles):
    """`--methods binary` has figures too."""
    world = results["worlds"][0]
    asked = world | {"rows": [row for row in world["rows"] if row["name"] in names]}
    found = page.sections(asked)
    assert [s.title for s in found if s.title in TABLES.values()] == [TABLES[name] for name in titles]
    for row in asked["rows"]:
        cell = f"{100 * row['metrics']['QR@10']['all']['value']:.1f} ±"
        assert any(line[0] == row["title"] and cell in line[4] for s in found[: len(titles)] for line in s.table.rows)


def test_a_rate_that_was_left_out_because_training_diverged_is_told(results):
    world = results["worlds"][0] | {"learning_rates": [0.5, 1.0, 2.0]}
    rates = {"fs_lr": {0.5: 0.5, 1.0: 0.6, 2.0: None}, "crops": {"0.5": 0.5, "1.0": None, "2.0": None}}
    rows = [row | {"made": row["made"] | {"validation_by_rate": rates.get(row["name"], {})}} for row in world["rows"]]
    told = [line for line in page.sections(world | {"rows": rows})[-1].readings if "diverges" in line]
    assert told == ["FS-LR: training diverges at 2 times the config's, left out.",
                    "CroPS as printed: training diverges at 1 and 2 times the config's, left out."]  # fmt: skip


def test_arms_of_different_worlds_are_refused(tmp_path):
    world = World(replace(DEMO, seeds=(0,)))
    world.add("fs_lr", "FS-LR", [eval_folder(tmp_path / "a", 0.5, 0)], made(0.5))
    world.add("crops", "CroPS", [eval_folder(tmp_path / "b", 0.5, 0, events=299)], made(0.5))
    with pytest.raises(InputError, match=r"b: was evaluated on other events"):
        world_results(world)


@pytest.mark.parametrize("out", ["work", "work/", ".", "work/../work", "link"])
def test_a_page_where_the_runs_lie_is_refused_before_the_work(tmp_path, monkeypatch, out):
    """Nothing is there yet; after the work the page's place would be full of it."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("work")
    with pytest.raises(InputError, match=r"--out .*the work folder work: the page is a folder of its own"):
        require_page(Path(out), "bench", ["work", "../elsewhere"])
    require_page(Path("work/page"), "bench", ["elsewhere", "work"])


def test_settings_are_chosen_by_ct_and_qr():
    of = {"all": {"10": {"value": 0.0}, "100": {"value": 0.4}}}
    recall = {"CT": of, "QR": {"all": {"10": {"value": 0.0}, "100": {"value": 0.8}}}, "ranked": of}
    assert validation_score({"cutoffs": [10, 100], "recall": recall}) == pytest.approx(0.6)


def test_the_table_of_knobs_tells_which_methods_it_lost(results):
    table = {"title": "CT@100 with one knob turned", "columns": ["", "a"], "rows": [["as it is", "90.0"]]}
    knobs = {"table": table, "left_out": ["noise x 2: <b> is left out."]}
    worlds = [results["worlds"][0] | {"sensitivity": knobs}]
    assert "noise x 2: &lt;b&gt; is left out." in page.html(results | {"worlds": worlds})
    assert "noise x 2: <b> is left out." in page.markdown(results | {"worlds": worlds})
