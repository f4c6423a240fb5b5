"""P3: the prompt, the strict reading of answers, the journal, the endpoint's faults, the simulated model."""

import json
import re
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import T0, WordOverlap, candidate, search, small_world, write

from crops_jax.artifacts import write_folder
from crops_jax.errors import InputError
from crops_jax.mining import simulated_llm
from crops_jax.mining.endpoint import EndpointConfig, ask_all, asked
from crops_jax.mining.journal import Answer, Journal
from crops_jax.mining.prompt import RESPONSE_FORMAT, Exemplar, Written, messages, read_answer
from crops_jax.mining.simulated_llm import SimulatedLLM, SimulatedLLMConfig
from crops_jax.mining.train_day import MiningConfig, mine
from crops_jax.mining.world_knowledge import KNOWLEDGE_SCHEMA, WorldKnowledgeConfig, knowledge_id

EXEMPLAR = Exemplar(1, "Transformer toys", "A box is opened.", "toys|robots", "transformer toy")
GOOD = {
    "ocr_cover": "How a transformer works",
    "photo_caption": "Two coils and a core, explained.",
    "click_query": "transformer | power transformer",
    "keywords": "physics|electricity|coil",
}


def read(answer, query="transformer"):
    content = answer if isinstance(answer, str) else json.dumps(answer)
    return read_answer(content, query, EXEMPLAR, max_field_chars=200)


def test_a_good_answer_becomes_a_document():
    written = Written("How a transformer works", "Two coils and a core, explained.", "physics|electricity|coil",
                      "transformer|power transformer")  # fmt: skip
    assert read(GOOD) == written
    assert read(f"```json\n{json.dumps(GOOD)}\n```") == written
    assert read(GOOD | {"keywords": r"physics\|electricity\|coil"}) == written  # the paper writes the separator \|
    assert knowledge_id(written) < 0
    assert knowledge_id(written) == knowledge_id(read(GOOD)) != knowledge_id(replace(written, keyword="physics"))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Sure! Here is a video.", "not_json"),
        (json.dumps(GOOD)[:-9], "not_json"),
        (json.dumps([GOOD]), "not_json"),
        ({k: v for k, v in GOOD.items() if k != "keywords"}, "missing_field"),
        (GOOD | {"keywords": ["physics", "coil"]}, "wrong_type"),
        (GOOD | {"ocr_cover": None}, "wrong_type"),
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


class FakeEndpoint:
    """An OpenAI-compatible endpoint whose answer to the n-th request a test decides."""

    def __init__(self, behave):
        self.requests, self.behave, lock = [], behave, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append((body, self.headers.get("Authorization")))
                status, message = outer.behave(number)
                reply = {"error": {"message": "no"}}
                if status == 200:
                    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
                    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
                    reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                             "choices": [choice], "usage": usage}  # fmt: skip
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def config_for(endpoint, **changes):
    return replace(EndpointConfig(base_url=endpoint.url, model="m", retries=0, concurrency=1), **changes)


def prompts(n, config):
    return [asked(messages(f"q{i}", EXEMPLAR, 1, 1, 100), config) for i in range(n)]


def ok(number):
    return 200, {"content": f"answer {number}"}


def test_requests_carry_the_schema_the_model_and_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with FakeEndpoint(ok) as endpoint, Journal(tmp_path / "j") as journal:
        config = config_for(endpoint, api_key_env="MY_KEY", temperature=0.25)
        (answer,) = ask_all(prompts(1, config), config, journal).values()
    ((body, authorization),) = endpoint.requests
    assert authorization == "Bearer secret"
    assert (body["model"], body["temperature"], body["response_format"]) == ("m", 0.25, RESPONSE_FORMAT)
    assert (answer.content, answer.prompt_tokens, answer.completion_tokens) == ("answer 0", 10, 3)
    assert "secret" not in (tmp_path / "j").read_text()


def test_a_second_run_asks_only_what_is_missing(tmp_path):
    with FakeEndpoint(lambda n: ok(n) if n < 3 else (401, None)) as endpoint:
        config = config_for(endpoint)
        wanted = prompts(8, config)
        with Journal(tmp_path / "j") as journal, pytest.raises(InputError, match="refuses model"):
            ask_all(wanted, config, journal)
        assert len((tmp_path / "j").read_text().splitlines()) == 3
        first, endpoint.behave = len(endpoint.requests), ok
        with Journal(tmp_path / "j") as journal:
            answers = ask_all(wanted, config, journal)
        assert len(endpoint.requests) - first == 5
        assert list(answers) == [p.key for p in wanted]
        assert [answers[p.key].content for p in wanted[:3]] == ["answer 0", "answer 1", "answer 2"]
        with Journal(tmp_path / "j") as journal:
            ask_all([*wanted, *wanted], config, journal)
        assert len(endpoint.requests) - first == 5


def test_a_line_cut_by_a_crash_is_dropped_and_asked_again(tmp_path):
    answer = Answer("k", "m", "text", None, "stop", 1, 1)
    with Journal(tmp_path / "j") as journal:
        journal.add(answer)
        journal.add(replace(answer, key="l"))
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[:-7])
    with Journal(tmp_path / "j") as journal:
        assert set(journal.answers) == {"k"}
        journal.add(replace(answer, key="l"))
    assert (tmp_path / "j").read_bytes() == whole
    (tmp_path / "j").write_bytes(b"{}\n" + whole)
    with pytest.raises(InputError, match="line 1: is not a journaled answer"):
        Journal(tmp_path / "j")


def test_endpoint_errors_are_retried_then_counted_then_fatal(tmp_path):
    flaky = FakeEndpoint(lambda n: (500, None) if n in (0, 2, 3) else ok(n))
    with flaky as endpoint, Journal(tmp_path / "j") as journal:
        config = config_for(endpoint, retries=1)
        wanted = prompts(3, config)
        # Requests: 0 fails, 1 answers the first prompt; 2 and 3 lose the second; 4 answers the third.
        assert list(ask_all(wanted, config, journal)) == [wanted[0].key, wanted[2].key]
    with FakeEndpoint(lambda n: (500, None)) as endpoint, Journal(tmp_path / "k") as journal:
        config = config_for(endpoint, give_up_after=3)
        with pytest.raises(InputError, match="3 requests in a row failed"):
            ask_all(prompts(9, config), config, journal)
        assert len(endpoint.requests) < 9


def test_a_missing_key_and_a_dead_endpoint_are_clear_errors(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    dead = EndpointConfig(base_url="http://127.0.0.1:9/v1", retries=0, give_up_after=1)
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(InputError, match="NO_KEY holds no key"):
            ask_all(prompts(1, dead), replace(dead, api_key_env="NO_KEY"), journal)
        with pytest.raises(InputError, match="failed, the last by APIConnectionError"):
            ask_all(prompts(1, dead), dead, journal)


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
    for name in ("candidates.parquet", "knowledge.parquet", "rejects.json"):
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
