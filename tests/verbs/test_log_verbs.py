"""Every verb of the log half once, on a shop in small: what it wrote, against what a loop over the same rows gives."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hand_logs import DAY, T0, WordOverlap, feed, write
from shop import (
    ASK_AGAIN,
    GLANCE_MS,
    ITEMS,
    KITS,
    candidates_of,
    command,
    experiment,
    flip,
    judgments,
    manifest,
    pairs,
    texts,
    words_for_theta,
    write_logs,
)
from tiny import WORDS

from crops_jax import audit, calibrate, check_logs, mine, pipeline, purity, simulate_logs, write_records
from crops_jax.artifacts.manifest import fingerprint, seal, verify
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.labels import LETTERS, LabelsConfig, caps, levels, source_bits
from crops_jax.logs.checks import check_logs as check_day
from crops_jax.mining.config import SimulatedLLMConfig, ThresholdConfig
from crops_jax.mining.work import theta_cache
from crops_jax.models import theta
from crops_jax.models.config import ThetaConfig
from crops_jax.records import RecordsConfig, RecordsReader
from crops_jax.records.write import held_out
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.simulate.platform import PlatformConfig
from crops_jax.simulate.sessions import SessionsConfig
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.simulate.users import UsersConfig
from crops_jax.text.tokenizer import train_tokenizer

N = len(WORDS)
MINED = ("candidates.parquet/part-0.parquet", "knowledge.parquet", "rejects.json")


def test_simulate_logs_writes_both_days_of_the_configs_world(tmp_path):
    e = experiment(tmp_path)
    small, quick = (
        SessionsConfig(train_sessions=60, test_sessions=20),
        PlatformConfig(dense_width=8, dense_features=500),
    )
    simulate = replace(e.simulate, users=UsersConfig(n_users=40), sessions=small, platform=quick)
    e = replace(e, world=SyntheticWorldConfig(n_items=130, n_intents=126), simulate=simulate)
    command(simulate_logs, e)
    made = manifest(e.folder("logs"))
    assert made["kind"] == "logs" and made["config"] == json.loads(json.dumps(simulate_logs.settings(e)))
    for day in ("train", "test"):
        rows = check_day(e.folder("logs"), day).rows
        assert rows["items"] == made["counts"]["world"]["items"] == 130
        assert rows["searches"] == made["counts"][day]["searches"]
    assert made["counts"]["train"]["searches"] > 60 > made["counts"]["test"]["searches"] >= 20
    with pytest.raises(InputError, match="none"):
        simulate_logs.run(replace(e, world=None))
    own = tmp_path / "calibration.json"
    shutil.copy(Path(simulate_logs.__file__).parent / "simulate" / "calibration.json", own)
    simulate_logs.run(replace(e, simulate=replace(simulate, calibration=str(own), seed=7)))
    again = manifest(e.folder("logs"))
    assert again["inputs"]["calibration"]["sha256"] == fingerprint(own)
    assert again["files"] != made["files"] and again["config"]["simulate"]["seed"] == 7


def test_check_logs_seals_a_folder_whose_days_are_both_sound(tmp_path, capsys):
    logs = write_logs(tmp_path / "logs")
    command(check_logs, None, str(logs))
    made, said = manifest(logs), capsys.readouterr().out
    assert made["kind"] == "logs" and {"items.parquet", "test/feed.parquet"} <= {f["path"] for f in made["files"]}
    assert {day: made["counts"][day]["rows"]["searches"] for day in ("train", "test")} == {"train": 16, "test": 13}
    assert "16 searches" in said and "13 searches" in said and "1 item_without_text, e.g. item_id=24" in said
    with pytest.raises(SystemExit) as ended:
        command(check_logs, None)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        *[
            (day, rf"day '{day}'\): feed\.item_id: 1 rows .* e\.g\. item_id=999")
            for day in ("train", "validation", "test")
        ],
        ("overlap", r"the test day leaks into mining: train/feed\.ts: 1 rows"),
        ("validation by the test", r"the test day leaks into validation[\s\S]*13 requests are in both days"),
        ("no day", "holds no folder train/ with searches, candidates and feed"),
    ],
)
def test_check_logs_seals_nothing_that_is_not_sound(spoilt, said, tmp_path):
    logs = write_logs(tmp_path / "logs")
    seal(logs, kind="logs", config=None, inputs={}, counts={})  # as it was before
    if spoilt.startswith("validation"):
        shutil.copytree(logs / "test", logs / "validation")
    if spoilt == "no day":
        shutil.rmtree(logs / "train")
    elif spoilt == "overlap":
        write(logs / "train/feed.parquet", "feed", [feed(0, 0, T0 + 3 * DAY)])
    elif spoilt != "validation by the test":
        write(logs / spoilt / "feed.parquet", "feed", [feed(0, 999, T0)])
    with pytest.raises(InputError, match=said):
        check_logs.run(logs)
    assert not (logs / "manifest.json").exists()


def test_a_failed_check_takes_no_other_folders_seal_away(own_logs):
    mined = own_logs.folder("mined")
    with pytest.raises(InputError, match="holds no folder train/"):
        check_logs.run(mined)
    verify(mined)


def test_logs_that_were_cut_since_they_were_sealed_stop_every_stage_made_from_them(own_logs):
    table = own_logs.folder("logs") / "train/candidates.parquet"
    stages = [stage for stage in pipeline.data_stages(own_logs) if stage.name in ("mine", "test sets")]
    assert [stage.is_current() for stage in stages] == [True, True]
    table.rename(table.with_name("_candidates"))
    write(table, "candidates", pq.read_table(table.with_name("_candidates")).to_pylist()[:1])
    asked = [lambda stage=stage: pipeline.ensure(stage, own_logs, "") for stage in stages]
    asked += [lambda: mine.run(own_logs), lambda: calibrate.run(own_logs), lambda: write_records.run(own_logs)]
    for ask in asked:
        with pytest.raises(InputError, match=r"train/candidates\.parquet: \d+ bytes[\s\S]*crops_jax\.check_logs"):
            ask()


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
    before = [
        (mined / name).read_bytes()
        for name in ("candidates.parquet/part-0.parquet", "knowledge.parquet", "rejects.json")
    ]
    late = pq.read_table(logs / "test/searches.parquet").to_pylist()
    write(logs / "test/searches.parquet", "searches", [row | {"query": f"new {row['query']}"} for row in late])
    check_logs.run(logs)
    mine.run(own_logs)
    after = [
        (mined / name).read_bytes()
        for name in ("candidates.parquet/part-0.parquet", "knowledge.parquet", "rejects.json")
    ]
    assert before == after


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


def test_calibrate_counts_judged_pairs_above_each_alpha(own_logs, capsys):
    """theta is 1 for the first three items of a word and 0 for the next word's: 18 and 6 judged pairs."""
    with words_for_theta() as asked:
        table, lowest = calibrate.run(replace(own_logs, theta=ThetaConfig(source="other words")), 0.6)
        assert [config.source for config in asked] == ["other words"]
        command(calibrate, own_logs)
    assert table.columns == ["alpha", "pairs kept", "precision", "recall"]
    assert [row[0] for row in table.rows] == [f"{a:.2f}" for a in np.arange(0.2, 0.75, 0.05)]
    assert {tuple(row[1:]) for row in table.rows} == {
        ("18", f"{12 / 18:.3f}", "1.000")
    }  # graded 2 or more: two of three
    assert lowest == "the lowest alpha with a precision of 0.6: alpha=0.5000, precision=0.667, recall=1.000"
    strict, lowest = calibrate.run(replace(own_logs, held_out=replace(own_logs.held_out, min_grade=3.0)))
    assert lowest == "no threshold reaches a precision of 0.9: the best is 0.333, keeping 18 of 24 pairs"
    assert strict.rows[0][1:] == ["18", f"{6 / 18:.3f}", "1.000"]
    assert "24 judged pairs, 50.0%" in capsys.readouterr().out


