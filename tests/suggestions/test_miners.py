"""Pairs, levels, rewards and preferences of suggestions: by hand, and against a slow reading of a tangled day."""

import dataclasses
import json

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import suggestion_oracle as oracle
from hand_logs import DAY, T0, candidate, feed, followed, item, search, suggested, typed, write, write_day
from hand_logs import write_suggestions as suggestions

from crops_jax.artifacts.folders import write_folder
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.suggestions.config import CoOccurrenceConfig, PreferenceConfig, RewardConfig, SuggestMiningConfig
from crops_jax.suggestions.levels import LEVELS
from crops_jax.suggestions.mined_day import TABLES, mine_suggestions
from crops_jax.suggestions.preferences import guarded
from crops_jax.suggestions.searched import read_searched

CONFIG = SuggestMiningConfig(engine=EngineConfig(memory_limit="500MB"))
WEIGHTS = dataclasses.asdict(RewardConfig())


def log(logs, searches, prefixes, offered, clicks):
    write(logs / "items.parquet", "items", [item(i, f"item {i}") for i in range(5)])
    write_day(logs, "train", searches, [candidate(searches[0]["request_id"], 0)], [feed(1, 0, T0)])
    suggestions(logs, "train", prefixes, offered, clicks)
    return logs


def mined(logs, config=CONFIG, name="mined"):
    with write_folder(logs.parent / name, kind="mined_suggestions") as out:
        counts = mine_suggestions(logs, out, config)
    return {t: pq.read_table(logs.parent / name / t, partitioning=None).to_pylist() for t in TABLES}, counts


def small(tmp_path):
    """Users 1 and 2 type "tr"; 1 takes "transformer" and orders, 2 types on and takes "Transformer toy".

    User 3, unknown to both, types one letter of Greek, takes nothing and searches something else. Somebody whom nobody
    knows searches "tramway", twice.
    """
    return log(
        tmp_path / "logs",
        [search("s1", 1, "transformer", T0 + 1_000), search("s2", 2, "Transformer toy", T0 + 9_000),
         search("s3", 3, "ω films", T0 + 70_000), search("s4", 2, "transformer", T0 + 100_000),
         search("s5", None, "tramway", T0 + 3), search("s6", None, "tramway", T0 + 5)],
        [typed("a", 1, "tr", T0), typed("b", 2, "Tr ", T0 + 7_000), typed("c", 2, "Transformer t", T0 + 8_000),
         typed("d", 3, "ω", T0 + 9_000), typed("e", None, "tr", T0), typed("f", 1, " ", T0)],
        [*suggested("a", ["transformer", "train", "trip", "tram"], 2, "transformer"),
         *suggested("b", ["transformer", "train", "trip"], 2),
         *suggested("c", ["transformer toy", "transformer trip"], 1, "transformer toy"),
         *suggested("e", ["transformer", "train"], 2, "train"), *suggested("f", ["train"], 1, "train")],
        [followed("a", "transformer", 0, T0 + 2_000, True), followed("a", "transformer", 1, T0 + 2_000),
         followed("c", "transformer toy", 2, T0 + 10_000)],
    )  # fmt: skip


