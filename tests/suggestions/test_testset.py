"""What a held-out day asks of suggestions: by hand, against a slow reading, and without a look ahead."""

import dataclasses

import numpy as np
import pytest
from hand_logs import DAY, T0, candidate, feed, followed, item, search, suggested, typed, write, write_day
from hand_logs import write_suggestions as suggestions

from crops_jax.artifacts.folders import write_folder
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.normal_text import normal_form
from crops_jax.suggestions.config import SuggestMiningConfig, SuggestTestConfig
from crops_jax.suggestions.testset import KIND, build_suggestion_testset, read_suggestion_testset

MINING = SuggestMiningConfig(engine=EngineConfig(memory_limit="500MB"))
LATE = T0 + 2 * DAY


def log(logs, train, test, train_searches=(), test_searches=()):
    """Two days; each of them (typed, suggested, followed)."""
    write(logs / "items.parquet", "items", [item(0, "a")])
    for day, ts, rows, searches in (("train", T0, train, train_searches), ("test", LATE, test, test_searches)):
        searches = [search(f"{day}_first", 99, "first", ts), *searches]
        write_day(logs, day, searches, [candidate(f"{day}_first", 0)], [feed(1, 0, ts)])
        suggestions(logs, day, *rows)
    return logs


def built(logs, config=SuggestTestConfig(), mining=MINING):  # noqa: B008
    with write_folder(logs.parent / "testset", kind=KIND) as out:
        counts = build_suggestion_testset(logs, out, config, mining)
    return read_suggestion_testset(logs.parent / "testset").taken, counts


TRAIN = (
    [typed("a", 1, "灯", T0), typed("b", 1, "La", T0 + 5)],
    suggested("a", ["灯具"]) + suggested("b", ["lamp"]),
    [],
)


def test_a_day_by_hand(tmp_path):
    """User 1 orders behind the first of two prefixes; nobody known types one letter; user 3 takes nothing."""
    test = (
        [typed("t1", 1, " LA ", LATE + 50_000), typed("t2", 1, "lam", LATE + 60_000), typed("t3", None, "灯", LATE + 9),
         typed("t4", 3, "la", LATE), typed("t5", 4, "ωμ", LATE + 7), typed("t6", 1, " ", LATE)],
        [*suggested("t1", ["lamp", "lava"], 9, "lamp"), *suggested("t2", ["Lamp"], 9, "Lamp"),
         *suggested("t3", ["灯具"], 9, "灯具"), *suggested("t4", ["lamp"]), *suggested("t5", ["ωμέγα"], 9, "ωμέγα"),
         *suggested("t6", ["lamp"], 9, "lamp")],
        [followed("t1", "lamp", 0, LATE + 51_000, True)],
    )  # fmt: skip
    searches = [search("s1", 1, "Desk  lamp", LATE + 49_999), search("s2", 1, "lamp", LATE + 50_000),
                search("s3", 1, "later", LATE + 60_001), search("s4", 3, "another's", LATE)]  # fmt: skip
    before = [search("r1", 1, "old lamp", T0 + 5), search("r2", 1, " ", T0 + 6), search("r3", None, "nobody's", T0)]
    logs = log(tmp_path / "logs", TRAIN, test, before, searches)
    found, counts = built(logs)
    assert found.events == ["t1", "t2", "t3", "t5"]
    assert found.users == [1, 1, None, 4]
    assert found.prefixes == ["la", "lam", "灯", "ωμ"]
    assert found.queries == ["lamp", "lamp", "灯具", "ωμέγα"], "one spelling a query, that of most"
    assert found.ordered.tolist() == [True, False, False, False]
    assert found.seen.tolist() == [True, False, True, False]
    assert found.lengths.tolist() == [2, 3, 1, 2]
    # The search at t1's own moment is the one that the suggestion led to. t2 may know it; neither knows what is later.
    assert found.recent == [["Desk  lamp", "old lamp"], ["lamp", "Desk  lamp", "old lamp"], [], []]
    told = {"requests": 5, "requests_with_a_taken_suggestion": 4, "events": 4, "ordered": 1, "prefix_unseen": 2}
    assert counts.items() >= (told | {"without_user": 1, "recent": 5}).items()
    assert counts["rejects"]["prefix_empty"] == 1


def test_the_last_searches_of_many_are_those_before_the_request(tmp_path):
    """Against a slow reading; moments are few, so that many are equal. Nothing later may change an answer."""
    rng = np.random.default_rng(0)
    moments = lambda n, day: (day + rng.integers(0, 40, n) * 1_000).tolist()  # noqa: E731
    past = [search(f"r{i:03}", int(rng.integers(1, 4)), f"old {i}", ts) for i, ts in enumerate(moments(8, T0))]
    now = [search(f"s{i:03}", int(rng.integers(1, 4)), f"new {i}", ts) for i, ts in enumerate(moments(90, LATE))]
    asked = [typed(f"t{i:03}", int(rng.integers(1, 5)), "l", ts) for i, ts in enumerate(moments(60, LATE))]
    offered = [row for a in asked for row in suggested(a["request_id"], ["lamp"], 9, "lamp")]
    logs = log(tmp_path / "logs", TRAIN, (asked, offered, []), past, now)
    others = []
    for day, ts in (("2025-06-16", T0 + DAY), ("2025-06-18", LATE + DAY)):  # between the two, and after both
        other = [search(f"{day}_{user}", user, day, ts) for user in (1, 2)]
        write_day(logs, day, other, [candidate(other[0]["request_id"], 0)], [feed(1, 0, ts)])
        others += other
    found, _ = built(logs)
    wanted = []
    for a in asked:
        before = [s for s in past + others + now if s["user_id"] == a["user_id"] and s["ts"] < a["ts"]]
        before.sort(key=lambda s: (s["ts"], s["request_id"]), reverse=True)
        wanted.append([s["query"] for s in before][:10])
    assert found.recent == wanted and {len(row) for row in wanted} >= {0, 10}
    assert any("2025-06-16" in row for row in found.recent)
    end = LATE + 20_000
    early = [n for n, a in enumerate(asked) if a["ts"] <= end]
    cut, _ = built(log(tmp_path / "logs", TRAIN, (asked, offered, []), past, [s for s in now if s["ts"] < end]))
    assert [cut.recent[n] for n in early] == [found.recent[n] for n in early] and 10 < len(early) < 50