def test_calibrate_leaves_out_what_has_no_text(own_logs):
    logs = own_logs.folder("logs")
    write(logs / "judgments.parquet", "judgments", [*judgments(), {"query": "oak", "item_id": 24, "grade": 3.0}])
    check_logs.run(logs)
    assert calibrate.run(own_logs)[0].title.startswith("24 judged pairs, 50.0%")


def test_all_verbs_that_ask_theta_keep_its_values_in_one_place(own_logs, monkeypatch):
    asked = []
    with words_for_theta():
        monkeypatch.setattr(theta, "load", lambda config, cache=None: asked.append(cache) or WordOverlap())
        for verb in (calibrate, purity, audit):
            command(verb, own_logs)
    assert asked == [theta_cache(Path(own_logs.workdir))] * 3


def graded(e, rows):
    """request -> {item: (label, sources)}: Table 1 by one loop over the candidates, without caps."""
    of_pair, events = {}, {}
    for row in rows:
        if row["source"] in e.labels.sources:
            of_pair.setdefault((row["query"], row["item_id"]), set()).add(row["source"])
        if row["request_id"] is not None:
            events[row["request_id"]] = row["query"]
    pooled = [(q, i) for (q, i), sources in of_pair.items() if sources & {"P1", "P2", "P3"}]
    groups = {}
    for request, query in events.items():
        own = [(r["query"], r["item_id"]) for r in rows if r["request_id"] == request]
        found = {pair for pair in own + [p for p in pooled if p[0] == query] if pair in of_pair}
        groups[request] = {
            item: (max(e.labels.levels[s] for s in of_pair[q, item]), source_bits(*of_pair[q, item]))
            for q, item in found
        }
    return {request: docs for request, docs in groups.items() if any(label >= 4 for label, _ in docs.values())}


