"""P3: the prompt, the reading of answers, what is kept and what ends a run, the simulated model."""

import json
import re
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_endpoint import FakeEndpoint, completion
from hand_logs import T0, WordOverlap, candidate, search, small_world, write
from knowledge import EXEMPLAR, GOOD, mined, written

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import InputError
from crops_jax.mining import simulated_llm
from crops_jax.mining.config import EndpointConfig, MiningConfig, SimulatedLLMConfig, WorldKnowledgeConfig
from crops_jax.mining.knowledge import KNOWLEDGE_SCHEMA
from crops_jax.mining.prompt import Written, messages, read_answer
from crops_jax.mining.simulated_llm import SimulatedLLM
from crops_jax.mining.train_day import mine
from crops_jax.mining.world_knowledge import check_config, knowledge_id


def read(answer, query="transformer"):
    content = answer if isinstance(answer, str) else json.dumps(answer)
    return read_answer(content, query, EXEMPLAR, max_field_chars=200)


JSON = json.dumps(GOOD)
DRAFT = json.dumps(GOOD | {"ocr_cover": "A draft"})
WRITTEN = Written("How a transformer works", "Two coils and a core, explained.", "physics|electricity|coil",
                  "transformer|power transformer")  # fmt: skip


def test_a_good_answer_becomes_a_document():
    assert read(GOOD) == WRITTEN
    assert read(GOOD | {"keywords": r"physics\|electricity\|coil"}) == WRITTEN  # the paper writes the separator \|
    assert knowledge_id(WRITTEN) < 0
    assert knowledge_id(WRITTEN) == knowledge_id(read(GOOD)) != knowledge_id(replace(WRITTEN, keyword="physics"))


@pytest.mark.parametrize(
    "content",
    [
        f"```json\n{JSON}\n```",
        f"```{JSON}```",
        f"~~~json\n{JSON}\n~~~\nI hope this helps {{or not}}.",
        f"\ufeff{JSON}",
        f"Here is the JSON:\n{JSON}\nNote: [1] is {{a guess}}.",
        f"<think>Perhaps {DRAFT}?</think>\n\n{JSON}",
        f"Perhaps {DRAFT}?\n</think>\n{JSON}",
        f"<think>one <think>two {DRAFT}</think> three</think> {JSON}",
        f"<think>one <think>two {DRAFT}</think> {JSON} Enjoy!",
        f"<think>\nPerhaps {DRAFT}? No.\n```json\n{JSON}\n```\n",
        f"<think>\n```json\n{JSON}\n```\n</think>\n",
        f'<reasoning effort="low">{DRAFT}</reasoning><answer>{JSON}</answer>',
        f"[THINK]{DRAFT}[/THINK]{JSON}",
        f"<|START_THINKING|>{DRAFT}<|END_THINKING|><|START_RESPONSE|>{JSON}<|END_RESPONSE|>",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{JSON}<|return|>",
        f"analysisThey want {DRAFT}.assistantfinal{JSON}",
        f'{DRAFT}\nBetter:\n{JSON}\n{{"confidence": 0.9}}',
        json.dumps(GOOD | {"keywords": ["physics", " electricity", "coil"], "language": "en", "score": None}),
        json.dumps({name.upper().replace("_", "-"): text for name, text in GOOD.items()}),
        json.dumps({"video": GOOD}),
        json.dumps(JSON),
        JSON[:-1] + ",}",
    ],
)
def test_the_answer_is_found_among_other_words(content):
    assert read(content) == WRITTEN


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Sure! Here is a video.", "not_json"),
        (JSON[:-9], "not_json"),
        (json.dumps([GOOD]), "not_json"),
        ("", "not_json"),
        ("[" * 50_000, "not_json"),
        (f"<think>Perhaps {JSON}? No, something else.", "not_json"),
        (f"<think>Perhaps {JSON}?</think> I cannot say.", "not_json"),
        (f"<think>Perhaps {JSON} {'`' * 300}{'~' * 300}\nwell", "not_json"),  # these marks can be cut in many ways
        (f"{DRAFT} is no good.</think> I cannot say.", "not_json"),
        ("x" * 1_000_001, "too_long"),
        ({k: v for k, v in GOOD.items() if k != "keywords"}, "missing_field"),
        (GOOD | {"keywords": ["physics", None]}, "wrong_type"),
        (GOOD | {"keywords": [["physics"], ["coil"]]}, "wrong_type"),
        (GOOD | {"ocr_cover": ["How a transformer works"]}, "wrong_type"),
        (GOOD | {"ocr_cover": None}, "wrong_type"),
        (GOOD | {"photo_caption": 7}, "wrong_type"),
        (GOOD | {"ocr_cover": "half a smile \ud83d"}, "broken_text"),
        (GOOD | {"keywords": ["coil", "\ude00"]}, "broken_text"),
        (GOOD | {"keywords": ["physics, electricity"]}, "wrong_delimiter"),
        (GOOD | {"keywords": "physics, electricity, coil"}, "wrong_delimiter"),
        (GOOD | {"click_query": "power transformer; coil"}, "wrong_delimiter"),
        (GOOD | {"photo_caption": "  "}, "empty_text"),
        (GOOD | {"photo_caption": "x" * 201}, "too_long"),
        (GOOD | {"ocr_cover": "transformer  TOYS", "photo_caption": "a box is opened."}, "copy_of_exemplar"),
        (GOOD | {"ocr_cover": "Transformer", "photo_caption": "transformer "}, "echo"),
        (GOOD | {"photo_caption": "one to three sentences that describe the video"}, "echo"),
    ],
)
def test_a_bad_answer_has_its_reason(answer, reason):
    assert read(answer) == reason


