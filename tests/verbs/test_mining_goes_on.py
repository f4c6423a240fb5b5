"""`mine` after a kill: what was finished is kept until all is in its place, and nothing of it is out of date; and an
endpoint that repeats itself.
"""

import errno
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_endpoint import FakeEndpoint, completion
from knowledge import written
from shop import candidates_of, pairs

from crops_jax import mine
from crops_jax.artifacts import folders
from crops_jax.engines import files
from crops_jax.errors import InputError
from crops_jax.mining.config import MiningConfig, WorldKnowledgeConfig


def full(*args, **kwargs):
    """A disk on which there is no room."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("made", [mine.run, mine.run_testsets])
def test_what_was_finished_stays_until_the_folder_is_in_its_place(own_logs, made, monkeypatch):
    found = []
    for step in ("seal", "_replace"):
        with monkeypatch.context() as patch:
            patch.setattr(folders, step, full)
            with pytest.raises(OSError, match="No space left"):
                made(own_logs)
        (work,) = Path(own_logs.workdir).glob("*.work")
        found.append({path: path.stat().st_ino for path in work.rglob("part-*")})
    assert found[0] == found[1] and len(found[0]) > 3
    whole = sorted(work.rglob("whole.json"))
    whole[0].write_text("")  # a power cut: the stage is made again
    gone = next(part for part in whole[-1].parent.glob("part-*"))
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(InputError, match="has lost its parts; remove the folder and run the command again"):
        files.files(whole[-1].parent)
    gone.write_bytes(kept)
    made(own_logs)
    assert not work.exists()


def test_candidates_of_a_killed_run_are_written_again_where_there_are_other_documents_now(own_logs, monkeypatch):
    lost = {1, 3, 5}
    with FakeEndpoint(lambda n: (500, {}) if n in lost else (200, completion(written(n)))) as endpoint:
        knowledge = WorldKnowledgeConfig(endpoint=endpoint.config(), journal=f"{own_logs.workdir}/own.jsonl")
        e = replace(own_logs, simulated_llm=None, mining=replace(own_logs.mining, world_knowledge=knowledge))
        with monkeypatch.context() as patch:
            patch.setattr(folders, "seal", full)
            with pytest.raises(OSError, match="No space left"):
                mine.run(e)
        lost.clear()
        mined = mine.run(e)
    documents = pq.read_table(mined / "knowledge.parquet", columns=["query", "item_id"]).to_pylist()
    assert len(endpoint.requests) == len(documents) + 3 == 19
    assert pairs(candidates_of(mined), "P3") == {(row["query"], row["item_id"]) for row in documents}


def test_an_answer_that_comes_to_every_question_is_told(own_logs, capsys):
    for same in (False, True):
        with FakeEndpoint(lambda n, same=same: (200, completion(written(0 if same else n)))) as endpoint:
            knowledge = WorldKnowledgeConfig(endpoint=endpoint.config(), journal=f"{own_logs.workdir}/{same}.jsonl")
            mine.run(replace(own_logs, simulated_llm=None, mining=MiningConfig(world_knowledge=knowledge)))
        told = "warning: P3: one and the same document was written for 16 of 16 queries"
        assert (told in capsys.readouterr().err) == same