def test_what_was_searched_next_is_the_second_truth(tmp_path):
    """User 5 takes at the second letter what was not shown at the first; user 6 types on; user 7 searches too late."""
    asked = [typed("pa", 5, "D", LATE), typed("pb", 5, "de", LATE + 300), typed("pc", 6, "d", LATE + 5),
             typed("pd", 7, "x", LATE), typed("pe", None, "d", LATE)]  # fmt: skip
    offered = [*suggested("pa", ["desk", "desk lamp"], 1), *suggested("pb", ["desk lamp"], 1, "desk lamp"),
               *suggested("pc", ["desk"]), *suggested("pe", ["desk"], 9, "desk")]  # fmt: skip
    now = [search("s1", 5, "Desk  lamp", LATE + 400), search("s2", 5, "desk", LATE + 500),
           search("s3", 6, "dune", LATE + 20_000), search("s4", 7, "x ray", LATE + 60_001)]  # fmt: skip
    logs = log(tmp_path / "logs", TRAIN, (asked, offered, []), [search("r", 6, "old", T0 + 7)], now)
    taken, counts = built(logs)
    assert taken.events == ["pb", "pe"]
    test = read_suggestion_testset(tmp_path / "testset")
    found = test.next
    assert found.events == ["pa", "pb", "pc"] and found.prefixes == ["d", "de", "d"]
    assert [normal_form(query) for query in found.queries] == ["desk lamp", "desk lamp", "dune"]
    assert (found.taken.tolist(), found.shown.tolist()) == ([True, True, False], [False, True, False])
    assert found.truths["typed"].tolist() == [False, False, True] and found.recent == [[], [], ["old"]]
    assert not found.seen.any() and found.lengths.tolist() == [1, 2, 1]
    assert (test.before_a_search, test.without_a_search, test.without_user) == (3, 1, 1)
    assert counts["next_prefix_unseen"] == 3
    assert test.events == ["pb", "pe", "pa", "pb", "pc"] and test.asked.prefixes == ["de", "d", "d", "de", "d"]
    assert built(logs, SuggestTestConfig(max_next=1))[1]["next"] == 1


def test_programs_are_left_out_and_a_sample_is_one_of_the_whole(tmp_path):
    asked = [typed(f"t{i}", 1 if i < 20 else 2 + i % 3, f"l{i}", LATE + i) for i in range(30)]
    offered = [row for a in asked for row in suggested(a["request_id"], ["lamp"], 9, "lamp")]
    logs = log(tmp_path / "logs", TRAIN, (asked, offered, []))
    whole, counts = built(logs, mining=dataclasses.replace(MINING, max_requests_per_user=15))
    assert 1 not in whole.users and len(whole.events) == 10
    assert counts["users"]["too_many_requests"] == {"users": 1, "requests": 20}
    few, counts = built(logs, SuggestTestConfig(max_events=7))
    assert len(few.events) == counts["events"] == 7 and counts["requests_with_a_taken_suggestion"] == 30
    assert built(logs, SuggestTestConfig(max_events=7, seed=1))[0].events != few.events


def test_days_that_cannot_be_asked_are_named(tmp_path):
    taken = ([typed("t", 1, "l", LATE)], suggested("t", ["lamp"], 9, "lamp"), [])
    logs = log(tmp_path / "logs", TRAIN, ([typed("t", 1, "l", LATE)], suggested("t", ["lamp"]), []))
    with pytest.raises(InputError, match="nobody took a suggestion"):
        built(logs)
    log(logs, ([typed("a", 1, "l", LATE)], suggested("a", ["lamp"]), []), taken)
    with pytest.raises(InputError, match=r"train/suggestions\.ts: 1 rows at or after"):
        built(logs)
    log(logs, TRAIN, taken)
    for table in ("suggestions", "suggested", "followed"):
        (logs / f"train/{table}.parquet").unlink()
    with pytest.raises(InputError, match=r"day 'train'\): holds no suggestions\.parquet"):
        built(logs)
    (logs / "train").rename(logs / "none")
    for table in ("suggestions", "suggested", "followed"):
        (logs / f"test/{table}.parquet").unlink()
    with pytest.raises(InputError, match=r"day 'test'\): holds no suggestions\.parquet"):
        built(logs)


def test_a_log_that_does_not_tell_what_followed_has_no_orders(tmp_path):
    taken = ([typed("t", 1, "l", LATE)], suggested("t", ["lamp", "l"], 9, "lamp"), [])
    logs = log(tmp_path / "logs", TRAIN, taken)
    (logs / "test/followed.parquet").unlink()
    found, counts = built(logs)
    assert found.ordered.tolist() == [False] and counts["ordered"] == 0
    with pytest.raises(InputError, match="but 'suggestion_testset' is needed"):
        with write_folder(tmp_path / "other", kind="mined"):
            pass
        read_suggestion_testset(tmp_path / "other")