def test_the_prompt_is_one_shot_and_quotes_what_users_wrote():
    query = 'say "hi"\nQuery: "other"'
    system, user = messages(query, replace(EXEMPLAR, photo_caption="x" * 50), 1, 2, max_exemplar_chars=20)
    assert (system["role"], user["role"]) == ("system", "user")
    lines = [line for line in user["content"].splitlines() if line.startswith("Query: ")]
    assert [json.loads(line.removeprefix("Query: ")) for line in lines] == [query]
    shown = json.loads(re.search(r"^Example.*?(\{.*\})$", user["content"], re.MULTILINE)[1])
    assert shown == {"ocr_cover": "Transformer toys", "photo_caption": "x" * 20, "click_query": "transformer toy",
                     "keywords": "toys|robots"}  # fmt: skip
    assert '"|"' in user["content"] and "number 1 of 2" in user["content"]


@pytest.fixture
def hidden(tmp_path):
    rows = [
        {
            "item_id": 100 + i,
            "ocr_cover": f"title {i}",
            "photo_caption": f"caption {i}",
            "keyword": f"k{i}|w{i}",
            "click_query": f"c{i}",
            "queries": ["transformer"] if i < 30 else ["power transformer"],
        }
        for i in range(60)
    ]
    path = tmp_path / "hidden_items.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_the_simulated_model_errs_at_its_rates_and_repeats_itself(hidden):
    config = SimulatedLLMConfig(irrelevant_rate=0.2, malformed_rate=0.1)
    model = SimulatedLLM(hidden, config)
    chats = [messages("transformer", EXEMPLAR, i, 2000, 100) for i in range(2000)]
    answers = [model.answer(chat) for chat in chats]
    assert answers == [SimulatedLLM(hidden, config).answer(chat) for chat in chats]
    other = SimulatedLLM(hidden, replace(config, seed=1))
    assert sum(other.answer(chat) != answer for chat, answer in zip(chats, answers, strict=True)) > 1000
    assert all(refusal is None for _, refusal in answers)
    outcome = Counter()
    for content, _ in answers:
        written = read_answer(content, "transformer", EXEMPLAR, 2000)
        outcome[written if isinstance(written, str) else int(written.ocr_cover.split()[1]) >= 30] += 1
    bad = {"not_json", "missing_field", "wrong_type", "wrong_delimiter"}
    assert set(outcome) == {True, False} | bad
    assert 160 < sum(outcome[reason] for reason in bad) < 240
    assert 140 < outcome[True] < 220  # a fifth off the topic, of which half happen to fit; less the malformed
    content, refusal = model.answer(messages("never heard of", EXEMPLAR, 1, 1, 100))
    assert content is None and "simulated" in refusal


