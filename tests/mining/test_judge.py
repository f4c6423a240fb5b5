"""The judge of what a language model wrote: what it is shown, which answers are grades, what is kept and refused."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from fake_endpoint import FakeEndpoint, completion

from crops_jax import audit
from crops_jax.errors import InputError
from crops_jax.mining.config import AuditConfig
from crops_jax.mining.judge import SCHEMA, Judged, check_audit, judge, read_grade

DOCUMENTS = [
    {"query": f"q{n}", "ocr_cover": f"title {n}", "photo_caption": "caption", "keyword": "k", "click_query": None}
    for n in range(4)
]  # fmt: skip


def grade(word):
    return 200, completion(json.dumps({"grade": word}))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"grade": "very relevant"}', ("very relevant", "")),
        ('<think>{"grade": "relevant"}?</think> ```json\n{"Grade": "IRRELEVANT"}\n```', ("irrelevant", "")),
        ("very relevant", (None, "not_json")),
        ('{"score": 3}', (None, "missing_field")),
        ('{"grade": 3}', (None, "wrong_type")),
        ('{"grade": "not relevant"}', (None, "unknown_grade")),
    ],
)
def test_what_is_a_grade(content, found):
    assert read_grade(content) == found


def test_it_sees_query_and_document_and_is_paid_once(tmp_path):
    words = ["very relevant", "relevant", "good", "irrelevant"]
    with FakeEndpoint(lambda n: grade(words[n % 4])) as endpoint:
        config = AuditConfig(endpoint=endpoint.config(temperature=0.0))
        judged = judge(DOCUMENTS, config, tmp_path / "j")
        assert judged == Judged(["very relevant", "relevant", None, "irrelevant"], {"unknown_grade": 1},
                                {"prompt": 40, "completion": 12})  # fmt: skip
        body = endpoint.bodies[0]
        assert body["response_format"] == SCHEMA and body["temperature"] == 0.0
        user = body["messages"][1]["content"]
        assert 'Query: "q0"\n' in user and '"very relevant": it accurately' in user
        shown = json.loads(next(line for line in user.splitlines() if line.startswith("Document: "))[10:])
        assert shown == {"ocr_cover": "title 0", "photo_caption": "caption", "keywords": "k", "click_query": ""}
        endpoint.behave = lambda n: grade("relevant")
        assert judge(DOCUMENTS, config, tmp_path / "j").grades[2] == "relevant"
        assert len(endpoint.requests) == 5


def test_too_few_grades_and_bad_settings_are_clear_errors(tmp_path):
    with FakeEndpoint(lambda n: (200, completion("no"))) as endpoint:
        config = AuditConfig(endpoint=endpoint.config())
        with pytest.raises(InputError, match="4 of 4 documents got no grade") as error:
            judge(DOCUMENTS, config, tmp_path / "j")
        assert error.value.problems[1].startswith("not_json: 4; look at max_tokens")
        some = judge(DOCUMENTS, replace(config, max_failed_share=1.0, max_requests=1), tmp_path / "j")
        assert some.rejects == {"not_json": 1, "budget_spent": 3}
        with pytest.raises(InputError, match="no document got a grade"):
            audit.summary(some, np.zeros(4), "m", 0.6)
    with pytest.raises(InputError) as error:
        check_audit(AuditConfig(documents=0, prompt="none", max_failed_share=2))
    assert [said.split(":")[0] for said in error.value.problems] == ["documents", "max_failed_share", "prompt"]


def test_the_figures_are_shares_of_the_graded_with_wilsons_intervals():
    judged = Judged([*["very relevant"] * 8, "relevant", "irrelevant", None], {"not_json": 1}, {})
    theta = np.array([0.9] * 4 + [0.5] * 4 + [0.7, 0.1, 0.9])
    found = audit.summary(judged, theta, "m", 0.6)
    assert (found["asked"], found["graded"]) == (11, 10)
    very = found["grades"]["very relevant"]
    assert (very["documents"], very["share"], very["above_alpha"], very["theta_median"]) == (8, 0.8, 0.5, 0.7)
    assert very["interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # by hand: z = 1.96, n = 10
    assert found["grades"]["irrelevant"]["theta_median"] == 0.1


def test_the_sample_is_seeded_and_does_not_depend_on_order():
    rows = pa.table({"query": [f"q{n}" for n in range(50)], "item_id": list(range(-50, 0))})
    drawn = {d["query"] for d in audit.draw(rows, AuditConfig(documents=10))}
    assert len(drawn) == 10
    assert drawn == {d["query"] for d in audit.draw(rows.take(list(range(49, -1, -1))), AuditConfig(documents=10))}
    assert drawn != {d["query"] for d in audit.draw(rows, AuditConfig(documents=10, seed=1))}
    assert len(audit.draw(rows, AuditConfig())) == 50 and audit.draw(rows.slice(0, 0), AuditConfig()) == []
