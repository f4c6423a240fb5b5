"""The log contract: what passes, what is refused in one message, what is counted and left out."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import T0, candidate, feed, item, search, small_world, write, write_day

from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs
from crops_jax.logs.schema import TABLES, arrow_schema


def test_sound_log_gives_rows_and_counted_rejects(tmp_path):
    report = check_logs(small_world(tmp_path), "train")
    assert report.rows == {"items": 10, "judgments": 4, "searches": 5, "candidates": 11, "feed": 4}
    assert {reason: reject.count for reason, reject in report.rejects.items()} == {
        "item_without_text": 1,
        "query_empty": 1,
        "query_too_long": 1,
    }
    assert report.rejects["item_without_text"].examples == ("item_id=9",)
    assert report.rejects["query_too_long"].examples == ("request_id='r8' chars=10000",)


def test_a_query_of_1999_characters_is_used(tmp_path):
    write(tmp_path / "items.parquet", "items", [item(0, "a")])
    searches = [search("a", 1, "x" * 1999, T0), search("b", 1, "x" * 2000, T0)]
    write_day(tmp_path, "train", searches, [candidate("a", 0)], [feed(1, 0, T0)])
    assert check_logs(tmp_path, "train").rejects["query_too_long"].count == 1


def test_a_long_query_of_blanks_is_left_out_once(tmp_path):
    write(tmp_path / "items.parquet", "items", [item(0, "a")])
    searches = [search("a", 1, "q", T0), search("b", 1, "p", T0), search("c", 1, " " * 2000, T0)]
    write_day(tmp_path, "train", searches, [candidate("a", 0)], [feed(1, 0, T0)])
    rejects = check_logs(tmp_path, "train", max_reject_share=0.4).rejects
    assert rejects["query_empty"].count == 1 and "query_too_long" not in rejects


def test_a_log_of_which_most_would_be_left_out_is_refused(tmp_path):
    """Two of three searches are empty or too long; two of four items have no text, which is half, and just passes."""
    write(tmp_path / "items.parquet", "items", [item(0, "a"), item(1, "b"), item(2, " "), item(3, None)])
    searches = [search("a", 1, "q", T0), search("b", 1, "x" * 2000, T0), search("c", 1, " ", T0)]
    write_day(tmp_path, "train", searches, [candidate("a", 0)], [feed(1, 0, T0)])
    with pytest.raises(InputError) as error:
        check_logs(tmp_path, "train")
    assert error.value.problems == [
        "searches: 2 of 3 rows would be left out (1 query_empty, e.g. request_id='c'; 1 query_too_long, e.g. "
        "request_id='b' chars=2000); mend the table, or allow more: check_logs --max-reject-share"
    ]
    assert check_logs(tmp_path, "train", max_reject_share=0.7).rejects["query_empty"].count == 1
    with pytest.raises(
        InputError, match=r"items: 2 of 4 rows would be left out \(2 item_without_text, e\.g\. item_id=2"
    ):
        check_logs(tmp_path, "train", max_reject_share=0.4)


def test_a_log_of_which_all_would_be_left_out_is_refused_whatever_is_allowed(tmp_path):
    write(tmp_path / "items.parquet", "items", [item(0, "a")])
    write_day(tmp_path, "train", [search("b", 1, "x" * 2000, T0)], [candidate("b", 0)], [feed(1, 0, T0)])
    with pytest.raises(
        InputError, match=r"searches: 1 of 1 rows would be left out \(1 query_too_long, .*; mend the table$"
    ):
        check_logs(tmp_path, "train", max_reject_share=1)


def test_all_problems_come_in_one_error(tmp_path):
    small_world(tmp_path)
    write(
        tmp_path / "items.parquet",
        "items",
        [*(item(i, "a") for i in range(9)), item(3, "b"), item(9, "c") | {"like_cnt": -1}],
    )
    write_day(
        tmp_path, "train",
        [search("r1", 1, "q", T0 + 5), search("r2", 1, "q", T0), search("r3", 2, "q", T0), search("r3", 2, "q", T0)],
        [candidate("r1", 0, "shown"), candidate("r1", 1, position=-2), candidate("r1", 77), candidate("nope", 1),
         candidate("r2", 1, "ranked", clicked=True), candidate("r2", 2), candidate("r2", 2)],
        [feed(1, 78, T0), feed(1, 79, T0 + 2), feed(2, 1, T0 + 1), feed(1, 1, T0 + 1)],
    )  # fmt: skip
    searches = pq.read_table(tmp_path / "train/searches.parquet")
    queries = pa.array(["q", "q", None, "q"])
    pq.write_table(searches.set_column(2, "query", queries), tmp_path / "train/searches.parquet")
    judged = {"query": ["q", "q", "\u3000"], "item_id": [1, 500, 2], "grade": [float("nan"), 1.0, 1.0]}
    pq.write_table(pa.table(judged), tmp_path / "judgments.parquet")
    with pytest.raises(InputError) as error:
        check_logs(tmp_path, "train")
    problems = error.value.problems
    expected = [
        "searches.query: 1 rows are null, e.g. request_id='r3' user_id=2",
        "searches.request_id: 1 keys occur more than once, e.g. request_id='r3' times=2",
        "candidates.stage: 1 rows are none of filtered, ranked, exposed, e.g. request_id='r1' item_id=0 stage='shown'",
        "candidates.stage: 1 rows are clicked, liked or watched, but not exposed, e.g. request_id='r2' item_id=1",
        "candidates.position: 1 rows are below 1, e.g. request_id='r1' item_id=1 position=-2",
        "candidates (request_id, item_id): 1 keys occur more than once, e.g. request_id='r2' item_id=2 times=2",
        "candidates.item_id: 1 rows with 1 ids that items does not have, e.g. item_id=77",
        "candidates.request_id: 1 rows with 1 ids that searches does not have, e.g. request_id='nope'",
        "feed.item_id: 2 rows with 2 ids that items does not have, e.g. item_id=78; item_id=79",
        "items.item_id: 1 keys occur more than once, e.g. item_id=3 times=2",
        "items.like_cnt: 1 rows are below 0, e.g. item_id=9 like_cnt=-1",
        "judgments.grade: 1 rows are NaN or infinite, e.g. query='q' item_id=1 grade=nan",
        "judgments.query: 1 rows are without text, and NDCG would count them; leave them out, e.g. query='\\u3000'",
        "judgments.item_id: 1 rows with 1 ids that items does not have, e.g. item_id=500",
    ]
    for start in expected:
        assert any(p.startswith(start) for p in problems), (start, problems)
    assert len(problems) == len(expected)


def test_missing_and_mistyped_columns_of_all_tables_come_together(tmp_path):
    small_world(tmp_path)
    searches = pq.read_table(tmp_path / "train/searches.parquet")
    pq.write_table(searches.drop_columns(["ts"]), tmp_path / "train/searches.parquet")
    items = pq.read_table(tmp_path / "items.parquet")
    pq.write_table(items.set_column(5, "play_cnt", pa.array([[1]] * 10)), tmp_path / "items.parquet")
    (tmp_path / "train/feed.parquet").write_bytes(b"not parquet at all")
    (tmp_path / "train/candidates.parquet").unlink()
    with pytest.raises(InputError) as error:
        check_logs(tmp_path, "train")
    text = str(error.value)
    assert "train/searches.parquet: column ts is missing (int64: when, ms since the epoch)" in text
    assert "items.parquet: column play_cnt is list<element: int64>, it must be int64: cast it" in text
    assert "train/feed.parquet: is not a readable Parquet file" in text
    assert "train/candidates.parquet: no such file" in text


def test_large_strings_pass_as_strings(tmp_path):
    small_world(tmp_path)
    table = pq.read_table(tmp_path / "train/searches.parquet")
    large = table.set_column(2, "query", table["query"].cast(pa.large_string()))
    pq.write_table(large, tmp_path / "train/searches.parquet")
    assert check_logs(tmp_path, "train").rows["searches"] == 5


def test_an_empty_log_is_named(tmp_path):
    small_world(tmp_path)
    write(tmp_path / "train/feed.parquet", "feed", [])  # of a platform that has none
    assert check_logs(tmp_path, "train").rows["feed"] == 0
    write(tmp_path / "train/candidates.parquet", "candidates", [])
    with pytest.raises(InputError, match="candidates: an empty log: the table has no rows"):
        check_logs(tmp_path, "train")


@pytest.mark.parametrize("table", TABLES)
def test_arrow_schema_carries_meanings_and_nullability(table):
    schema = arrow_schema(table)
    assert schema.names == list(TABLES[table])
    assert all(field.metadata[b"meaning"] for field in schema)
    assert [f.nullable for f in schema] == [c.nullable for c in TABLES[table].values()]
