"""The endpoint: what it is asked, the bodies it may send, what the journal keeps, proxies, redirects, retries."""

import gzip
import hashlib
import json
from dataclasses import replace

import pytest
from asking import EXEMPLAR, ask, contents, ok, prompts
from fake_endpoint import FakeEndpoint, completion

from crops_jax.command_line import override
from crops_jax.config import Experiment, from_json, to_json
from crops_jax.errors import InputError
from crops_jax.mining import http_client
from crops_jax.mining.config import EndpointConfig
from crops_jax.mining.endpoint import ask_all, asked
from crops_jax.mining.journal import Answer, Journal
from crops_jax.mining.prompt import RESPONSE_FORMAT, messages
from crops_jax.mining.replies import Failure


def test_requests_carry_the_schema_the_model_and_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret\n")
    with FakeEndpoint(ok) as endpoint:
        config = endpoint.config(api_key_env="MY_KEY", temperature=0.25)
        (answer,) = ask(prompts(1, config), config, tmp_path / "j")
    ((body, headers, _),) = endpoint.requests
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "m", "messages": prompts(1, config)[0].messages, "temperature": 0.25, "max_tokens": 400,
        "response_format": RESPONSE_FORMAT,
    }  # fmt: skip
    assert (answer.content, answer.prompt_tokens, answer.completion_tokens) == ("answer 0", 10, 3)
    assert "secret" not in (tmp_path / "j").read_text()


@pytest.mark.parametrize("extra", [{"chat_template_kwargs": {"enable_thinking": False}, "type": 1}, '{"top_p": 0.9}'])
def test_requests_carry_what_the_config_adds(extra, tmp_path):
    with FakeEndpoint(ok) as endpoint:
        config = endpoint.config(
            extra_body=extra, length_field="max_completion_tokens", max_tokens=9, response_format="json_object"
        )
        ask(prompts(1, config), config, tmp_path / "j")
    (body,) = endpoint.bodies
    added = extra if isinstance(extra, dict) else json.loads(extra)
    assert body.items() >= ({"max_completion_tokens": 9, "response_format": {"type": "json_object"}} | added).items()
    assert "max_tokens" not in body
    experiment = Experiment()
    mining = replace(experiment.mining, world_knowledge=replace(experiment.mining.world_knowledge, endpoint=config))
    saved = replace(experiment, mining=mining)
    assert from_json(json.loads(json.dumps(to_json(saved)))) == saved


def test_further_fields_come_from_the_command_line():
    place = "--mining.world_knowledge.endpoint"
    flags = [f'{place}.extra_body={{"chat_template_kwargs": {{"enable_thinking": false}}}}',
             f"{place}.length_field=max_completion_tokens", f"{place}.response_format=none"]  # fmt: skip
    endpoint = override(Experiment(), flags, "mine").mining.world_knowledge.endpoint
    by_hand = {"chat_template_kwargs": {"enable_thinking": False}}
    assert endpoint == EndpointConfig(extra_body=by_hand, length_field="max_completion_tokens", response_format="none")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("enable_thinking=false", "is not JSON"),
        ('["top_p"]', "is not a JSON object"),
        ('{"a": "\\ud83d"}', "is not JSON"),
        ('{"max_tokens": 9, "stream": true}', r"'stream' cannot be set\n.*'max_tokens' is set by endpoint.max_tokens"),
    ],
)
def test_further_fields_that_cannot_be_sent_are_refused(extra, said):
    with pytest.raises(InputError, match=said):
        prompts(1, EndpointConfig(extra_body=extra))


def test_an_endpoint_that_knows_no_schema_is_asked_without_and_that_is_told_once(tmp_path, capsys):
    refusal = {"error": {"message": "response_format type 'json_schema' is unavailable"}}
    with FakeEndpoint(lambda n: (400, refusal) if n == 0 else ok(n)) as endpoint:
        config = endpoint.config()
        assert contents(ask(prompts(3, config), config, tmp_path / "j")) == ["answer 1", "answer 2", "answer 3"]
    assert ["response_format" in body for body in endpoint.bodies] == [True, False, False, False]
    told = capsys.readouterr().err
    assert told.count("asked without") == 1 and endpoint.url in told
    with FakeEndpoint(lambda n: (400, {"error": {"message": "too long"}}) if n == 0 else ok(n)) as endpoint:
        config = endpoint.config()
        assert contents(ask(prompts(2, config), config, tmp_path / "k")) == ["endpoint_error", "answer 1"]
    assert all("response_format" in body for body in endpoint.bodies)


GOOD_BODIES = {
    "parts": completion([{"type": "thinking", "thinking": []}, {"type": "text", "text": "te"}, {"text": "xt"}]),
    "no usage": completion("text", usage=None),
    "odd usage": completion("text", usage={"prompt_tokens": "10", "completion_tokens": None}),
    "no finish": completion("text", finish=None),
    "no error": completion("text") | {"error": None},
    "half a character elsewhere": completion("text") | {"id": "\ud83d"},
    "BOM": b"\xef\xbb\xbf" + json.dumps(completion("text")).encode(),
}