def read_all(e):
    records = {}
    for split in ("train", "validation"):
        reader = RecordsReader(e.arm_folder("records"), split)
        records[split] = reader.read(range(len(reader)))
    return records


def test_write_records_grades_by_table_1_and_holds_queries_out(shop_logs):
    e, _ = shop_logs
    records = read_all(e)
    every = [record for part in records.values() for record in part]
    found = {r.request_id: {i: (label, source) for i, label, source in zip(r.item_id.tolist(), r.label.tolist(),
             r.source.tolist(), strict=True)} for r in every}  # fmt: skip
    assert found == graded(e, candidates_of(e.folder("mined"))) and len(found) == 2 * N
    for split, part in records.items():
        assert {held_out(r.query, 0.3) for r in part} == {split == "validation"}
    of_item = {row["item_id"]: row for row in pq.read_table(e.folder("logs") / "items.parquet").to_pylist()}
    for record in every:
        real = [k for k, i in enumerate(record.item_id.tolist()) if i >= 0]
        assert [record.keyword[k] for k in real] == [of_item[int(record.item_id[k])]["keyword"] for k in real]
        assert all(record.ocr_cover[k].startswith("hidden") for k in range(len(record)) if k not in real)
    made = manifest(e.arm_folder("records"))
    assert made["config"] == json.loads(json.dumps(write_records.settings(e)))
    assert {k: v["sha256"] for k, v in made["inputs"].items()} == {
        k: fingerprint(e.folder(k)) for k in ("mined", "logs")
    }
    assert len(made["counts"]["splits"]["train"]["shard_lengths"]) == e.records.shards == 2
    assert made["counts"]["assembly"]["groups"] == 2 * N and made["counts"]["token_ids"] is None


def test_the_tokeniser_learns_from_documents_and_train_queries(shop_logs, tmp_path):
    e, _ = shop_logs
    queries = [query for word in WORDS for query in (word, f"{word} kit")]
    train_tokenizer([*texts().values(), *queries], e.vocabulary, tmp_path / "own.json")
    assert (e.folder("tokenizer") / "tokenizer.json").read_bytes() == (tmp_path / "own.json").read_bytes()
    made = manifest(e.folder("tokenizer"))
    assert made["config"] == {"vocabulary": 270, "vocabulary_of": "pieces"} and made["inputs"]["logs"][
        "sha256"
    ] == fingerprint(e.folder("logs"))
    assert len(texts()) == ITEMS - 1


