"""mine on a shop in small: candidates and test sets, against what the rows of its logs say."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hand_logs import DAY, T0, feed, write
from shop import ASK_AGAIN, GLANCE_MS, KITS, MINED, candidates_of, command, flip, manifest, pairs
from tiny import WORDS

from crops_jax import check_logs, mine
from crops_jax.artifacts.manifest import fingerprint
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.mining.config import SimulatedLLMConfig, ThresholdConfig
from crops_jax.models.config import ThetaConfig

N = len(WORDS)


def test_mine_finds_each_source_where_the_rows_have_it(shop_logs):
    e, asked = shop_logs
    rows = candidates_of(e.folder("mined"))
    kit = [f"{word} kit" for word in WORDS]
    assert pairs(rows, "P0") == {(w, 3 * j) for j, w in enumerate(WORDS)} | {(q, 3 * j + 1) for j, q in enumerate(kit)}
    shown = {(w, 3 * (j + 1) % 24) for j, w in enumerate(WORDS)} | {(q, 3 * (j + 4) % 24) for j, q in enumerate(kit)}
    assert pairs(rows, "X3") == shown | {(q, 3 * j + 2) for j, q in enumerate(kit)}
    assert pairs(rows, "U2") == pairs(rows, "P1") == {(w, 3 * j + 1) for j, w in enumerate(WORDS)}
    assert pairs(rows, "F1") == {(w, (3 * (j + 3) + 2) % 24) for j, w in enumerate(WORDS)}
    assert pairs(rows, "P2") == {(w, 3 * j + 2) for j, w in enumerate(WORDS)}  # "kit" is in no text: theta 1/2
    assert {query for query, _ in pairs(rows, "P3")} == {*WORDS, *kit[:KITS]}
    made = manifest(e.folder("mined"))
    assert {s: made["counts"][s] for s in ("P0", "X3", "U2", "F1", "P1", "P2", "P3")} == {
        "P0": 2 * N, "X3": 3 * N, "U2": N, "F1": N, "P1": N, "P2": N, "P3": N + KITS
    }  # fmt: skip
    assert made["counts"]["candidates"] == len(rows) and made["counts"]["P3_asked"] == 2 * N
    assert made["config"] == json.loads(json.dumps(mine.settings(e)))
    assert made["inputs"]["logs"]["sha256"] == fingerprint(e.folder("logs"))
    assert asked == [e.theta]  # one discriminator for both days
    rejects = json.loads((e.folder("mined") / "rejects.json").read_text())
    assert rejects["P3"] == {"refused": N - KITS} and rejects["logs"]["item_without_text"]["count"] == 1
    written = pq.read_table(e.folder("mined") / "knowledge.parquet").to_pylist()
    assert {row["ocr_cover"] for row in written} == {f"hidden {word}" for word in WORDS}
    assert len((Path(e.workdir) / "knowledge.journal.jsonl").read_text().splitlines()) >= N + KITS


def test_the_test_sets_are_those_of_the_test_day(shop_logs):
    e, _ = shop_logs
    folder = e.folder("testsets")
    ct, qr, unexposed = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("ct", "qr", "unexposed"))
    clicks = [(f"t{j}a", word, 3 * j) for j, word in enumerate(WORDS)]
    clicks += [(f"t{j}b", f"{WORDS[j]} parts", 3 * j + 2) for j in range(ASK_AGAIN)]
    assert sorted(tuple(row.values()) for row in ct) == sorted(clicks)
    assert [tuple(row.values()) for row in qr] == [(f"t{j}a", WORDS[j], 3 * j + 2) for j in range(ASK_AGAIN)]
    # Graded 2 or more and never shown for the word: the first item was.
    assert sorted(tuple(row.values()) for row in unexposed) == sorted((WORDS[j], 3 * j + 1) for j in range(6))
    sets = {name: pq.read_table(folder / f"{name}.parquet") for name in ("ranked", "shown")}
    rows = {name: {(r["event_id"], r["query"], r["item_id"]) for r in sets[name].to_pylist()} for name in sets}
    candidates = pq.read_table(e.folder("logs") / "test/candidates.parquet").to_pylist()
    asked = {event: query for event, query, _ in clicks}
    seen = {(c["request_id"], asked[c["request_id"]], c["item_id"]): c["stage"] for c in candidates}
    assert rows["shown"] == {row for row, stage in seen.items() if stage == "exposed"}
    assert rows["ranked"] == {row for row, stage in seen.items() if stage != "filtered"}
    made = manifest(folder)
    assert made["config"] == json.loads(json.dumps(mine.testset_settings(e)))
    assert (made["counts"]["ct_events"], made["counts"]["qr_events"]) == (N + ASK_AGAIN, ASK_AGAIN)


def test_a_theta_that_was_trained_again_in_its_place_is_another(own_logs, tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    for name in ("model.safetensors", "1_Pooling/config.json", "training.log"):
        (tmp_path / name).write_text("as it was")
    e = replace(own_logs, theta=ThetaConfig(source=str(tmp_path)))

    def made():
        return mine.settings(e), mine.testset_settings(e)

    before = made()
    (tmp_path / "training.log").write_text("a note")
    assert made() == before
    (tmp_path / "model.safetensors").write_text("as it is")
    assert all(one["theta_sha256"] != other["theta_sha256"] for one, other in zip(made(), before, strict=True))


def test_the_validation_days_sets_lie_in_a_folder_of_their_own(own_logs):
    logs, of_test = own_logs.folder("logs"), own_logs.folder("testsets")
    before = fingerprint(of_test)
    (logs / "test").rename(logs / "validation")
    check_logs.run(logs)
    folder = mine.run_testsets(own_logs, "validation")
    assert folder == own_logs.ready("validation_sets") and fingerprint(of_test) == before
    for name in mine.SETS:
        assert (folder / f"{name}.parquet").read_bytes() == (of_test / f"{name}.parquet").read_bytes()


def test_a_flipped_bit_in_the_logs_stops_both_miners(own_logs):
    before = [fingerprint(own_logs.folder(kind)) for kind in ("mined", "testsets")]
    flip(own_logs.folder("logs") / "hidden_items.parquet")  # which neither would have noticed
    for run in (mine.run, mine.run_testsets):
        with pytest.raises(InputError, match="bytes have changed"):
            run(own_logs)
    assert before == [fingerprint(own_logs.folder(kind)) for kind in ("mined", "testsets")]


def test_one_day_out_of_many_is_mined_into_folders_of_its_own(own_logs, capsys):
    logs, mined = own_logs.folder("logs"), own_logs.folder("mined")
    before = fingerprint(mined)
    shutil.copytree(logs / "train", logs / "2025-06-12")
    path = logs / "2025-06-12/feed.parquet"
    write(path, "feed", pq.read_table(path).to_pylist()[:1])
    check_logs.run(logs)
    raw = Path(own_logs.workdir) / "raw.parquet"
    (logs / "2025-06-12/searches.parquet").rename(raw)
    (logs / "2025-06-12/searches.parquet").symlink_to("../../raw.parquet")
    command(mine, own_logs, "--day", "2025-06-12", "--dry-run")
    assert "queries: " in capsys.readouterr().out and not (Path(own_logs.workdir) / "days").exists()
    away = path.rename(raw.with_name("away"))
    with pytest.raises(InputError, match=r"2025-06-12/feed\.parquet: missing, or of another size"):
        command(mine, own_logs, "--day", "2025-06-12")
    away.rename(path)
    command(mine, own_logs, "--day", "2025-06-12")
    own = replace(own_logs, workdir=f"{own_logs.workdir}/days/2025-06-12")
    assert own.workdir == f"{own_logs.workdir}/days/2025-06-12" and own.workdir in capsys.readouterr().out
    of_day, of_train = (candidates_of(folder) for folder in (own.ready("mined"), mined))
    assert len(pairs(of_day, "P2")) == 1 and len(pairs(of_train, "P2")) == N
    assert pairs(of_day, "P1") == pairs(of_train, "P1") and fingerprint(mined) == before
    command(mine, own)  # there it is the train day, whoever asks
    assert candidates_of(own.ready("mined")) == of_day and own.ready("testsets")
    assert [path.name for path in Path(own_logs.workdir).rglob("*.journal.jsonl")] == ["knowledge.journal.jsonl"]
    for strange in ("test", "2025-06-13"):
        with pytest.raises(InputError, match=r"no such day to mine; it has 2025-06-12, train"):
            command(mine, own_logs, "--day", strange)
    write(path, "feed", [feed(0, 0, T0 + 3 * DAY)])
    with pytest.raises(InputError, match=r"2025-06-12/feed\.ts: 1 rows at or after"):
        check_logs.run(logs)


def test_another_test_day_changes_nothing_that_is_mined(own_logs):
    logs, mined = own_logs.folder("logs"), own_logs.folder("mined")
    before = [(mined / name).read_bytes() for name in MINED]
    late = pq.read_table(logs / "test/searches.parquet").to_pylist()
    write(logs / "test/searches.parquet", "searches", [row | {"query": f"new {row['query']}"} for row in late])
    check_logs.run(logs)
    mine.run(own_logs)
    assert [(mined / name).read_bytes() for name in MINED] == before


@pytest.mark.slow
def test_the_settings_of_mining_reach_the_miners(own_logs, capsys):
    """Each of them once, where ignoring it would give other rows."""
    p1, p2, p3 = own_logs.mining.query_level, own_logs.mining.system_level, own_logs.mining.world_knowledge

    def mined(**sections):
        mine.run(replace(own_logs, mining=replace(own_logs.mining, **sections)))
        rows = candidates_of(own_logs.folder("mined"))
        return {source: len(pairs(rows, source)) for source in ("P1", "P2", "P3")}

    keys = {row["evidence"] for row in candidates_of(own_logs.folder("mined")) if row["source"] == "P3"}
    assert mined(threshold=ThresholdConfig(alpha=1.0)) == {"P1": 0, "P2": 0, "P3": N + KITS}  # strictly above
    assert mined(threshold=ThresholdConfig(alpha=0.4))["P2"] == 2 * N  # half of "word kit" is in a text
    glances = {"query_level": replace(p1, min_watch_ms=GLANCE_MS), "system_level": replace(p2, min_watch_ms=GLANCE_MS)}
    assert mined(**glances) == {"P1": 2 * N, "P2": 2 * N, "P3": N + KITS}
    near, none = replace(p1, window_ms=59_999), replace(p3, enabled=False)
    assert mined(query_level=near, system_level=replace(p2, window_ms=4_999), world_knowledge=none) == {
        "P1": 0, "P2": 0, "P3": 0
    }  # fmt: skip
    alike, few = replace(p1, min_query_similarity=1.1), replace(p3, max_queries=3)
    found = mined(query_level=alike, system_level=replace(p2, max_items_per_user=0), world_knowledge=few)
    assert found["P1"] == found["P2"] == 0 and manifest(own_logs.folder("mined"))["counts"]["P3_asked"] == 3
    chosen = pairs(candidates_of(own_logs.folder("mined")), "P3")
    mined(world_knowledge=replace(few, seed=1, max_exemplar_chars=1))
    rows = candidates_of(own_logs.folder("mined"))
    assert pairs(rows, "P3") != chosen and {row["evidence"] for row in rows}.isdisjoint(keys)  # another prompt
    with pytest.raises(InputError, match="too_long: 11"):
        mined(world_knowledge=replace(p3, max_field_chars=5))
    own = Path(own_logs.workdir) / "own.jsonl"
    mined(world_knowledge=replace(p3, journal=str(own), per_query=2))
    assert manifest(own_logs.folder("mined"))["counts"]["P3_asked"] == 4 * N and own.is_file()
    assert "SIMULATED" in capsys.readouterr().err
    malformed = replace(own_logs, simulated_llm=SimulatedLLMConfig(irrelevant_rate=0, malformed_rate=1))
    with pytest.raises(InputError, match="16 of 16 questions"):  # no answer of the journal is one of its own
        mine.run(malformed)
    for run in (mine.run, mine.run_testsets):
        with pytest.raises(InputError, match="engine config"):
            run(replace(own_logs, mining=replace(own_logs.mining, engine=EngineConfig(memory_limit="much"))))


@pytest.mark.slow
def test_the_settings_of_the_test_sets_reach_them(own_logs):
    def counts(**settings):
        mine.run_testsets(replace(own_logs, held_out=replace(own_logs.held_out, **settings)))
        return manifest(own_logs.folder("testsets"))["counts"]

    assert counts(max_events=4)["ct_events"] == 4
    first = pq.read_table(own_logs.folder("testsets") / "ct.parquet")
    counts(max_events=4, seed=1)
    assert pq.read_table(own_logs.folder("testsets") / "ct.parquet") != first
    assert counts(min_grade=3.0)["unexposed_rows"] == 0  # the first items, which all were shown
    assert counts(min_grade=1.0)["unexposed_rows"] == 12
    with pytest.raises(InputError, match="QR"):
        mine.run_testsets(replace(own_logs, mining=replace(own_logs.mining, threshold=ThresholdConfig(alpha=1.0))))


def test_main_makes_no_test_sets_without_a_test_day(own_logs, capsys):
    shutil.rmtree(own_logs.folder("logs") / "test")
    shutil.rmtree(own_logs.folder("testsets"))
    check_logs.run(own_logs.folder("logs"))
    command(mine, own_logs)
    assert "no test sets" in capsys.readouterr().out and not own_logs.folder("testsets").exists()
