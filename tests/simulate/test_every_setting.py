"""Every setting of a world and of its platform says something: with another value, something else is written."""

import dataclasses
import hashlib
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.logs.tables import write_table
from crops_jax.simulate import simulator
from crops_jax.simulate.feed import FeedConfig
from crops_jax.simulate.judged import JudgedWorldConfig
from crops_jax.simulate.platform import PlatformConfig
from crops_jax.simulate.prefixes import TypingConfig
from crops_jax.simulate.sessions import SessionsConfig
from crops_jax.simulate.simulator import SimulateConfig, build_world, simulate
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.simulate.truth import AnnotationConfig
from crops_jax.simulate.users import UsersConfig
from crops_jax.simulate.world import generator

DAYS = ("train", "validation", "test")
SMALL = SimulateConfig(
    users=UsersConfig(n_users=40),
    sessions=SessionsConfig(train_sessions=60, test_sessions=20),
    platform=PlatformConfig(dense_width=8, dense_features=200),
    annotation=AnnotationConfig(queries=5),
)
WORLD = SyntheticWorldConfig(n_items=260, n_intents=252, queries_per_intent=1, hidden_per_intent=1)
OTHER_WORLDS = {
    "seed": 1, "n_items": 270, "n_intents": 126, "queries_per_intent": 2, "hidden_per_intent": 2, "rare_share": 0.3,
    "head_word_share": 0.5, "bridge_share": 0.2, "click_query_share": 0.6, "second_facet_share": 0.6,
    "sense_popularity": (0.6, 0.3, 0.1), "head_zipf": 1.0, "first_head_query": 0.4, "first_sense_query": 0.2,
}  # fmt: skip
OTHERS = {
    UsersConfig: {
        "n_users": 41, "interests": 3, "new_need_share": 0.6, "click_relevant": 0.4, "click_partial": 0.6,
        "click_accident": 0.3, "like_share": 0.7,
    },
    SessionsConfig: {
        "train_sessions": 61, "test_sessions": 21, "validation_sessions": 20, "max_queries": 2,
        "satisfied_by_click": 0.1, "persistence": 0.4,
        "switch_share": 0.6, "log_ranked": 5, "log_filtered": 5,
    },
    PlatformConfig: {
        "lexical_fields": ("photo_caption",), "lexical_words": 2, "dense_width": 4, "dense_features": 100,
        "recall_each": 40, "memory_recall": 5, "memory_share": 0.2, "memory_skew": 0.2, "memory_drift": 0.9,
        "ranked": 30, "exposed": 6, "weight_lexical": 2.0, "weight_dense": 0.3, "weight_memory": 4.0,
        "weight_popularity": 2.0, "noise": 0.5,
    },
    FeedConfig: {"items_per_user": 6.0, "interest_share": 0.3, "popular_share": 0.3},
    AnnotationConfig: {"queries": 4, "pooled": 10},
    TypingConfig: {
        "enabled": False, "considered": 15, "shown": 5, "known_share": 0.4, "popularity_noise": 2.0, "take_chance": 0.2,
        "settle_chance": 0.6, "letter_ms": 100, "order_chance": 0.9,
    },
}  # fmt: skip


def names(config):
    return {field.name for field in dataclasses.fields(config)}


def world_digest(world):
    """Of what a world holds, in memory."""
    parts = [world.items.to_pylist(), world.hidden.to_pylist(), world.queries, world.intents, world.judgments]
    arrays = [a for m in (world.first, world.refined, world.wanted, world.relevance) for a in (m.data, m.indices)]
    whole = hashlib.sha256(repr(parts).encode())
    for array in (*arrays, world.popularity):
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def written(world, config, folder):
    simulate(world, config, folder)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.parquet")}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(the world, its digest, what is written of it)."""
    world = build_world(WORLD)
    return world, world_digest(world), written(world, SMALL, tmp_path_factory.mktemp("base"))


def test_every_setting_of_the_synthetic_world(base):
    assert names(WORLD) == {*OTHER_WORLDS}
    same = [name for name, value in OTHER_WORLDS.items()
            if world_digest(build_world(replace(WORLD, **{name: value}))) == base[1]]  # fmt: skip
    assert same == []


