"""What every engine owes: the same rows and the same bytes from one definition, on logs that are as bad as logs get."""

import dataclasses
import json
import shutil
import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import (
    WordOverlap,
    as_spark_writes,
    candidate,
    feed,
    followed,
    item,
    recast,
    search,
    suggested,
    typed,
    write,
    write_day,
    write_suggestions,
)
from spark_engine import LOCAL as SPARK
from spark_engine import MARKS, require_spark, sending
from whole_reading import CONFIG, everything

from crops_jax import check_logs as verb
from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import fingerprint
from crops_jax.engines.engine import draw, normalised, open_engine
from crops_jax.errors import InputError
from crops_jax.labels import LabelsConfig
from crops_jax.logs.checks import check_logs
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.sealed import verify_tables
from crops_jax.logs.window import ensure_window
from crops_jax.mining.config import FunnelConfig
from crops_jax.mining.train_day import mine
from crops_jax.records import RecordsConfig, RecordsReader, candidates
from crops_jax.records.parts import PartSettings
from crops_jax.records.workers import Mined, write_mined
from crops_jax.stable_hash import hash_texts, in_order
from crops_jax.suggestions.config import PreferenceConfig, SuggestMiningConfig, SuggestTestConfig
from crops_jax.suggestions.mined_day import TABLES, mine_suggestions
from crops_jax.suggestions.testset import KIND, build_suggestion_testset