@pytest.mark.parametrize("body", GOOD_BODIES.values(), ids=GOOD_BODIES)
def test_an_answer_is_read_whatever_stands_around_it(body, tmp_path):
    with FakeEndpoint(lambda n: (200, body, {"Content-Type": "text/html"})) as endpoint:
        config = endpoint.config()
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == ["text"]
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == ["text"]
    assert len(endpoint.requests) == 1


WHOLE = json.dumps(completion("text")).encode()
BAD_BODIES = {
    "page": ((200, b"<!DOCTYPE html><p>Sign in", {"Content-Type": "text/html"}), "not_a_completion"),
    "cut": ((200, WHOLE[:-20]), "not_a_completion"),
    "empty": ((200, b""), "not_a_completion"),
    "null": ((200, None), "not_a_completion"),
    "list": ((200, [1]), "not_a_completion"),
    "deep": ((200, b"[" * 100_000), "not_a_completion"),
    "bytes": ((200, b'{"choices": "caf\xe9"}'), "not_a_completion"),
    "events": ((200, b"data: " + WHOLE), "not_a_completion"),
    "other JSON": ((200, {"status": "loading"}), "not_a_completion"),
    "closed": ((200, WHOLE, {"Content-Length": "9999"}), "endpoint_error"),
    "not gzip": ((200, WHOLE, {"Content-Encoding": "gzip"}), "endpoint_error"),
    "huge": ((200, gzip.compress(b" " * 2_000_000), {"Content-Encoding": "gzip"}), "endpoint_error"),
    "error": ((200, {"error": {"message": "out of \ud83d memory"}}), "error_body"),
    "error word": ((200, {"error": "busy", "choices": []}), "error_body"),
    "error choice": ((200, completion("te", finish="error")), "error_body"),
    "no choices": ((200, {"choices": []}), "no_answer"),
    "null choices": ((200, {"choices": None}), "no_answer"),
    "odd choice": ((200, {"choices": ["text"]}), "no_answer"),
    "odd message": ((200, {"choices": [{"message": "text"}]}), "no_answer"),
    "no content": ((200, completion(None)), "no_answer"),
    "odd content": ((200, completion({"ocr_cover": "x"})), "no_answer"),
    "blank": ((200, completion("\ufeff \n")), "no_answer"),
    "reasoning": ((200, completion(None, reasoning_content="Let me see")), "only_reasoning"),
    "cut reasoning": ((200, completion(None, finish="length", reasoning_content="Let me")), "cut_short"),
    "cut text": ((200, completion("text", finish="length")), "cut_short"),
    "filter": ((200, completion("", finish="content_filter")), "refused"),
    "server": ((503, b"<html>"), "endpoint_error"),
}