def test_the_settings_of_records_and_labels_reach_the_shards(own_logs):
    first = manifest(own_logs.arm_folder("records"))["files"]

    def written(**changed):
        e = replace(own_logs, **changed)
        write_records.run(e)
        return e, [r for part in read_all(e).values() for r in part]

    labels = LabelsConfig(levels=levels(P1=4), sources=("P0", "P1", "X3"), caps=caps(X3=0))
    e, records = written(labels=labels)
    assert {label for r in records for label in r.label.tolist()} == {4}
    assert not {s for r in records for s in r.source.tolist()} & {source_bits(x) for x in LETTERS if x not in "P0P1"}
    e, records = written(records=RecordsConfig(shards=3, validation_share=0.3, tokenize=True))
    counts = manifest(e.arm_folder("records"))["counts"]
    assert len(counts["splits"]["train"]["shard_lengths"]) == 3
    tokenizer, of_text = featurizer_of(e), texts(e.text.field_order)
    for record in records:
        rows = tokenizer.encode_queries([record.query])
        assert record.tokens.query.tolist() == rows.ids[0, : rows.length[0]].tolist()
        for item, ids in zip(record.item_id.tolist(), np.split(record.tokens.docs, record.tokens.length.cumsum()[:-1]),
                             strict=True):  # fmt: skip
            if item >= 0:
                rows = tokenizer.encode_documents([of_text[item]])
                assert ids.tolist() == rows.ids[0, : rows.length[0]].tolist()
    made = manifest(e.arm_folder("records"))["inputs"]
    assert made["tokenizer"]["sha256"] == fingerprint(e.folder("tokenizer"))
    write_records.run(own_logs)
    assert manifest(own_logs.arm_folder("records"))["files"] == first
    write_records.run(replace(own_logs, seed=4))
    assert manifest(own_logs.arm_folder("records"))["files"] != first


def test_the_coverage_says_what_a_log_of_exposures_hides(shop_logs):
    """Of P1, P2 and P3 nothing was shown for the query; what was ranked (U2) is P1's as well."""
    e, _ = shop_logs
    found = json.loads((e.arm_folder("records") / "coverage.json").read_text())
    assert (found["arm"], found["queries"], found["positives"]) == ("arm", 2 * N, 5 * N + KITS)
    assert found["positives_never_exposed"] == 3 * N + KITS and found["conflicts"] == {"5 over 2": N}
    told = {s: (n["queries"], n["pairs"], n["positives_never_exposed"]) for s, n in found["sources"].items()}
    assert told == {
        "P0": (2 * N, 2 * N, 0), "P1": (N, N, N), "P2": (N, N, N), "P3": (N + KITS, N + KITS, N + KITS),
        "X3": (2 * N, 3 * N, 0), "U2": (N, N, N), "F1": (N, N, 0),
    }  # fmt: skip
    assert found["left_out"]["mining"] == json.loads((e.folder("mined") / "rejects.json").read_text())
    assert found["left_out"]["records"] == manifest(e.arm_folder("records"))["counts"]["rejects"]
    page = (e.arm_folder("records") / "coverage.html").read_text()
    assert f"<strong>{3 * N + KITS} of these were never exposed" in page and page.count("<table>") == 5
    assert "http" not in page.replace("http-equiv", "")


def test_an_arm_may_read_the_shards_of_another_with_fewer_sources(shop_logs):
    e = shop_logs[0]
    fewer = replace(e, name="fewer", input=replace(e.input, records_of="arm", sources=("P0", "X3")))
    assert fewer.ready("records") == e.arm_folder("records")
    reader = RecordsReader(fewer.ready("records"), sources=fewer.input.sources)
    records = {r.request_id: r for r in reader.read(range(len(reader)))}
    for request, documents in graded(replace(e, labels=LabelsConfig(sources=("P0", "X3"))),
                                     candidates_of(e.folder("mined"))).items():  # fmt: skip
        if request in records:
            record = records[request]
            assert dict(zip(record.item_id.tolist(), record.label.tolist(), strict=True)) == {
                i: label for i, (label, _) in documents.items()
            }
    assert len(records) == len(RecordsReader(e.arm_folder("records"))) > 0  # every search has a click
    with pytest.raises(InputError, match="those of 'arm': write them with its config"):
        write_records.run(fewer)
