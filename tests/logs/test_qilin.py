"""The Qilin recipe on a tiny set of the same schema: Parquet lists of results -> logs -> candidates."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_sets import (
    DAYS,
    EACH_DAY,
    ITEMS_A_TOPIC,
    NAMES,
    TOPICS,
    USERS,
    moment,
    ms,
    qilin,
    shown,
    topic_of,
    write_qilin,
)
from places import ROOT
from recipes import load_recipe, rows

from crops_jax import mine
from crops_jax.artifacts.manifest import verify
from crops_jax.command_line import load_file
from crops_jax.errors import InputError
from crops_jax.mining.config import ThresholdConfig, WorldKnowledgeConfig
from crops_jax.models.config import ThetaConfig


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("qilin")


@pytest.mark.parametrize("stamp", ["request_timestamp", "timestamp"])
def test_lists_of_results_become_rows_and_its_own_split_is_joined(recipe, tmp_path, stamp):
    qilin(tmp_path / "set", stamp)
    facts = recipe.convert(tmp_path / "set", tmp_path / "logs")
    assert facts["rejects"] == {} and facts["rows"]["items"] == ITEMS_A_TOPIC * TOPICS
    for day, days in {"train": DAYS - 2, "validation": 1, "test": 1}.items():
        assert facts["rows"][day] == {table: days * count for table, count in EACH_DAY.items()}
    verify(tmp_path / "logs")
    user, day = 5, 3
    topic, search = topic_of(user, day), 2 * (day * USERS + user)
    first, again = (row for row in rows(tmp_path / "logs", "searches", "test") if row["user_id"] == user)
    assert first == {"request_id": f"test-{search}", "user_id": 5, "query": NAMES[topic], "ts": ms(moment(5, 3))}
    assert (again["request_id"], again["query"]) == (f"test-{search + 1}", f"{NAMES[topic]}怎么做")
    found = [row for row in rows(tmp_path / "logs", "candidates", "test") if row["request_id"] == first["request_id"]]
    assert [(r["item_id"], r["stage"], r["position"], r["clicked"], r["liked"], r["watch_ms"]) for r in found] == [
        (ITEMS_A_TOPIC * topic + p, "exposed", p + 1, p == 0, False, 12_500 if p == 0 else 0) for p in range(3)
    ]
    (watched,) = [row for row in rows(tmp_path / "logs", "feed", "test") if row["user_id"] == user]
    assert watched == {"user_id": 5, "item_id": ITEMS_A_TOPIC * topic + 1, "ts": ms(moment(5, 3, 1800)),
                       "clicked": False, "liked": True, "watch_ms": 0, "duration_ms": 31_500}  # fmt: skip
    item = rows(tmp_path / "logs", "items")[0]
    assert (item["ocr_cover"], item["photo_caption"]) == ("红烧肉怎么做 0", "今天说说红烧肉")


def test_what_cannot_be_used_is_counted_by_reason(recipe, tmp_path):
    table = qilin(tmp_path / "set")
    at = ms(moment(0, 3, 7200)) // 1000
    search = {**table["search_train"][0], "user_idx": 3}
    entries = [
        shown(0, 7, at, share=1, page_time=float("nan")),
        shown(1, 2, at),
        shown(1, 2, at, click=1),
        shown(999, 3, at),
    ]
    for number, details in enumerate((entries, [], [shown(0, 0, 5)])):
        table["search_train"].append(search | {"search_idx": 9000 + number, "search_result_details_with_idx": details})
    table["search_train"].append(table["search_train"][0])
    feed = table["recommendation_test"][0]
    for entry in (shown(999, 0, at), shown(0, 0, 5), shown(0, 0, at), shown(0, 0, at * 1000)):
        entry["request_timestamp"] = entry.pop("search_timestamp")
        table["recommendation_test"].append(feed | {"request_idx": 9001, "rec_result_details_with_idx": [entry]})
    table["notes"] += [table["notes"][0], table["notes"][0] | {"note_idx": -1}, table["notes"][0] | {"note_idx": None}]
    write_qilin(tmp_path / "set", table)
    facts = recipe.convert(tmp_path / "set", tmp_path / "logs")
    assert {reason: reject["rows"] for reason, reject in facts["rejects"].items()} == {
        "notes: note_idx is no number from 0": 2,
        "notes: note listed again (the first is taken)": 1,
        "recommendation: no time between 2000 and 2100": 1,
        "recommendation: note that notes lacks": 1,
        "recommendation: row that is there again (acts are joined)": 1,
        "search: no result, or no time between 2000 and 2100": 2,
        "search: result listed again in one search (clicks are joined)": 4,
        "search: result that notes lacks": 1,
        "search: search_idx is there again (the first tells user and query)": 1,
    }
    found = [r for r in rows(tmp_path / "logs", "candidates", "test") if r["request_id"] == "train-9000"]
    assert [(r["item_id"], r["position"], r["clicked"], r["liked"], r["watch_ms"]) for r in found] == [
        (0, 2, False, True, 0), (1, 1, True, False, 0)
    ]  # fmt: skip


def test_one_value_that_is_no_number_does_not_end_the_import(recipe, tmp_path):
    table = qilin(tmp_path / "set")
    table["search_train"][0] |= {"query": None}
    table["recommendation_train"][0]["rec_result_details_with_idx"][0]["page_time"] = float("inf")
    write_qilin(tmp_path / "set", table)
    for file, column, odd in (
        ("notes.parquet", "note_idx", "7.5"),
        ("search_train/train-00001-of-00002.parquet", "user_idx", "0.5"),
        ("recommendation_test/test-00001-of-00002.parquet", "user_idx", "nobody"),
    ):
        path = tmp_path / "set" / file
        whole = pq.read_table(path)
        texts = [odd, *map(str, whole[column].to_pylist()[1:])]
        pq.write_table(whole.set_column(whole.column_names.index(column), column, pa.array(texts)), path)
    facts = recipe.convert(tmp_path / "set", tmp_path / "logs")
    assert {reason: reject["rows"] for reason, reject in facts["rejects"].items()} == {
        "notes: note_idx is no number from 0": 1,
        "recommendation: user_idx is no number (row kept, and of nobody)": 1,
        "search: result that notes lacks": 2 * DAYS,
        "search: user_idx is no number (row kept, and of nobody)": 1,
        "search: without a query (row kept, and not mined)": 1,
    }


def test_missing_tables_and_fields_are_one_error(recipe, tmp_path):
    table = qilin(tmp_path / "set", "when")
    with pytest.raises(InputError, match="recommendation: rec_result_details_with_idx has no field request_timestamp"):
        recipe.convert(tmp_path / "set", tmp_path / "logs")
    (tmp_path / "set/notes.parquet").write_bytes(b"PAR1 and no more")
    for part in (tmp_path / "set/search_test").iterdir():
        part.unlink()
    with pytest.raises(InputError) as error:
        recipe.convert(tmp_path / "set", tmp_path / "logs")
    assert [problem.split(" ")[0] for problem in error.value.problems] == ["search_test:", "notes:"]
    assert "cut or damaged" in error.value.problems[1] and len(table) == 5


def test_its_logs_are_mined_with_a_discriminator_by_words(recipe, tmp_path):
    qilin(tmp_path / "set")
    recipe.convert(tmp_path / "set", tmp_path / "work" / "logs")
    wanted = load_file(ROOT / "configs" / "qilin.py")
    assert wanted.theta.source != "auto"  # which reads English
    mining = replace(
        wanted.mining, threshold=ThresholdConfig(alpha=0.6), world_knowledge=WorldKnowledgeConfig(enabled=False)
    )
    small = replace(wanted, workdir=str(tmp_path / "work"), theta=ThetaConfig(source="word_overlap"), mining=mining)
    found = pq.read_table(mine.run(small) / "candidates.parquet").to_pylist()
    topic = topic_of(0, 0)
    of_query = {(r["source"], r["item_id"] - ITEMS_A_TOPIC * topic) for r in found if r["query"] == NAMES[topic]}
    assert of_query == {("P0", 0), ("X3", 1), ("X3", 2), ("P1", 3), ("P2", 1)}
    mine.run_testsets(small)
    assert pq.read_table(tmp_path / "work/testsets/qr.parquet").num_rows == USERS
