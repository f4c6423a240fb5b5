"""Users who type: what is suggested, what they take, and that nobody else notices."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import InputError
from crops_jax.logs.checks import check_logs
from crops_jax.logs.tables import write_table
from crops_jax.simulate.judged import JudgedWorldConfig
from crops_jax.simulate.platform import PlatformConfig
from crops_jax.simulate.prefixes import TypingConfig, completions, type_queries
from crops_jax.simulate.sessions import SessionsConfig
from crops_jax.simulate.simulator import SimulateConfig, build_world, simulate
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.simulate.truth import AnnotationConfig
from crops_jax.simulate.users import UsersConfig

SMALL = SimulateConfig(
    users=UsersConfig(n_users=60), sessions=SessionsConfig(train_sessions=150, test_sessions=30),
    platform=PlatformConfig(dense_width=8, dense_features=200), annotation=AnnotationConfig(queries=5),
)  # fmt: skip
TYPING = TypingConfig(enabled=True)
TABLES = ("suggestions", "suggested", "followed")


@pytest.fixture(scope="module")
def world():
    return build_world(SyntheticWorldConfig(n_items=260, n_intents=252, queries_per_intent=2, hidden_per_intent=1))


def written(world, folder, typing):
    counts = simulate(world, replace(SMALL, typing=typing), folder)
    return counts, {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
                    for p in folder.rglob("*.parquet")}  # fmt: skip


@pytest.fixture(scope="module")
def typed(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    return folder, *written(world, folder, TYPING)


def rows(folder, name, day="train"):
    return pq.read_table(folder / day / f"{name}.parquet").to_pylist()


def test_typing_that_nobody_is_helped_by_changes_no_other_table(world, tmp_path, typed):
    _, off = written(world, tmp_path / "off", TypingConfig())
    nobody = replace(TYPING, take_chance=0.0, settle_chance=0.0)
    counts, on = written(world, tmp_path / "on", nobody)
    assert off == {name: digest for name, digest in on.items() if name in off}
    assert {*on} - {*off} == {f"{day}/{table}.parquet" for day in ("train", "test") for table in TABLES}
    assert counts["train"]["suggestions taken"] == counts["train"]["orders"] == 0
    _, again = written(world, tmp_path / "again", TYPING)
    assert again == typed[2], "same seed, same bytes"


def test_a_prefix_grows_by_a_letter_until_a_suggestion_is_taken_or_the_query_is_searched(typed):
    folder, counts, _ = typed
    offered, searches = {}, rows(folder, "searches")
    for row in rows(folder, "suggested"):
        offered.setdefault(row["request_id"], []).append(row)
    typing, ends = {}, []
    for row in rows(folder, "suggestions"):
        user, prefix = row["user_id"], row["prefix"]
        before = typing.get(user)
        if before is not None:
            assert prefix == before or (prefix.startswith(before) and len(prefix[len(before) :].strip()) == 1)
            assert len(prefix) > len(before)
        list_of = sorted(offered.get(row["request_id"], []), key=lambda r: r["position"])
        assert [r["position"] for r in list_of] == [*range(1, len(list_of) + 1)]
        assert all(r["query"].startswith(prefix) for r in list_of) and len(list_of) <= TYPING.considered
        assert [r["shown"] for r in list_of] == [n < TYPING.shown for n in range(len(list_of))]
        taken = [r["query"] for r in list_of if r["clicked"]]
        searched = [s for s in searches if s["user_id"] == user and s["ts"] >= row["ts"]]
        if taken:
            ends.append(row["request_id"])
            assert any(s["query"] == taken[0] for s in searched)
        typing[user] = None if taken or any(s["query"] == prefix for s in searched) else prefix
    assert len(ends) == counts["train"]["suggestions taken"] > 100
    assert counts["train"]["of them another query for the same need"] > 0
    followed = rows(folder, "followed")
    assert {f["request_id"] for f in followed} <= {*ends} and 0 < sum(f["ordered"] for f in followed) < len(followed)


def test_the_logs_keep_the_contract(typed):
    for day in ("train", "test"):
        assert check_logs(typed[0], day).rows["suggestions"] == typed[1][day]["prefixes typed"]


def test_completions_are_the_popular_queries_that_begin_so(world):
    exact = replace(TYPING, popularity_noise=0.0, known_share=1.0, considered=3, shown=2)
    known = completions(world, exact, 0)
    total = np.asarray(world.refined.sum(1)).ravel()
    popular = world.popularity @ world.first + (world.popularity / np.where(total > 0, total, 1)) @ world.refined
    for number in np.random.default_rng(0).integers(len(known.prefixes), size=30).tolist():
        prefix = known.prefixes[number].as_py()
        fits = [q for q, text in enumerate(world.queries) if text.lower().startswith(prefix.lower())]
        best = sorted(fits, key=lambda q: -popular[q])[:3]
        got = [q for q in known.suggested[number].tolist() if q >= 0]
        np.testing.assert_allclose(popular[got], popular[best])
    half = completions(world, replace(exact, known_share=0.5, considered=10_000), 0)
    offered = {q for q in half.suggested.ravel().tolist() if q >= 0}
    assert 0.4 < len(offered) / len(world.queries) < 0.6


def test_a_user_who_sees_the_wanted_query_takes_it_at_once(world):
    known = completions(world, replace(TYPING, popularity_noise=0.0, known_share=1.0, take_chance=1.0,
                                       settle_chance=0.0), 0)  # fmt: skip
    intent = np.zeros(3, np.int64)
    favourite = known.suggested[known.stages[known.start[0]], 0]  # the first suggestion for the first letter of query 0
    wanted = np.full((3, 1), favourite)
    found = type_queries(known, intent, wanted, np.full(3, 10_000), np.array([-1, 9_900, 9_999]), np.ones(10),
                         np.random.default_rng(0))  # fmt: skip
    assert (found.letters.tolist(), found.taken.tolist()) == ([1, 1, 1], [0, 0, 0])
    assert found.started.tolist() == [9_700, 9_901, 10_000], "never before the search before"


@pytest.mark.parametrize("bad", [{"shown": 0}, {"shown": 21}, {"letter_ms": -1}])
def test_settings_that_cannot_be_are_named(world, tmp_path, bad):
    with pytest.raises(InputError, match="typing"):
        simulate(world, replace(SMALL, typing=replace(TYPING, **bad)), tmp_path)


def test_a_judged_collection_is_typed_too(tmp_path):
    """Real queries of any script: each letter is a character."""
    queries = [
        f"{thing} {way}" for thing in ("Garten-Schläuche", "无线 电钻", "oak  table") for way in ("50 ft", "lang")
    ]
    text = {
        "ocr_cover": [f"item {i}" for i in range(48)],
        **dict.fromkeys(("photo_caption", "keyword", "click_query"), [None] * 48),
    }
    counters = dict.fromkeys(("play_cnt", "like_cnt", "long_view_cnt", "download_cnt"), [1] * 48)
    with write_folder(tmp_path / "collection", kind="collection") as out:
        write_table("items", {"item_id": range(48), **text, **counters}, out / "items.parquet")
        query, item = zip(*((q, n * 8 + i) for n, q in enumerate(queries) for i in range(8)), strict=True)
        write_table("judgments", {"query": query, "item_id": item, "grade": [3.0] * 48}, out / "judgments.parquet")
    world = build_world(JudgedWorldConfig(str(tmp_path / "collection"), relevant_grade=2.0))
    simulate(world, replace(SMALL, typing=TYPING), tmp_path / "logs")
    prefixes = {row["prefix"] for row in rows(tmp_path / "logs", "suggestions")}
    assert {"G", "无", "无线", "o"} <= prefixes and not any(p.endswith(" ") for p in prefixes)
    assert check_logs(tmp_path / "logs", "train").rows["suggested"] > 100
