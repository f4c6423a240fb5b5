"""The KuaiSAR recipe on a tiny set of the same schema: files -> logs -> candidates -> the models."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from foreign_sets import DAYS, EACH_DAY, TOPICS, USERS, clock, item_of, kuaisar, moment, ms, topic_of, write_kuaisar
from places import ROOT
from recipes import load_recipe, rows

from crops_jax import pipeline
from crops_jax.artifacts.manifest import verify
from crops_jax.command_line import load_file
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.logs.importing import Split
from crops_jax.runs.featurizer import featurizer_of

RECIPE = ROOT / "data" / "kuaisar" / "recipe.py"
BEIJING = 8.0


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("kuaisar")


def test_sessions_become_searches_and_days(recipe, tmp_path):
    kuaisar(tmp_path / "set")
    facts = recipe.convert(tmp_path / "set", tmp_path / "logs")
    assert facts["rejects"] == {}
    assert facts["rows"]["items"] == 4 * TOPICS
    assert facts["days"]["test"] == ["2023-05-24 16:00:00+00:00", "2023-05-25 16:00:00+00:00"]  # Beijing's midnights
    assert facts["days"]["train"][1] == facts["days"]["validation"][0] == "2023-05-23 16:00:00+00:00"
    for day, days in {"train": DAYS - 2, "validation": 1, "test": 1}.items():
        assert facts["rows"][day] == {table: days * count for table, count in EACH_DAY.items()}
    verify(tmp_path / "logs")
    user, day = 5, 3
    topic, session = topic_of(user, day), 2 * (day * USERS + user)
    asked = [row for row in rows(tmp_path / "logs", "searches", "test") if row["user_id"] == user]
    assert asked == [
        {"request_id": f"5-{session}", "user_id": 5, "query": f"{10 * topic} {10 * topic + 1}", "ts": ms(moment(5, 3))},
        {"request_id": f"5-{session + 1}", "user_id": 5, "query": f"{10 * topic} {10 * topic + 1} {10 * topic + 2}",
         "ts": ms(moment(5, 3, 60))},
    ]  # fmt: skip
    shown = [row for row in rows(tmp_path / "logs", "candidates", "test") if row["request_id"] == f"5-{session}"]
    assert [(r["item_id"], r["stage"], r["position"], r["clicked"]) for r in shown] == [
        (item_of(topic, place), "exposed", place + 1, place == 0) for place in range(3)
    ]
    (watched,) = [row for row in rows(tmp_path / "logs", "feed", "test") if row["user_id"] == user]
    assert watched == {"user_id": 5, "item_id": item_of(topic, 1), "ts": ms(moment(5, 3, 1800)), "clicked": True,
                       "liked": False, "watch_ms": 15_000, "duration_ms": 30_000}  # fmt: skip
    item = next(row for row in rows(tmp_path / "logs", "items") if row["item_id"] == item_of(2, 3))
    assert (item["photo_caption"], item["keyword"], item["ocr_cover"]) == ("20 21 22 5003", "Funny|Funny joke", None)


KNOWN, LATE = item_of(0, 0), (0, 3, 7200)  # an item; the user, the day and the second of most odd rows
LEFT_OUT = {
    "item_features: item_id is no number from 0": 1,
    "item_features: item listed again (the first is taken)": 1,
    "rec_inter: item that item_features lacks": 1,
    "rec_inter: no time between 2000 and 2100": 1,
    "rec_inter: playing_time or duration_ms is no number from 0": 1,
    "rec_inter: rec_inter.csv: the line is broken (unquoted value)": 1,
    "rec_inter: row that is there again": 1,
    "rec_inter: user_id or item_id is no number": 1,
    "src_inter: further queries of one session (its first row tells the query)": 1,
    "src_inter: no time between 2000 and 2100": 2,
    "src_inter: result is of the kind USER": 1,
    "src_inter: result listed again in one session (clicks are joined)": 1,
    "src_inter: result that item_features lacks": 1,
    "src_inter: search without a keyword (row kept, and not mined)": 2,
    "src_inter: search_session_timestamp is not the search_session_time, which is taken (row kept)": 1,
    "src_inter: user_id, search_session_id or item_id is no number": 1,
}


def with_odd_rows(folder: Path) -> Path:
    """The set with rows that cannot be used, each for a reason of `LEFT_OUT`."""
    table = kuaisar(folder / "clean")
    odd = folder / "odd"
    at, later = moment(*LATE), moment(0, 3, 7260)
    search = [0, 9001, clock(at), float(ms(at)), [1, 2], "USER_INPUT"]
    table["src_inter"] += [
        [*search, KNOWN, 0, "VIDEO"], [*search, KNOWN, 2, "VIDEO"], [*search, 77, 0, "VIDEO"], [*search, 5, 1, "USER"],
        [0, 9001, clock(later), float(ms(later)), [3], "USER_INPUT", item_of(0, 1), 0, "IMAGE_ATLAS"],
        [0, 9002, clock(at), 1.6847e12, [], "USER_INPUT", KNOWN, 0, "VIDEO"],
        [0, 9003, "2123-05-22 10:00:00", 4.8e12, [1], "USER_INPUT", KNOWN, 0, "VIDEO"],
        ["0.5", 9004, clock(at), float(ms(at)), [1], "USER_INPUT", KNOWN, 0, "VIDEO"],
        [0, 9005, "", "inf", [1], "USER_INPUT", KNOWN, 0, "VIDEO"],
        [0, 9006, clock(at), float(ms(at)), None, "USER_INPUT", KNOWN, "nan", "VIDEO"],
    ]  # fmt: skip
    watch = [clock(at), float(ms(at)), 1, 0, 1, 0, 0, 0]
    table["rec_inter"] += [
        [0, KNOWN, 1.0, 2.0, *watch], [0, KNOWN, 9.4, 2.0, *watch], [0, 77, 1.0, 2.0, *watch],
        [0, KNOWN, -3.0, 2.0, *watch], [0, "0.5", 1.0, 2.0, *watch], [0, KNOWN, 1.0, 2.0, "", "1e30", *watch[2:]],
    ]  # fmt: skip
    table["item_features"] += [[KNOWN, [9], *table["item_features"][0][2:]], [-1, [9], *table["item_features"][0][2:]]]
    write_kuaisar(odd, table)
    with (odd / "rec_inter.csv").open("a") as file:
        file.write('1,2,"3\n')
    return odd


def test_what_cannot_be_used_is_counted_by_reason(recipe, tmp_path):
    odd, at = with_odd_rows(tmp_path), ms(moment(*LATE))
    facts = recipe.convert(odd, tmp_path / "logs")
    assert {reason: reject["rows"] for reason, reject in facts["rejects"].items()} == LEFT_OUT
    (asked,) = [r for r in rows(tmp_path / "logs", "searches", "test") if r["request_id"] == "0-9001"]
    assert (asked["query"], asked["ts"]) == ("1 2", at)
    shown = [r for r in rows(tmp_path / "logs", "candidates", "test") if r["request_id"] == "0-9001"]
    assert [(r["item_id"], r["clicked"]) for r in shown] == [(KNOWN, True), (item_of(0, 1), False)]
    (rounded,) = [r for r in rows(tmp_path / "logs", "searches", "test") if r["request_id"] == "0-9002"]
    assert rounded["ts"] == at
    assert next(r for r in rows(tmp_path / "logs", "items") if r["item_id"] == KNOWN)["photo_caption"] == "0 1 2 5000"
    everything = recipe.convert(odd, tmp_path / "more", kinds=("VIDEO",))["rejects"]
    assert everything["src_inter: result is of the kind IMAGE_ATLAS"]["rows"] == 1


def test_packed_files_other_threads_and_a_second_run_give_the_same_bytes(recipe, tmp_path):
    kuaisar(tmp_path / "set[1]")
    recipe.convert(tmp_path / "set[1]", tmp_path / "one")
    for path in list((tmp_path / "set[1]").glob("*.csv")):
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    recipe.convert(tmp_path / "set[1]", tmp_path / "two", engine=EngineConfig(threads=1, memory_limit="200MB"))
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.parquet")}
        for name in ("one", "two")
    )
    assert len(one) == 10 and one == two


def test_wrong_folders_and_days_are_clear_errors(recipe, tmp_path):
    table = kuaisar(tmp_path / "set")
    with pytest.raises(InputError, match="no search is left for train: there are searches on 4 days"):
        recipe.convert(tmp_path / "set", tmp_path / "logs", split=Split(2, 2, 2, utc_offset_h=BEIJING))
    with pytest.raises(InputError, match="'June' is no date"):
        recipe.convert(tmp_path / "set", tmp_path / "logs", split=Split(last="June"))
    with pytest.raises(InputError, match="VIDEOS: KuaiSAR has VIDEO"):
        recipe.convert(tmp_path / "set", tmp_path / "logs", kinds=("VIDEOS",))
    (tmp_path / "set/rec_inter.csv").unlink()
    text = (tmp_path / "set/src_inter.csv").read_text()
    (tmp_path / "set/src_inter.csv").write_text(text.replace("keyword", "query", 1))
    with pytest.raises(InputError) as error:
        recipe.convert(tmp_path / "set", tmp_path / "logs")
    assert [p.split(";")[0] for p in error.value.problems] == [
        "src_inter: no column keyword",
        "rec_inter: no rec_inter.csv, rec_inter.csv.gz, rec_inter.parquet or folder rec_inter",
    ]
    assert not (tmp_path / "logs").exists() and len(table) == 3


@pytest.mark.slow
def test_the_config_mines_and_trains_on_it(recipe, tmp_path):
    kuaisar(tmp_path / "set")
    recipe.convert(tmp_path / "set", tmp_path / "work" / "logs")
    wanted = load_file(ROOT / "configs" / "kuaisar_sparse.py")
    ids = replace(wanted.model.backbone.ids, query_bits=8, video_bits=8, keyword_bits=6, term_bits=8)
    sparse = replace(wanted.model.backbone, ids=ids, table_width=8, hidden=(16,), width=8)
    small = replace(
        wanted, workdir=str(tmp_path / "work"),
        model=replace(wanted.model, backbone=sparse),
        input=replace(wanted.input, batch_queries=8),
        train=replace(wanted.train, steps=100, save_every=100, log_every=20),
        optim=replace(wanted.optim, warmup_steps=2), validation=replace(wanted.validation, every=100, groups=8, k=2),
        encode=replace(wanted.encode, batch=16, part=64), evaluate=replace(wanted.evaluate, cutoffs=(4,), ndcg_at=4),
        records=replace(wanted.records, validation_share=0.2),
    )  # fmt: skip
    report = pipeline.run([small])
    found = pq.read_table(tmp_path / "work/mined/candidates.parquet").to_pylist()
    topic = topic_of(0, 0)
    query = f"{10 * topic} {10 * topic + 1}"
    of_query = {(r["source"], r["item_id"] - item_of(topic, 0)) for r in found if r["query"] == query}
    assert of_query == {("P0", 0), ("X3", 1), ("X3", 2), ("P1", 3), ("P2", 1)}
    steps = [json.loads(line) for line in (tmp_path / "work/sparse/train/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in steps if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert "CroPS, sparse model" in (report / "report.md").read_text()
    for folder in ("mined", "testsets", "sparse/records", "sparse/embeddings"):
        verify(tmp_path / "work" / folder)


@pytest.mark.slow
def test_a_small_encoder_learns_the_sets_own_words(recipe, tmp_path):
    kuaisar(tmp_path / "set")
    recipe.convert(tmp_path / "set", tmp_path / "work" / "logs")
    wanted = load_file(ROOT / "configs" / "kuaisar_encoder.py")
    bert = replace(wanted.model.backbone, vocab_size=256, width=16, layers=1, heads=2, ffn=32)
    small = replace(
        wanted, workdir=str(tmp_path / "work"), vocabulary=256, model=replace(wanted.model, backbone=bert),
        input=replace(wanted.input, batch_queries=8),
        train=replace(wanted.train, steps=60, save_every=60, log_every=20),
        optim=replace(wanted.optim, learning_rate=1e-2, warmup_steps=2), validation=replace(wanted.validation, every=0),
        encode=replace(wanted.encode, batch=16, part=64), evaluate=replace(wanted.evaluate, cutoffs=(4,), ndcg_at=4),
    )  # fmt: skip
    report = pipeline.run([small])
    tokenizer = featurizer_of(small)
    topic = topic_of(0, 0)
    (row,), (length,) = tokenizer.encode_queries([f"{10 * topic} {10 * topic + 1}"])
    cls, sep, (first, second) = 2, 3, (tokenizer.encode_queries([str(10 * topic + i)]).ids[0, 1] for i in range(2))
    assert row[:length].tolist() == [cls, first, second, sep] and len({1, first, second}) == 3, (
        "words, and none unknown"
    )
    steps = [json.loads(line) for line in (tmp_path / "work/encoder/train/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in steps if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert "CroPS, small encoder" in (report / "report.md").read_text()
    for folder in ("tokenizer", "encoder/records", "encoder/embeddings", "encoder/export"):
        verify(tmp_path / "work" / folder)


def test_the_command_says_what_it_wrote(tmp_path):
    kuaisar(tmp_path / "set")
    command = [sys.executable, str(RECIPE), str(tmp_path / "set"), "--out", str(tmp_path / "logs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"items: {4 * TOPICS}\n" in done.stdout and "CC BY-NC-SA 4.0" in done.stdout
    assert "next: python -m crops_jax.mine" in done.stdout


def test_ids_that_a_spreadsheet_has_cut_are_refused_and_whole_ones_read(recipe, tmp_path):
    table = kuaisar(tmp_path / "clean")
    for form, whole in (("%.11e", True), ("%.5e", False)):
        for name in ("src_inter", "rec_inter", "item_features"):
            place = {"src_inter": 6, "rec_inter": 1, "item_features": 0}[name]
            table[name] = [[*row[:place], form % float(row[place]), *row[place + 1 :]] for row in table[name]]
        write_kuaisar(tmp_path / form, table)
        if whole:
            assert recipe.convert(tmp_path / form, tmp_path / "logs")["rows"]["items"] == len(table["item_features"])
        else:
            with pytest.raises(InputError, match=r"e\+[0-9]+ is an id that a float has rounded"):
                recipe.convert(tmp_path / form, tmp_path / "logs")


@pytest.mark.parametrize(("write", "told"), [
    (lambda text: text.replace("-", "/"), {}),
    (lambda text: f"{text}.000", {}),
    (lambda text: f"at {text}", None),
])  # fmt: skip
def test_a_clock_in_another_form_is_read_or_told(recipe, tmp_path, write, told):
    table = kuaisar(tmp_path / "clean")
    facts = recipe.convert(tmp_path / "clean", tmp_path / "one")
    table["src_inter"] = [[*row[:2], write(row[2]), "1.684742e12", *row[4:]] for row in table["src_inter"]]
    write_kuaisar(tmp_path / "other", table)
    if told is None:
        with pytest.raises(InputError, match=r"left out: .* src_inter: search_session_time that cannot be read"):
            recipe.convert(tmp_path / "other", tmp_path / "two")
        return
    assert recipe.convert(tmp_path / "other", tmp_path / "two")["rows"] == facts["rows"]
    assert rows(tmp_path / "two", "searches", "test") == rows(tmp_path / "one", "searches", "test")


def test_a_clock_without_seconds_leaves_an_exact_timestamp_as_it_is(recipe, tmp_path):
    table = kuaisar(tmp_path / "clean")
    table["src_inter"] = [[*row[:2], f"{row[2][:-2]}12", row[3] + 12_345.0, *row[4:]] for row in table["src_inter"]]
    write_kuaisar(tmp_path / "exact", table)
    exact = recipe.convert(tmp_path / "exact", tmp_path / "one")
    table["src_inter"] = [[*row[:2], row[2].replace("-", "/")[:-3], *row[3:]] for row in table["src_inter"]]
    write_kuaisar(tmp_path / "other", table)
    facts = recipe.convert(tmp_path / "other", tmp_path / "two")
    assert facts["rejects"] == exact["rejects"]
    assert rows(tmp_path / "two", "searches", "test") == rows(tmp_path / "one", "searches", "test")
