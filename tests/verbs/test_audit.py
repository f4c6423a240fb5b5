"""The audit of the shop's written documents, by a simulated judge and by one whose grades the test decides."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_endpoint import FakeEndpoint, completion
from shop import KITS, command, seal_again, words_for_theta
from tiny import WORDS

from crops_jax import audit
from crops_jax.artifacts.manifest import verify
from crops_jax.errors import InputError
from crops_jax.mining.config import AuditConfig

N = len(WORDS) + KITS  # documents that the shop's model wrote


def test_a_simulated_judge_knows_the_world(own_logs, capsys):
    command(audit, own_logs)
    out = capsys.readouterr().out
    assert re.search(rf"^very relevant +{N} +100\.0 ", out, re.MULTILINE)
    verify(own_logs.folder("audit"))
    # A document of another word answers nothing here.
    path = own_logs.folder("mined") / "knowledge.parquet"
    rows = pq.read_table(path)
    swapped = rows.set_column(0, rows.schema.field("query"), rows["query"].take(np.roll(np.arange(N), 3)))
    pq.write_table(swapped, path)
    seal_again(path.parent, logs=own_logs.folder("logs"))
    command(audit, own_logs)
    facts = json.loads((own_logs.folder("audit") / "audit.json").read_text())
    assert facts["graded"] == N and facts["grades"]["very relevant"]["documents"] < N // 2


def test_grades_lie_beside_theta_as_table_and_picture(own_logs):
    words = ("very relevant", "very relevant", "relevant", "irrelevant", "none")
    with FakeEndpoint(lambda n: (200, completion(json.dumps({"grade": words[n % 5]})))) as endpoint, words_for_theta():
        e = replace(own_logs, simulated_llm=None, audit=AuditConfig(documents=10, endpoint=endpoint.config()))
        command(audit, e)
        assert len(endpoint.requests) == 10
        folder = e.folder("audit")
        first = (folder / "grades.parquet").read_bytes(), (folder / "audit.svg").read_bytes()
        endpoint.behave = lambda n: (200, completion(json.dumps({"grade": "none"})))
        command(audit, e)  # what was graded is not asked again
        assert len(endpoint.requests) == 12
        assert ((folder / "grades.parquet").read_bytes(), (folder / "audit.svg").read_bytes()) == first
    graded = pq.read_table(folder / "grades.parquet").to_pylist()
    assert sorted((row["grade"] or "-") for row in graded) == sorted(
        ["very relevant"] * 4 + ["relevant"] * 2 + ["irrelevant"] * 2 + ["-"] * 2
    )
    assert all(row["item_id"] < 0 and row["theta"] == 1.0 for row in graded if row["query"] in WORDS)
    facts = json.loads((folder / "audit.json").read_text())
    assert (facts["asked"], facts["graded"], facts["rejects"]) == (10, 8, {"unknown_grade": 2})
    assert "| very relevant | 4 | 50.0 |" in (folder / "audit.md").read_text()
    svg = (folder / "audit.svg").read_text()
    assert "8 generations graded by m" in svg and "alpha = 0.6" in svg and "paper" in svg


def test_without_documents_there_is_nothing_to_audit(own_logs):
    path = own_logs.folder("mined") / "knowledge.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    seal_again(path.parent, logs=own_logs.folder("logs"))
    with pytest.raises(InputError, match="mine with P3 first"), words_for_theta() as _:
        audit.run(own_logs, None)