def test_a_day_by_hand(tmp_path):
    found, counts = mined(small(tmp_path))
    pairs = {(r["prefix"], r["query"]): (r["users"], pytest.approx(r["score"])) for r in found["prefix_query"]}
    # "tr" is typed by users 1 and 2, who search one query each; "ω" is typed more than a minute before the search.
    # Both users searched "transformer": user 2 later, without those prefixes.
    assert pairs == {("tr", "transformer"): (1, 1 / 2), ("tr", "Transformer toy"): (1, pytest.approx(1 / 2**0.5)),
                     ("transformer t", "Transformer toy"): (1, 1.0)}  # fmt: skip
    shown_by = {(r["prefix"], r["query"]): (r["requests"], r["only_request"]) for r in found["prefix_query"]}
    assert shown_by == {("tr", "transformer"): (1, "a"), ("tr", "Transformer toy"): (1, "b"),
                        ("transformer t", "Transformer toy"): (1, "c")}  # fmt: skip
    near = {(r["query"], r["related"]): r["score"] for r in found["query_query"]}
    assert near == {("Transformer toy", "transformer"): pytest.approx(1 / 2**0.5),
                    ("transformer", "Transformer toy"): pytest.approx(1 / 2**0.5)}  # fmt: skip
    searched = read_searched(tmp_path / "mined").to_pylist()
    assert [tuple(row.values()) for row in searched] == [
        ("Transformer toy", 2, 1, T0 + 9_000), ("tramway", None, 2, T0 + 5), ("transformer", 1, 1, T0 + 1_000),
        ("transformer", 2, 1, T0 + 100_000), ("ω films", 3, 1, T0 + 70_000)]  # fmt: skip
    reward = {(r["prefix"], r["query"], r["level"]): (r["times"], r["reward"]) for r in found["rewards"]}
    assert reward["tr", "transformer", "order"] == (1, pytest.approx(2 * np.e))
    assert reward["transformer t", "Transformer toy", "item_click"] == (1, pytest.approx(1.5 * np.e))
    assert reward["tr", "train", "click"] == (1, pytest.approx(np.e)), "taken by nobody known"
    # shown and not taken: train for a and b, transformer for b and e
    assert reward["tr", "train", "show"] == (2, pytest.approx(0.5 * np.exp(0.5)))
    assert reward["tr", "tram", "not_show"] == (1, pytest.approx(0.2 * np.exp(1 / 3)))
    assert {key for key in reward if "" in key} == set(), "a prefix of blanks is no prefix"
    names = ("chosen", "chosen_level", "rejected_level", "rejected")
    kinds = [tuple(row[name] for name in names) for row in found["preferences"]]
    assert {key for key in kinds if key[0] == "transformer" and key[2] != "rand"} == {
        ("transformer", "order", "show", "train"), ("transformer", "order", "not_show", "trip"),
        ("transformer", "order", "not_show", "tram")}  # fmt: skip
    drawn = {key[3] for key in kinds if (key[0], key[2]) == ("transformer", "rand")}
    assert drawn == {"Transformer toy", "transformer trip", "ω films", "tramway"}, (
        "what was not suggested in that request"
    )
    assert counts["kinds"]["order > not_show"] == {"pairs": 2, "rewards too near": 0}
    told = json.loads((tmp_path / "mined/rejects.json").read_text())["logs"]
    assert {reason: t["count"] for reason, t in told.items()} == {
        "prefix_empty": 1,
        "suggestion_without_user": 1,
        "search_without_user": 2,
    }


def test_the_worked_rewards_and_weights(tmp_path):
    """Ten requests of "p" with an order each, one of them of q: p = 0.1, 2 exp(0.1). Five clicks, one of them of q."""
    many = [typed(f"o{i}", 1, "p", T0 + i) for i in range(10)] + [typed(f"c{i}", 1, "x", T0 + i) for i in range(5)]
    taken = ["q", *(f"q{i}" for i in range(1, 10))]
    offered = [s for i, q in enumerate(taken) for s in suggested(f"o{i}", [q], 9, q)]
    clicks = [followed(f"o{i}", q, 0, T0 + 9, True) for i, q in enumerate(taken)]
    for i in range(5):  # of ten that were not shown for "x", three are "r"
        names = [f"n{i}", "r" if i < 3 else f"m{i}"]
        offered += suggested(f"c{i}", [taken[i]], 9, taken[i])
        offered += [s | {"position": n + 2} for n, s in enumerate(suggested(f"c{i}", names, 0))]
    found, _ = mined(log(tmp_path / "logs", [search("s", 1, "q", T0)], many, offered, clicks))
    reward = {(r["prefix"], r["query"], r["level"]): r["reward"] for r in found["rewards"]}
    assert reward["p", "q", "order"] == pytest.approx(2.210342, abs=5e-7)
    assert (reward["x", "q", "click"], reward["x", "r", "not_show"]) == pytest.approx((1.221403, 0.269972), abs=5e-7)
    weight = [r["weight"] for r in found["preferences"] if (r["prefix"], r["chosen"], r["rejected"]) == ("x", "q", "r")]
    assert weight == [pytest.approx(1.051048, abs=5e-7)]


def test_the_weight_is_the_inverse_of_the_gap_within_its_guards():
    """An order of p = 0.1 above a suggestion shown with p = 0; a gap below 0.1; one of exactly 0.1."""
    gaps = [2 * np.exp(0.1) - 0.5, 0.0999, 0.1]
    found = guarded(ibis.memtable(pa.table({"gap": gaps})), PreferenceConfig()).to_pyarrow()["weight"].to_pylist()
    assert sorted(found) == [pytest.approx(0.584678, abs=5e-7), 10.0]


