"""The tables of suggestions in a log folder: optional, checked like the others, told apart by day."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import DAY, T0, followed, rewrite, small_world, suggested, typed, write, write_suggestions

from crops_jax import check_logs as verb
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs
from crops_jax.logs.tables import read_table


@pytest.fixture
def logs(tmp_path):
    """Six prefixes of a day: two that cannot be used, one of nobody; one suggestion taken, and what followed."""
    prefixes = [typed("a", 1, "t", T0), typed("b", 1, "tr", T0 + 300), typed("c", 2, "灯", T0 + 900)]
    prefixes += [typed("d", None, "t", T0), typed("e", 1, " \u200b", T0 + 2), typed("f", 1, "x" * 2000, T0 + 3)]
    offered = [*suggested("a", ["train", " ", "y" * 2000]), *suggested("b", ["transformer", "trip"], 1, "transformer")]
    clicks = [followed("b", "transformer", 3, T0 + 900), followed("b", "transformer", 9, T0 + 950, True)]
    write_suggestions(small_world(tmp_path), "train", prefixes, offered, clicks)
    return tmp_path


def test_a_sound_log_gives_rows_and_counted_rejects(logs):
    report = check_logs(logs, "train")
    assert {n: report.rows[n] for n in ("suggestions", "suggested", "followed")} == {
        "suggestions": 6, "suggested": 5, "followed": 2}  # fmt: skip
    told = {reason: (r.count, r.examples) for reason, r in report.rejects.items()}
    assert told["prefix_empty"] == (1, ("request_id='e'",))
    assert told["prefix_too_long"] == (1, ("request_id='f' chars=2000",))
    assert told["suggestion_without_user"] == (1, ("request_id='d'",))
    assert told["suggested_empty"] == (1, ("request_id='a'",))
    assert told["suggested_too_long"] == (1, ("request_id='a' chars=2000",))


def test_what_followed_may_be_empty_or_absent_and_the_others_may_not(logs):
    write(logs / "train/followed.parquet", "followed", [])
    assert check_logs(logs, "train").rows["followed"] == 0
    (logs / "train/followed.parquet").unlink()
    assert "followed" not in check_logs(logs, "train").rows
    (logs / "train/suggested.parquet").unlink()
    with pytest.raises(InputError, match=r"train/suggested\.parquet: no such file"):
        check_logs(logs, "train")


def test_all_problems_come_in_one_error(logs):
    prefixes = [typed("a", 1, "t", T0), typed("a", 1, "tr", T0)]
    offered = [*suggested("a", ["x", "y"], 1, "y"), *suggested("z", ["x"]), *suggested("a", ["x"])]
    offered[0]["position"] = 0
    clicks = [followed("a", "x", 3, T0), followed("a", "y", 77, T0), followed("a", "y", 77, T0 + 5)]
    write_suggestions(logs, "train", prefixes, offered, clicks)
    with pytest.raises(InputError) as error:
        check_logs(logs, "train")
    expected = [
        "suggestions.request_id: 1 keys occur more than once, e.g. request_id='a' times=2",
        "suggested.position: 1 rows are below 1, e.g. request_id='a' query='x' position=0",
        "suggested.clicked: 1 rows are clicked, but not shown, e.g. request_id='a' query='y' clicked=True",
        "suggested (request_id, query): 1 keys occur more than once, e.g. request_id='a' query='x' times=2",
        "suggested.request_id: 1 rows with 1 ids that suggestions does not have, e.g. request_id='z'",
        "followed (request_id, query, item_id): 1 keys occur more than once, e.g. request_id='a' query='y' item_id=77",
        "followed.item_id: 2 rows with 1 ids that items does not have, e.g. item_id=77",
        "followed: 1 rows of a suggestion that suggested does not have as clicked, e.g. request_id='a' query='x'",
    ]
    problems = error.value.problems
    for start in expected:
        assert any(p.startswith(start) for p in problems), (start, problems)
    assert len(problems) == len(expected)


def test_the_verb_checks_the_days_against_each_other_and_hashes_the_ids(logs):
    late = T0 + DAY + 1  # of a test day that begins two days after the first
    write_suggestions(logs, "train", [typed("a", 1, "t", T0), typed("b", 5, "t", late + 2 * DAY)],
                      suggested("a", ["x"]), [])  # fmt: skip
    write_suggestions(logs, "test", [typed("a", 1, "t", late + DAY)], suggested("a", ["x"], 1, "x"),
                      [followed("a", "x", 1, late + 5 * DAY)])  # fmt: skip
    with pytest.raises(InputError) as error:
        verb.run(logs)
    text = str(error.value)
    assert "train/suggestions.ts: 1 rows at or after" in text
    assert "1 requests for suggestions are in both days, e.g. a" in text
    write_suggestions(logs, "train", [typed("b", 5, "t", T0)], suggested("b", ["x"]), [])

    def named(table: pa.Table) -> pa.Table:
        users = pa.array([f"u{u}" for u in table["user_id"].to_pylist()])
        return table.set_column(table.column_names.index("user_id"), "user_id", users)

    for table in ("searches", "feed", "suggestions"):
        rewrite(logs, table, named)
    report = verb.run(logs)
    assert report["train"]["rows"]["suggestions"] == 1 and report["test"]["rows"]["followed"] == 1
    assert "u5" in pq.read_table(logs / "id_map/users.parquet")["platform_user_id"].to_pylist(), "who only typed"


def test_a_table_of_suggestions_is_read_by_the_contract(logs):
    table = read_table(logs / "train/suggestions.parquet", "suggestions")
    assert table["user_id"].to_pylist() == [1, 1, 2, None, 1, 1]
