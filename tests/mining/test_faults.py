"""An endpoint that fails in every way at once: every request is accounted for, nothing is paid twice, nothing hangs."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler

import openai._base_client
import pytest
from fake_endpoint import LocalServer, completion
from knowledge import EXEMPLAR, GOOD

from crops_jax.errors import InputError
from crops_jax.mining import http_client
from crops_jax.mining.budget import Ledger, spent_file
from crops_jax.mining.config import EndpointConfig
from crops_jax.mining.endpoint import ask_all, asked
from crops_jax.mining.journal import Journal
from crops_jax.mining.prompt import Written, messages, read_answer

QUESTIONS = 100
TIMEOUT_S = 3.0  # far above what a whole answer takes, on a busy machine too
WHOLE = json.dumps(completion(json.dumps(GOOD)))
WRONG = json.dumps(completion(json.dumps({"title": "x"})))
HUGE = 50 << 20


class Unreliable(LocalServer):
    """Of a hundred requests 20 get status 500, 10 no answer in time, 10 half a body, 5 other fields, 5 status 429.

    Request number 40 gets 50 MB, and, until it has happened once, number 60 is sent to another host.
    """

    def __init__(self):
        self.fates: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()  # whole answers that were sent, by question
        self.redirects, self.elsewhere = 1, 0
        self._number, self._lock = 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    outer.answer(
                        self, json.loads(body["messages"][1]["content"].split("\n")[0].removeprefix("Query: "))
                    )
                except (BrokenPipeError, ConnectionResetError):  # who asked has left
                    self.close_connection = True

            def log_message(self, *args):
                pass

        super().__init__(Handler)

    def fate(self) -> str:
        with self._lock:
            number, self._number = self._number, self._number + 1
            place = number * 37 % 100  # spread out
            if number == 40:
                found = "huge"
            elif number >= 60 and self.redirects:
                self.redirects, found = 0, "redirect"
            else:
                ends = {20: "500", 30: "timeout", 40: "cut", 45: "wrong", 50: "429", 100: "good"}
                found = next(kind for end, kind in ends.items() if place < end)
            self.fates[found] += 1
            return found

    def answer(self, request: BaseHTTPRequestHandler, query: str) -> None:
        match self.fate():
            case "500":
                self.send(request, 500, b"{}")
            case "429":
                self.send(request, 429, b"{}", {"Retry-After": "0.05"})
            case "timeout":
                time.sleep(TIMEOUT_S + 1)
                self.send(request, 200, WHOLE.encode())
            case "cut":
                self.send(request, 200, WHOLE[: len(WHOLE) // 2].encode())
            case "wrong":
                self.send(request, 200, WRONG.encode())
            case "huge":
                self.send(request, 200, b" " * HUGE)
            case "redirect":
                self.send(request, 307, b"", {"Location": "http://127.0.0.2:9/v1/chat/completions"})
            case "good":
                with self._lock:
                    self.paid[query] += 1
                self.send(request, 200, WHOLE.encode())

    @staticmethod
    def send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.05)


@pytest.mark.slow
def test_an_endpoint_that_fails_in_every_way(tmp_path, short_pauses, capsys):
    def accepts(prompt, answer):
        return isinstance(read_answer(answer.content, "", EXEMPLAR, 2000), Written)

    with Unreliable() as endpoint:
        config = EndpointConfig(base_url=endpoint.url, model="m", concurrency=16, timeout_s=TIMEOUT_S, retries=3)
        prompts = [asked(messages(f"q{i}", EXEMPLAR, 1, 1, 100), config) for i in range(QUESTIONS)]
        ledgers, kept, begun = [], [], time.monotonic()
        for run in range(6):
            ledgers.append(Ledger(0, 0, config.max_tokens))
            with Journal(tmp_path / "j.jsonl") as journal:
                try:
                    outcomes = ask_all(prompts, config, journal, accepts, ledgers[-1])
                except InputError as error:
                    assert run == 0 and "redirects to 'http://127.0.0.2:9" in str(error)
                kept.append(len(journal.answers))
            if kept[-1] == QUESTIONS:
                break
        assert time.monotonic() - begun < 100
        # The redirect ends the first run; what was answered until then is kept, and the second run goes on from there.
        assert 0 < kept[0] < QUESTIONS and kept == sorted(kept) and kept[-1] == QUESTIONS
        assert len(outcomes) == QUESTIONS and all(answer.content for answer in outcomes.values())
        # Nothing is paid twice: a question with a whole answer is never asked again.
        assert set(endpoint.paid.values()) == {1} and len(endpoint.paid) == QUESTIONS
        lines = (tmp_path / "j.jsonl").read_text().splitlines()
        assert len(lines) == QUESTIONS == len({json.loads(line)["key"] for line in lines})
        # Every request that reached the endpoint is in the account, as what it was.
        seen, fates = sum((ledger.requests for ledger in ledgers), Counter()), endpoint.fates
        seen["timeout"] += seen.pop("lost", 0)  # on a busy machine 32 MB may take too long
        assert seen == {
            "status 200": fates["good"] + fates["cut"] + fates["wrong"], "status 500": fates["500"],
            "status 429": fates["429"], "timeout": fates["timeout"] + fates["huge"], "redirect": 1,
        }  # fmt: skip
        assert min(fates.values()) >= 1 and set(fates) == {
            "500", "timeout", "cut", "wrong", "429", "good", "huge", "redirect"
        }  # fmt: skip
        lines = map(json.loads, spent_file(tmp_path / "j.jsonl").read_text().splitlines())
        spent = {line["run"]: line["requests"] for line in lines}
        assert list(spent.values()) == [dict(ledger.requests) for ledger in ledgers]


@pytest.mark.slow
def test_a_budget_holds_under_faults(tmp_path, short_pauses):
    with Unreliable() as endpoint:
        endpoint.redirects = 0
        config = EndpointConfig(base_url=endpoint.url, model="m", concurrency=16, timeout_s=TIMEOUT_S, retries=3)
        prompts = [asked(messages(f"q{i}", EXEMPLAR, 1, 1, 100), config) for i in range(QUESTIONS)]
        ledger = Ledger(30, 0, config.max_tokens)
        with Journal(tmp_path / "j.jsonl") as journal:
            outcomes = ask_all(prompts, config, journal, lambda prompt, answer: True, ledger)
        assert sum(endpoint.fates.values()) == sum(ledger.requests.values()) == 30
        left = sum(getattr(outcome, "reason", "") == "budget_spent" for outcome in outcomes.values())
        assert left >= QUESTIONS - 30


def test_the_body_limit_lies_below_what_the_test_sends():
    assert http_client._MAX_BODY_BYTES < HUGE