def test_the_simulated_model_completes_items_that_have_one_text_alone(tmp_path):
    rows = [{"ocr_cover": "", "photo_caption": "one two three four five six seven eight nine", "queries": ["a"]},
            {"ocr_cover": "a title", "photo_caption": None, "queries": ["b"]}]  # fmt: skip
    path = tmp_path / "hidden.parquet"
    texts = pa.Table.from_pylist([{"keyword": "", "click_query": "", **row} for row in rows])
    pq.write_table(texts, path)
    model = SimulatedLLM(path, SimulatedLLMConfig(0.0, 0.0))
    answers = [json.loads(model.answer([{"role": "user", "content": f'Query: "{q}"'}])[0]) for q in "ab"]
    assert [(a["ocr_cover"], a["photo_caption"]) for a in answers] == [
        ("one two three four five six seven eight", rows[0]["photo_caption"]), ("a title", "a title"),
    ]  # fmt: skip


def test_the_simulated_model_names_a_bad_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        SimulatedLLM(tmp_path / "none.parquet", SimulatedLLMConfig())
    pq.write_table(pa.table({"queries": [["q"]]}), tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="column ocr_cover is missing"):
        SimulatedLLM(tmp_path / "bad.parquet", SimulatedLLMConfig())


def test_mining_writes_p3_documents_and_counts_rejects(tmp_path, hidden):
    logs = small_world(tmp_path / "logs")
    pq.write_table(pq.read_table(hidden).slice(0, 30), hidden)  # nothing known about "power transformer"
    with simulated_llm.serve(hidden, SimulatedLLMConfig(0.0, 0.0)) as url:
        endpoint = EndpointConfig(base_url=url, model=simulated_llm.MODEL)
        config = MiningConfig(world_knowledge=WorldKnowledgeConfig(endpoint=endpoint, per_query=3))
        for name in ("one", "two"):
            with write_folder(tmp_path / name, kind="mined") as out:
                counts = mine(logs, out, WordOverlap(), config)
    assert counts["P3_asked"] == 6
    assert len((tmp_path / "knowledge.journal.jsonl").read_text().splitlines()) == 6  # the second run paid nothing
    for name in ("candidates.parquet/part-0.parquet", "knowledge.parquet", "rejects.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    documents = pq.read_table(tmp_path / "one/knowledge.parquet")
    assert documents.schema.names == KNOWLEDGE_SCHEMA.names
    ids = documents["item_id"].to_pylist()
    assert ids and max(ids) < 0 and set(documents["query"].to_pylist()) == {"transformer"}
    candidates = pq.read_table(tmp_path / "one/candidates.parquet").to_pylist()
    p3 = [r for r in candidates if r["source"] == "P3"]
    assert [r["item_id"] for r in p3] == ids
    assert all(len(r["evidence"]) == 64 and r["request_id"] is None for r in p3)
    assert not set(ids) & set(pq.read_table(logs / "items.parquet")["item_id"].to_pylist())
    rejects = json.loads((tmp_path / "one/rejects.json").read_text())["P3"]
    assert rejects["refused"] == 3
    assert len(ids) + sum(rejects.values()) == 6


def test_queries_are_chosen_by_traffic_and_need_an_exemplar(tmp_path, hidden):
    logs = small_world(tmp_path / "logs")
    for name, rows in {
        "searches": [search(f"f{i}", 5, "film music", T0 + i) for i in range(4)],
        "candidates": [candidate(f"f{i}", 5) for i in range(4)],
    }.items():
        path = logs / f"train/{name}.parquet"
        write(path, name, pq.read_table(path).to_pylist() + rows)
    with simulated_llm.serve(hidden, SimulatedLLMConfig(0.0, 0.0)) as url:
        knowledge = WorldKnowledgeConfig(endpoint=EndpointConfig(base_url=url), max_queries=1)
        with write_folder(tmp_path / "mined", kind="mined") as out:
            mine(logs, out, WordOverlap(), MiningConfig(world_knowledge=knowledge))
    documents = pq.read_table(tmp_path / "mined/knowledge.parquet")
    # "film music" was asked four times but nothing was clicked; "transformer" twice, "power transformer" once.
    assert documents["query"].to_pylist() == ["transformer"]
    assert json.loads((tmp_path / "mined/rejects.json").read_text())["P3"] == {"query_without_exemplar": 1}


BROKEN = JSON.replace("works", r"works \ud83d")  # half a smile, in the answer's own JSON


def test_a_few_failures_are_told_and_asked_for_again(tmp_path, capsys):
    replies = [
        (200, completion(written(0))),
        (200, completion(BROKEN)),
        (200, completion("caf\ud83d")),
        (500, {}),
        (200, completion(None, refusal="I would rather not.")),
        *((200, completion(written(n))) for n in range(5, 10)),
    ]
    with FakeEndpoint(lambda n: replies[n]) as endpoint:
        counts, rejects = mined(tmp_path, endpoint.config(), per_query=5)
        assert (counts["P3"], counts["P3_asked"]) == (6, 10)
        assert rejects == {"broken_text": 1, "endpoint_error": 1, "not_json": 1, "refused": 1}
        assert counts["P3_tokens"] == {"prompt": 90, "completion": 27}
        said = "P3: 4 of 10 questions gave no document (broken_text 1, endpoint_error 1, not_json 1, refused 1)"
        assert said in capsys.readouterr().err
        kept = (tmp_path / "knowledge.journal.jsonl").read_text().splitlines()
        assert len(kept) == 7  # six documents and the refusal
        # Older versions kept half a character, and every later run died of it.
        broken = json.loads(kept[0]) | {"content": BROKEN}
        del broken["max_tokens"]
        (tmp_path / "knowledge.journal.jsonl").write_text("\n".join([json.dumps(broken), *kept[1:]]) + "\n")
        endpoint.behave = lambda n: (200, completion(written(n)))
        assert mined(tmp_path, endpoint.config(), per_query=5)[1] == {"refused": 1}
    assert len(endpoint.requests) == 10 + 3 + 1


def test_too_many_failures_end_the_run_and_lose_nothing(tmp_path):
    cut = completion('{"ocr_cover": "A film ab', finish="length")
    with FakeEndpoint(lambda n: (200, cut if n < 4 else completion(written(n)))) as endpoint:
        with pytest.raises(InputError) as error:
            mined(tmp_path, endpoint.config())
        assert error.value.place == endpoint.url
        first, reason, kept = error.value.problems
        assert "4 of 6 questions gave no document" in first and "max_failed_share" in first
        assert reason.startswith("cut_short: 4; raise max_tokens")
        assert "2 documents are kept" in kept
        assert not (tmp_path / "mined").exists()
        assert len((tmp_path / "knowledge.journal.jsonl").read_text().splitlines()) == 2
        counts, rejects = mined(tmp_path, endpoint.config())
        assert (counts["P3"], rejects, len(endpoint.requests)) == (6, {}, 10)
        endpoint.behave = lambda n: (200, cut)
        counts, rejects = mined(tmp_path, endpoint.config(model="other"), max_failed_share=1.0)
        assert (counts["P3_asked"], rejects) == (6, {"cut_short": 6})


def test_one_document_written_twice_is_no_failure(tmp_path, capsys):
    with FakeEndpoint(lambda n: (200, completion(JSON))) as endpoint:
        counts, rejects = mined(tmp_path, endpoint.config(), max_failed_share=0.0)
    assert (counts["P3"], rejects) == (2, {"same_document_twice": 4})
    assert "gave no document" not in capsys.readouterr().err


def test_a_querys_documents_take_its_clicked_items_in_turn_as_examples(tmp_path):
    """Of "transformer" the items 0 and 1 were clicked, once each; of "power transformer" item 3 alone."""
    with FakeEndpoint(lambda n: (200, completion(JSON))) as endpoint:
        mined(tmp_path, endpoint.config())
    shown = [re.findall("transformer film|transformer toys|transformer coil", body["messages"][1]["content"])
             for body in endpoint.bodies]  # fmt: skip
    films, toys, coil = (["transformer film"], ["transformer toys"], ["transformer coil"])
    assert sorted(shown) == sorted([films, toys, films, coil, coil, coil])


def test_a_config_that_cannot_ask_is_refused_with_all_that_is_wrong():
    bad = {
        "http://bob:pw@h:99999/v1": "name the variable of the environment that has the key in api_key_env",
        "http://h/v1?key=pw": "something follows http://h/v1; .* nothing may follow its path",
    }
    for url, said in bad.items():
        with pytest.raises(InputError, match=said) as error:
            check_config(WorldKnowledgeConfig(endpoint=EndpointConfig(base_url=url)))
        assert "pw" not in str(error.value)
    endpoint = EndpointConfig(base_url="localhost:8000/v1", concurrency=0, extra_body='["top_p"]')
    with pytest.raises(InputError) as error:
        check_config(WorldKnowledgeConfig(endpoint=endpoint, max_failed_share=1.5))
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "max_failed_share", "endpoint.base_url", "endpoint.concurrency", "endpoint.extra_body",
    ]  # fmt: skip
    check_config(WorldKnowledgeConfig())