def test_guards(tmp_path):
    """A click of p = 1/40 earns 1.025; a suggestion shown each time alone 1.359: such pairs are left out, and told."""
    n = 40
    prefixes = [typed(f"r{i}", 1, "p", T0 + i) for i in range(n)]
    offered = [s for i in range(n) for s in suggested(f"r{i}", [f"q{i:02}", "always"], 9, f"q{i:02}")]
    logs = log(tmp_path / "logs", [search("s", 1, "q", T0)], prefixes, offered, [])
    found, counts = mined(logs)
    assert counts["kinds"]["click > show"] == {"pairs": n, "rewards too near": n}
    assert {r["rejected_level"] for r in found["preferences"]} == {"rand"}
    # 1.025315 - 0.5 exp(1) = -0.333826 for lambda(show) = 0.5; with 0.34, it is 0.101099 and the weight 9.891.
    for lam, weight in ((0.34, 1 / (np.exp(1 / 40) - 0.34 * np.e)), (0.342, None)):
        config = dataclasses.replace(CONFIG, rewards=RewardConfig(show=lam))
        found, counts = mined(logs, config)
        got = [r["weight"] for r in found["preferences"] if r["rejected_level"] == "show"]
        assert got == ([pytest.approx(weight, abs=1e-6)] * n if weight else [])
    config = dataclasses.replace(CONFIG, rewards=RewardConfig(show=0.34),
                                 preferences=PreferenceConfig(max_weight=3.0))  # fmt: skip
    assert {r["weight"] for r in mined(logs, config)[0]["preferences"] if r["rejected_level"] == "show"} == {3.0}


def check_same(got, wanted, least, tolerance=1e-12):
    """Two dicts of tuples of numbers, of more than `least` entries."""
    assert {*got} == {*wanted} and len(got) > least
    assert not [key for key, value in wanted.items() if got[key] != pytest.approx(value, abs=tolerance)]


def tangled(logs, seed):
    """Spellings, equal moments, a robot, nobody, suggestions twice in a request, requests without any."""
    rng = np.random.default_rng(seed)
    words = ["lamp", "Lamp", "desk  lamp", "DESK lamp", "Übung", "灯 具", "a'b", 'c"d', "%_\\", "x" * 2000, " "]
    searches, prefixes, offered, clicks = [], [], [], []
    for i in range(150):
        user = None if rng.random() < 0.1 else 0 if rng.random() < 0.4 else int(rng.integers(1, 9))
        searches.append(search(f"s{i}", user, str(rng.choice(words)), T0 + int(rng.integers(0, 60)) * 10_000))
    for i in range(200):
        user = None if rng.random() < 0.1 else 0 if rng.random() < 0.4 else int(rng.integers(1, 9))
        text = str(rng.choice(words))[: int(rng.integers(1, 5))]
        prefixes.append(typed(f"p{i}", user, text, T0 + int(rng.integers(0, 60)) * 10_000))
        queries = rng.choice(words, int(rng.integers(0, 8)), replace=False).tolist()
        taken = queries[int(rng.integers(0, len(queries)))] if queries and rng.random() < 0.6 else None
        offered += suggested(f"p{i}", queries, max(3, queries.index(taken) + 1 if taken else 0), taken)
        for number in rng.choice(5, int(rng.integers(0, 3)), replace=False).tolist() if taken else []:
            clicks.append(followed(f"p{i}", taken, number, T0 + i * 1_000, bool(rng.random() < 0.5)))
    return log(logs, searches, prefixes, offered, clicks), (searches, prefixes, offered, clicks)