@pytest.mark.slow
def test_every_setting_of_the_platform_and_its_users(base, tmp_path):
    world, _, before = base
    typing = replace(SMALL, typing=TypingConfig(enabled=True))
    with_typing = written(world, typing, tmp_path / "typing")
    sections = {type(getattr(SMALL, name)): name for name in names(SMALL)}
    assert {*sections} == {*OTHERS, int, type(None)}  # and the seed and a calibration
    same = []
    for kind, others in OTHERS.items():
        assert names(kind) == {*others}
        for name, value in others.items():
            start, known = (typing, with_typing) if kind is TypingConfig else (SMALL, before)
            section = replace(getattr(start, sections[kind]), **{name: value})
            config = replace(start, **{sections[kind]: section})
            if written(world, config, tmp_path / f"{sections[kind]}.{name}") == known:
                same.append(f"{sections[kind]}.{name}")
    assert same == []
    assert written(world, replace(SMALL, seed=1), tmp_path / "seed") != before


def test_a_validation_day_lies_between_and_moves_neither(base, tmp_path):
    world, _, before = base
    sessions = replace(SMALL.sessions, validation_sessions=20)
    after = written(world, replace(SMALL, sessions=sessions), tmp_path)
    new = {"truth/events_validation.parquet", *(f"validation/{t}.parquet" for t in ("searches", "candidates", "feed"))}
    assert {*after} - {*before} == new and all(after[name] == before[name] for name in before)
    for table in ("searches", "feed"):
        train, between, test = (pq.read_table(tmp_path / f"{day}/{table}.parquet") for day in DAYS)
        times = [rows["ts"].to_numpy() for rows in (train, between, test)]
        assert times[0].max() < times[1].min() and times[1].max() < times[2].min()
    feeds = [pq.read_table(tmp_path / f"{day}/feed.parquet") for day in DAYS]
    events = [pq.read_table(tmp_path / f"truth/events_{day}.parquet") for day in DAYS]
    needs = [[row["intent"] for row in rows.to_pylist() if row["step"] == 1] for rows in events]
    for first in ([rows["user_id"].to_pylist() for rows in feeds], needs):
        assert len({str(of_day[:20]) for of_day in first}) == 3  # no day repeats another


def test_each_day_is_searched_in_a_click_memory_of_its_own(base, tmp_path, monkeypatch):
    searched = {}
    monkeypatch.setattr(simulator, "write_day", lambda stage, day, *_, **__: searched.update({day: stage.pools}) or {})
    simulate(base[0], replace(SMALL, sessions=replace(SMALL.sessions, validation_sessions=20)), tmp_path)
    assert {*searched} == {*DAYS}
    assert len({pools.rank.tobytes() for pools in searched.values()}) == 3


@pytest.fixture
def collection(tmp_path):
    """Eight queries in pairs that share three items and words; grades from 1 to 3."""
    rng = generator(0, "collection")
    queries = [f"{thing} {way}" for thing in ("garden hose", "cordless drill", "oak table", "wall paint")
               for way in ("50 ft", "50 ft long")]  # fmt: skip
    rows = [(q, int(i), float(rng.choice([1, 2, 3]))) for n, q in enumerate(queries)
            for i in range(n // 2 * 12, n // 2 * 12 + 12)]  # fmt: skip
    text = {"ocr_cover": [f"item {i}" for i in range(48)], "photo_caption": ["words"] * 48}
    nulls = dict.fromkeys(("keyword", "click_query"), [None] * 48)
    counters = dict.fromkeys(("play_cnt", "like_cnt", "long_view_cnt", "download_cnt"), [1] * 48)
    with write_folder(tmp_path / "collection", kind="collection") as out:
        write_table("items", {"item_id": range(48), **text, **nulls, **counters}, out / "items.parquet")
        query, item, grade = zip(*rows, strict=True)
        write_table("judgments", {"query": query, "item_id": item, "grade": grade}, out / "judgments.parquet")
    return tmp_path / "collection"


def test_every_setting_of_a_judged_world(collection):
    config = JudgedWorldConfig(str(collection), relevant_grade=2.0, hidden_share=0.2)
    others = {"relevant_grade": 3.0, "seed": 1, "hidden_share": 0.4, "min_similarity": 0.99, "min_shared": 99,
              "first_sibling_share": 0.9, "popularity_zipf": 0.2}  # fmt: skip
    assert names(config) == {"collection", *others}
    # Similar in words or in many shared items: either alone is enough for this collection, so the other is put away.
    alone = {"min_similarity": {"min_shared": 99}, "min_shared": {"min_similarity": 0.99}}
    same = []
    for name, value in others.items():
        start = replace(config, **alone.get(name, {}))
        if world_digest(build_world(start)) == world_digest(build_world(replace(start, **{name: value}))):
            same.append(name)
    assert same == []