require_spark()
pytestmark = [*MARKS]
NIGHT = int(datetime(2025, 11, 2, 5, 0, tzinfo=UTC).timestamp() * 1000)  # an hour before New York's clocks go back


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Three nights: a robot that does two fifths of everything, events twice, equal moments, an hour that is twice."""
    logs, rng = tmp_path_factory.mktemp("logs"), np.random.default_rng(0)
    words = ["lamp", "desk", "chair", "Übung", "灯 具", "a'b", 'c"d', "%_\\"]
    titles = [" ".join(rng.choice(words, 3)) for _ in range(60)]
    write(logs / "items.parquet", "items", [item(i, title) for i, title in enumerate([*titles, "  ", None])])
    for day, start in (("train", NIGHT), ("test", NIGHT + 86_400_000), ("2025-11-01", NIGHT - 86_400_000)):
        searches, shown, watched = [], [], []
        for i in range(150):
            user = 0 if rng.random() < 0.4 else int(rng.integers(1, 9))
            query = " ".join(rng.choice(words, rng.integers(1, 3)))
            query = query.upper() if rng.random() < 0.2 else query
            ts = start + int(rng.integers(0, 90)) * 80_000  # ninety moments in two hours
            searches.append(search(f"{day}{i}", user, query, ts))
            for place, found in enumerate(rng.choice(62, 6, replace=False).tolist()):
                stage = ("exposed", "exposed", "exposed", "ranked", "ranked", "filtered")[place]
                clicked = stage == "exposed" and bool(rng.random() < 0.5)
                shown.append(candidate(f"{day}{i}", found, stage, place + 1, clicked=clicked))
        for _ in range(400):
            user = 0 if rng.random() < 0.4 else int(rng.integers(1, 12))
            watched.append(feed(user, int(rng.integers(0, 62)), start + int(rng.integers(0, 90)) * 80_000))
        write_day(logs, day, [*searches, search(f"{day}x", 3, " ", start)], shown, watched + watched[::3])
    for day, start in (("train", NIGHT), ("test", NIGHT + 86_400_000)):
        write_suggestions(logs, day, *_suggestions(rng, words, day, start))
    # As timestamps, in one table with a time zone and in the other without one.
    recast(
        logs, "searches", ts=lambda c: c.cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp("us", "America/New_York"))
    )
    recast(logs, "feed", ts=pa.timestamp("ms"))
    recast(logs, "searches", user_id=lambda c: pa.array([f"user {u}" if u != 8 else None for u in c.to_pylist()]))
    recast(logs, "feed", user_id=lambda c: pa.array([f"user {u}" for u in c.to_pylist()]))
    recast(logs, "items", item_id=lambda c: pa.array([f"v_{i}" for i in c.to_pylist()]))
    recast(logs, "suggestions", user_id=lambda c: pa.array([f"user {u}" if u != 8 else None for u in c.to_pylist()]))
    for table in ("candidates", "feed", "followed"):
        recast(logs, table, item_id=lambda c: pa.array([f"v_{i}" for i in c.to_pylist()]))
    write(logs / "judgments.parquet", "judgments", [{"query": "lamp", "item_id": 1, "grade": 3.0}])
    recast(logs, "judgments", item_id=lambda c: pa.array([f"v_{i}" for i in c.to_pylist()]))
    return as_spark_writes(logs)


def _suggestions(rng, words, day, start):
    """Prefixes of a night, whose suggestions are words in any spelling."""
    prefixes, offered, clicks = [], [], []
    for i in range(150):
        user = 0 if rng.random() < 0.4 else int(rng.integers(1, 9))
        prefix = str(rng.choice(words))[: int(rng.integers(1, 4))]
        prefixes.append(typed(f"{day}p{i}", user, prefix, start + int(rng.integers(0, 90)) * 80_000))
        spelled = {word: word.upper() if rng.random() < 0.3 else word for word in words}
        queries = [spelled[word] for word in rng.choice(words, 5, replace=False).tolist()]
        taken = queries[int(rng.integers(0, 3))] if rng.random() < 0.7 else None
        offered += suggested(f"{day}p{i}", queries, 3, taken)
        if taken and rng.random() < 0.6:
            ordered = bool(rng.random() < 0.4)
            clicks.append(followed(f"{day}p{i}", taken, i % 60, start + i * 1_000, ordered=ordered))
    return prefixes, offered, clicks


class Similar(WordOverlap):
    """All queries are similar; a text is relevant by its words."""

    def query_similarity(self, a, b):
        return np.ones(len(a), np.float32)


def engines():
    """The config of mining with each engine, by its name."""
    return {engine.backend: dataclasses.replace(CONFIG, engine=engine) for engine in (CONFIG.engine, SPARK)}


def bytes_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet")) if p.is_file()}


def test_every_miner_and_every_test_set_gives_the_same_bytes(logs):
    found, files = {}, {}
    for engine in (CONFIG.engine, SPARK):
        config = dataclasses.replace(CONFIG, engine=engine, part_rows=100)
        config = dataclasses.replace(
            config,
            system_level=dataclasses.replace(config.system_level, max_items_per_user=7),
            query_level=dataclasses.replace(config.query_level, max_searches_after=5),
        )
        found[engine.backend] = everything(logs, config, Similar)
        files[engine.backend] = {name: bytes_of(logs / name) for name in ("mined", "testsets")}
        files[engine.backend]["rejects"] = (logs / "mined/rejects.json").read_text()
    assert found["duckdb"] == found["spark"]
    assert files["duckdb"] == files["spark"]
    sources = [row["source"] for row in found["spark"]["candidates"]]
    assert min(sources.count(source) for source in ("P1", "P2", "X3")) > 10
    assert len(found["spark"]["qr"]) > 5 and len(found["spark"]["ct"]) > 50
    assert len(files["spark"]["mined"]) > 10


def test_what_is_mined_from_suggestions_has_the_same_bytes(logs):
    config, found = SuggestMiningConfig(preferences=PreferenceConfig(rejected_per_kind=2)), {}
    for engine in (CONFIG.engine, SPARK):
        config = dataclasses.replace(config, engine=engine, anonymous_users=("user 0",))
        with write_folder(logs / "suggestions_mined", kind="mined_suggestions") as out:
            counts = mine_suggestions(logs, out, config)
        with write_folder(logs / "suggestions_asked", kind=KIND) as out:
            asked = build_suggestion_testset(logs, out, SuggestTestConfig(max_events=40), config)
        folders = [bytes_of(logs / name) for name in ("suggestions_mined", "suggestions_asked")]
        found[engine.backend] = (counts, asked, folders)
    assert found["duckdb"] == found["spark"]
    assert found["spark"][1]["recent"] > 100 and found["spark"][1]["events"] == 40
    assert len(found["spark"][0]["kinds"]) == 9 and min(found["spark"][0][name] for name in TABLES) > 20


def test_problems_and_rejects_are_the_same(logs, tmp_path):
    told = [check_logs(logs, "train", engine) for engine in (CONFIG.engine, SPARK)]
    assert told[0] == told[1] and told[0].rejects["query_empty"].count == 1
    shutil.copytree(logs, tmp_path / "bad")
    recast_parts(tmp_path / "bad/train/candidates.parquet", "position", lambda c: pa.array([0.5] * len(c)))
    recast_parts(tmp_path / "bad/train/feed.parquet", "item_id", lambda c: pa.array(["nobody's"] * len(c)))
    told = []
    for engine in (CONFIG.engine, SPARK):
        with pytest.raises(InputError) as error:
            check_logs(tmp_path / "bad", "train", engine)
        told.append(str(error.value))
    assert told[0] == told[1] and "column position (double)" in told[0]


def recast_parts(folder, column, change):
    for path in sorted(folder.glob("part-*")):
        table = pq.read_table(path)
        pq.write_table(table.set_column(table.column_names.index(column), column, change(table[column])), path)


def test_one_day_out_of_many_is_mined_to_the_same_bytes(logs, tmp_path):
    found, sealed, window = {}, tmp_path / "logs", tmp_path / "window"
    shutil.copytree(logs, sealed, ignore=shutil.ignore_patterns("mined*", "testsets*"))
    verb.run(sealed)
    ensure_window(sealed, window, {"2025-11-01": "train"})
    for name, config in engines().items():
        with write_folder(tmp_path / name, kind="mined") as out:
            mine(window, out, Similar(), config)
        found[name] = bytes_of(tmp_path / name), fingerprint(tmp_path / name), out.counts["day"]
    assert found["duckdb"] == found["spark"] and found["spark"][2] == "2025-11-01"


def test_executors_and_worker_processes_write_the_same_shards(logs, tmp_path, monkeypatch):
    """Groups, records, shards, indexes and counts; and the executors check the bytes of the log."""
    monkeypatch.setattr(candidates, "_ROWS", 100)
    sealed = tmp_path / "logs"
    shutil.copytree(logs, sealed, ignore=shutil.ignore_patterns("mined*", "testsets*"))
    manifests = []
    for config in engines().values():
        verb.run(sealed, engine=config.engine)
        manifests.append((sealed / "manifest.json").read_bytes())
        verify_tables(sealed, config.engine)
    assert manifests[0] == manifests[1]
    candidates_of = {}
    for name, config in engines().items():  # theta of the funnel too, which the test above leaves as it is
        with write_folder(tmp_path / "mined", kind="mined") as out:
            mine(sealed, out, Similar(), dataclasses.replace(config, part_rows=100, funnel=FunnelConfig(alpha=0.4)))
        candidates_of[name] = bytes_of(tmp_path / "mined")
    assert candidates_of["duckdb"] == candidates_of["spark"]
    assert json.loads((tmp_path / "mined/rejects.json").read_text())["funnel"]["pairs_not_above_alpha"] > 0
    inputs = {name: tmp_path / name for name in ("mined", "logs")}
    mined = Mined(tmp_path / "mined/candidates.parquet", tmp_path / "mined/knowledge.parquet", sealed, inputs)
    settings, shards = PartSettings(LabelsConfig(), 0.2, TEXT_FIELDS), RecordsConfig(3, 0.2, workers=2)
    found = {}
    for name, config in engines().items():
        with write_folder(tmp_path / name, kind="records") as out:
            coverage = write_mined(mined, out, shards, settings, 3, config.engine, tmp_path / f"{name}.parts")
        files = {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}
        found[name] = files, coverage.report(settings.labels)
    assert found["duckdb"] == found["spark"]
    assert len(candidates.cut(mined.candidates)) > 5 and len(RecordsReader(tmp_path / "spark")) > 50
    flipped = next((sealed / "items.parquet").glob("part-*"))
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    with pytest.raises(InputError, match=f"items.parquet/{flipped.name}: its bytes have changed"):
        verify_tables(sealed, SPARK)


def test_functions_of_texts_and_an_error_of_a_stream():
    found = {}
    for name, config in engines().items():
        with open_engine(config.engine, []) as engine:
            table = engine.read(Rows(None))
            forms = table.select(f=normalised(table.q)).to_pyarrow()["f"].to_pylist()
            drawn = table.filter(table.q.notnull()).select(d=draw(table.q, 3)).to_pyarrow()["d"].to_pylist()
            found[name] = sorted(forms, key=str), sorted(drawn)
    assert found["duckdb"] == found["spark"] and found["spark"][0] == [None, "a b", "a b"]
    assert found["spark"][1] == sorted(in_order(hash_texts(["Ａ\u3000b", "a B"], 3)).tolist())
    with pytest.raises(InputError, match="here: and why") as error, open_engine(SPARK, []) as engine:
        engine.read(Rows(("here", ["and why"]))).count().to_pyarrow()
    assert error.value.problems == ["and why"]


class Rows:
    """Three rows, and then perhaps the end."""

    schema = pa.schema([("x", pa.int64()), ("q", pa.string())])

    def __init__(self, error=None):
        self.error = error

    def pieces(self):
        return [self]

    def batches(self):
        yield pa.record_batch({"x": [2, 1, 3], "q": ["Ａ\u3000b", None, "a B"]}, schema=self.schema)
        if self.error:
            raise InputError(*self.error)


@pytest.fixture(scope="module", autouse=True)
def _classes_of_this_file_reach_the_executors():
    with sending(sys.modules[__name__]):
        yield