@pytest.mark.parametrize(("by", "bucket"), [("prefix", 128), pytest.param("level", 2, marks=pytest.mark.slow)])
def test_a_tangled_day_is_read_as_the_oracle_reads_it(tmp_path, monkeypatch, by, bucket):
    monkeypatch.setattr("crops_jax.suggestions.preferences._BUCKET", bucket)
    logs, rows = tangled(tmp_path / "logs", 0)
    pairs = CoOccurrenceConfig(prefix_window_ms=30_000, session_window_ms=50_000, max_searches_after=4, per_text=3)
    config = dataclasses.replace(
        CONFIG, co_occurrence=pairs, preferences=PreferenceConfig(rejected_per_kind=2, seed=3),
        rewards=RewardConfig(frequency=by), part_rows=100,
    )  # fmt: skip
    found, _ = mined(logs, config)
    searches, prefixes, offered, clicks = oracle.of_day(*rows)
    got = {(r["prefix"], r["query"]): (r["users"], r["score"]) for r in found["prefix_query"]}
    wanted, shown_by = oracle.prefix_query(searches, prefixes, offered, 30_000, 3)
    check_same(got, wanted, 20)
    got = {(r["prefix"], r["query"]): (r["requests"], r["only_request"]) for r in found["prefix_query"]}
    assert got == shown_by and {n for n, _ in got.values()} > {1, 2}
    got = {(r["query"], r["related"]): (r["users"], r["score"]) for r in found["query_query"]}
    check_same(got, oracle.query_query(searches, 50_000, 4, 3), 10)
    acts = oracle.behaviour(prefixes, offered, clicks)
    assert {*acts.values()} == {*LEVELS} - {"rand"}
    reward = oracle.rewards(acts, WEIGHTS, by == "prefix")
    got = {(r["prefix"], r["query"], r["level"]): (r["times"], r["share"], r["reward"]) for r in found["rewards"]}
    check_same(got, reward, 50, 1e-8)
    wanted = oracle.preferences(acts, reward, searches, offered, WEIGHTS, config.preferences, 0 if bucket > 9 else 1)
    names = ("request_id", "prefix", "chosen", "chosen_level", "rejected", "rejected_level")
    got = {
        tuple(r[n] for n in names): (r["chosen_reward"], r["rejected_reward"], r["weight"])
        for r in found["preferences"]
    }
    check_same(got, wanted, 50, 1e-6)
    assert len({(key[3], key[5]) for key in got}) == 9, "all kinds of pairs"


@pytest.mark.slow
def test_programs_and_strangers_are_left_out_and_counted(tmp_path):
    logs, _ = tangled(tmp_path / "logs", 1)
    all_of_them, _ = mined(logs)
    config = dataclasses.replace(CONFIG, max_requests_per_user=50, anonymous_users=(3,))
    found, _ = mined(logs, config, "fewer")
    told = json.loads((tmp_path / "fewer/rejects.json").read_text())["users"]
    assert told["too_many_requests"]["users"] == 1 and told["too_many_requests"]["requests"] > 50
    assert told["typing_anonymous"]["users"] == told["anonymous"]["users"] == 1
    assert sum(r["times"] for r in found["rewards"]) < sum(r["times"] for r in all_of_them["rewards"])


def test_days_without_suggestions_are_named(tmp_path):
    logs = tmp_path / "logs"
    write(logs / "items.parquet", "items", [item(0, "a")])
    write_day(logs, "train", [search("s", 1, "q", T0)], [candidate("s", 0)], [feed(1, 0, T0)])
    with pytest.raises(InputError, match=r"holds no suggestions\.parquet"):
        mined(logs)
    suggestions(logs, "train", [typed("a", 1, "q", T0)], suggested("a", ["q"]), [])
    with pytest.raises(InputError, match="nobody took a suggestion"):
        mined(logs)
    suggestions(logs, "train", [typed("a", 1, "q", T0)], suggested("a", ["q"], taken="q"), [])
    with pytest.raises(InputError, match=r"1 suggestions were taken, and there was no other query to prefer"):
        mined(logs)
    (logs / "train/followed.parquet").unlink()
    suggestions(logs, "test", [typed("a", 1, "q", T0 + DAY)], suggested("a", ["q"]), [])
    write_day(logs, "test", [search("t", 1, "q", T0 + DAY)], [candidate("t", 0)], [feed(1, 0, T0 + DAY)])
    with pytest.raises(InputError, match=r"1 requests for suggestions are in both days, e\.g\. a"):
        mined(logs)


def test_a_log_that_does_not_tell_what_followed_ends_at_clicks(tmp_path):
    logs = small(tmp_path)
    (logs / "train/followed.parquet").unlink()
    found, _ = mined(logs)
    assert {r["chosen_level"] for r in found["preferences"]} == {"click"}