@pytest.mark.parametrize(("reply", "reason"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_what_is_no_answer_is_counted_and_asked_for_again(reply, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(http_client, "_MAX_BODY_BYTES", 1_000_000)
    with FakeEndpoint(lambda n: reply) as endpoint:
        config = endpoint.config()
        (failure,) = ask(prompts(1, config), config, tmp_path / "j")
        assert isinstance(failure, Failure) and failure.reason == reason and failure.detail
        assert (tmp_path / "j").read_bytes() == b""
        endpoint.behave = ok
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == ["answer 1"]


def test_a_page_instead_of_an_endpoint_ends_the_run_and_names_it(tmp_path):
    with FakeEndpoint(lambda n: (200, b"<html>\x1b[2J" + b"x" * 9999)) as endpoint:
        config = endpoint.config(give_up_after=3)
        with pytest.raises(
            InputError, match="3 requests in a row failed, the last by not_a_completion: <html>"
        ) as error:
            ask(prompts(9, config), config, tmp_path / "j")
    assert error.value.place == endpoint.url
    assert len(str(error.value)) < 700 and "\x1b" not in str(error.value)
    assert len(endpoint.requests) < 9


def test_a_second_run_asks_only_what_is_missing(tmp_path):
    with FakeEndpoint(lambda n: ok(n) if n < 3 else (401, {})) as endpoint:
        config = endpoint.config()
        wanted = prompts(8, config)
        with pytest.raises(InputError, match="refuses model"):
            ask(wanted, config, tmp_path / "j")
        assert len((tmp_path / "j").read_text().splitlines()) == 3
        first, endpoint.behave = len(endpoint.requests), ok
        assert contents(ask(wanted, config, tmp_path / "j"))[:3] == ["answer 0", "answer 1", "answer 2"]
        assert len(endpoint.requests) - first == 5
        with Journal(tmp_path / "j") as journal:
            assert list(ask_all([*wanted, *wanted], config, journal, lambda p, a: True)) == [p.key for p in wanted]
        assert len(endpoint.requests) - first == 5


def test_only_what_is_accepted_is_kept(tmp_path):
    with FakeEndpoint(ok) as endpoint:
        config = endpoint.config()
        answers = ask(prompts(4, config), config, tmp_path / "j", lambda prompt, answer: answer.content != "answer 2")
        assert contents(answers) == ["answer 0", "answer 1", "answer 2", "answer 3"]
        assert contents(ask(prompts(4, config), config, tmp_path / "j"))[2] == "answer 4"


def test_what_changes_the_answer_is_part_of_the_key():
    config = EndpointConfig()
    others = [
        replace(config, model="n"), replace(config, temperature=0.1), replace(config, max_tokens=500),
        replace(config, length_field="max_completion_tokens"), replace(config, response_format="none"),
        replace(config, extra_body={"top_p": 0.9}), replace(config, extra_body={"top_p": 0.8}),
    ]  # fmt: skip
    assert len({asked([], c).key for c in [config, *others]} | {asked([{"role": "user"}], config).key}) == 9
    same = replace(config, extra_body=' {"a": {"c": 2, "b": 1}} '), replace(config, extra_body='{"a":{"b":1,"c":2}}')
    assert asked([], same[0]).key == asked([], same[1]).key
    patient = replace(config, base_url="http://other/v1", retries=9, concurrency=1, timeout_s=1, give_up_after=1)
    assert asked([], patient).key == asked([], config).key


def old_line(content, **changes):
    """The line that 0.2.3 wrote for question q0 to model m."""
    chat = json.dumps(["m", messages("q0", EXEMPLAR, 1, 1, 100), 0.8], ensure_ascii=False, sort_keys=True)
    entry = {"key": hashlib.sha256(chat.encode()).hexdigest(), "model": "m", "content": content, "refusal": None,
             "finish_reason": "stop", "prompt_tokens": 10, "completion_tokens": 3}  # fmt: skip
    return json.dumps(entry | changes) + "\n"


@pytest.mark.parametrize(
    ("line", "first", "requests"),
    [
        (old_line("old"), "old", 0),
        (old_line([{"type": "text", "text": "old"}], prompt_tokens=None, completion_tokens="3"), "old", 0),
        (old_line(None, refusal="No."), None, 0),
        (old_line("o", finish_reason="length"), "answer 0", 1),
        (old_line(None, finish_reason=None), "answer 0", 1),
        (old_line({"ocr_cover": 1}, finish_reason=["stop"]), "answer 0", 1),
    ],
)
@pytest.mark.parametrize("max_tokens", [400, 800])
def test_a_journal_of_an_older_version_is_used_where_it_can_be(line, first, requests, max_tokens, tmp_path):
    (tmp_path / "j").write_text(line)
    with FakeEndpoint(ok) as endpoint:
        config = endpoint.config(max_tokens=max_tokens)
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == [first]
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == [first]
    assert len(endpoint.requests) == requests


def test_an_answer_under_another_limit_is_no_answer_to_this_request(tmp_path):
    with FakeEndpoint(ok) as endpoint:
        for max_tokens in (400, 800, 400):
            config = endpoint.config(max_tokens=max_tokens)
            ask(prompts(1, config), config, tmp_path / "j")
    assert len(endpoint.requests) == 2


def test_half_a_character_is_journaled_and_read_again(tmp_path):
    answer = Answer("k", "m", "caf\ud83d \u82f9", None, "stop", 1, 1, 400)
    with Journal(tmp_path / "j") as journal:
        journal.add(answer)
        journal.add(replace(answer, key="l", content="\u82f9"))
    assert "\u82f9" in (tmp_path / "j").read_text(encoding="utf-8").splitlines()[1]
    with Journal(tmp_path / "j") as journal:
        assert journal.answers["k"] == answer


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
    for bad in (b"{}\n", b"[]\n", old_line("x", key=[]).encode()):
        (tmp_path / "j").write_bytes(bad + whole)
        with pytest.raises(InputError, match="line 1: is not a journaled answer"):
            Journal(tmp_path / "j")


def test_endpoint_errors_are_retried_then_counted_then_fatal(tmp_path):
    with FakeEndpoint(lambda n: (500, {}) if n in (0, 2, 3) else ok(n)) as endpoint:
        config = endpoint.config(retries=1)
        # Requests: 0 fails, 1 answers the first prompt; 2 and 3 lose the second; 4 answers the third.
        outcomes = ask(prompts(3, config), config, tmp_path / "j")
        assert contents(outcomes) == ["answer 1", "endpoint_error", "answer 4"]
    with FakeEndpoint(lambda n: (500, {})) as endpoint:
        config = endpoint.config(give_up_after=3)
        with pytest.raises(InputError, match="3 requests in a row failed"):
            ask(prompts(9, config), config, tmp_path / "k")
        assert len(endpoint.requests) == 3


def test_a_busy_endpoint_is_given_the_time_it_asks_for_within_bounds(tmp_path):
    with FakeEndpoint(lambda n: ok(n) if n else (429, {}, {"Retry-After": "0.01"})) as endpoint:
        config = endpoint.config(retries=1)
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == ["answer 1"]
    with FakeEndpoint(lambda n: (429, {}, {"Retry-After": "86400"})) as endpoint:
        config = endpoint.config(retries=1)
        assert contents(ask(prompts(1, config), config, tmp_path / "k")) == ["endpoint_error"]
