"""Pairs that are scored in batches, and on another machine than the one that mines them."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hand_logs import WordOverlap, small_world

from crops_jax.artifacts.folders import kept_for, write_folder
from crops_jax.engines import files
from crops_jax.mining import scoring
from crops_jax.mining.config import HeldOutConfig, MiningConfig, WorldKnowledgeConfig
from crops_jax.mining.relevance import Unscored
from crops_jax.mining.testsets import build_testsets
from crops_jax.mining.train_day import mine

CONFIG = MiningConfig(world_knowledge=WorldKnowledgeConfig(enabled=False), part_rows=6)


@pytest.fixture
def logs(tmp_path):
    return small_world(tmp_path / "logs")


def _mine(logs, target, relevance, work=None):
    with write_folder(target, kind="mined") as out:
        mine(logs, out, relevance, CONFIG, work)
    return {p.relative_to(target).as_posix(): p.read_bytes() for p in sorted(target.rglob("part-*"))} | {
        "rejects": (target / "rejects.json").read_text()
    }


def test_what_another_machine_scores_is_what_mining_scores_itself(logs, tmp_path):
    wanted = _mine(logs, tmp_path / "here", WordOverlap())
    work, elsewhere = kept_for(tmp_path / "work", {"seed": 0}), []
    for stage in ("p1_consumed_similar", "theta"):
        with pytest.raises(Unscored, match=rf"\d+ parts? waits? for theta in {stage}$"):
            _mine(logs, tmp_path / "there", None, work)
        assert stage in scoring.asked(work) and scoring.of_documents(work, stage) == (stage == "theta")
        left = scoring.unscored(work, stage)
        elsewhere += [path.name for path in scoring.score_parts(work, stage, left, WordOverlap())]
        assert scoring.unscored(work, stage) == []
    assert len(elsewhere) == 3
    assert _mine(logs, tmp_path / "there", None, work) == wanted


def test_the_test_sets_wait_in_the_same_way(logs, tmp_path):
    with write_folder(tmp_path / "here", kind="testsets") as out:
        wanted = build_testsets(logs, out, WordOverlap(), HeldOutConfig(), CONFIG)
    work = kept_for(tmp_path / "work", {"seed": 0})
    for _ in range(2):
        with pytest.raises(Unscored), write_folder(tmp_path / "sets", kind="testsets") as out:
            build_testsets(logs, out, None, HeldOutConfig(), CONFIG, work=work)
        for name in scoring.asked(work):
            list(scoring.score_parts(work, name, scoring.unscored(work, name), WordOverlap()))
    with write_folder(tmp_path / "sets", kind="testsets") as out:
        assert build_testsets(logs, out, None, HeldOutConfig(), CONFIG, work=work) == wanted
    assert wanted["qr_pairs_scored"] > wanted["qr_pairs_not_above_alpha"] > 0
    assert (tmp_path / "sets/qr.parquet").read_bytes() == (tmp_path / "here/qr.parquet").read_bytes()


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_pairs_and_counts_do_not_depend_on_how_many_are_scored_at_a_time(rows, logs, tmp_path, monkeypatch):
    work = kept_for(tmp_path / "work", {"seed": 0})
    for _ in range(2):
        with pytest.raises(Unscored):
            _mine(logs, tmp_path / "mined", None, work)
        names = [name for name in scoring.asked(work) if scoring.unscored(work, name)]
        if names == ["theta"]:
            break
        list(scoring.score_parts(work, names[0], scoring.unscored(work, names[0]), WordOverlap()))
    monkeypatch.setattr(scoring, "_ROWS", rows)
    searches = [row for path in files.part_files(work / "searches") for row in files.read(path).to_pylist()]
    queries = {row["number"]: row["query"] for row in searches if row["request_id"] is None}
    for path in scoring.unscored(work, "theta"):
        batches = list(scoring.batches(work, "theta", path))
        table = pq.read_table(path)
        assert sum(len(batch.rows) for batch in batches) == len(table)
        pairs = [pair for batch in batches for pair in zip(batch.first, batch.second, strict=True)]
        assert (
            len(pairs)
            == len(set(pairs))
            == len({*zip(*(table[c].to_pylist() for c in ("number", "item_id")), strict=True)})
        )
        for batch in batches:
            numbers = batch.rows["number"].to_pylist()
            assert [batch.first[i] for i in batch.pair] == [queries[number] for number in numbers]
            assert (np.diff(batch.pair) >= 0).all()
