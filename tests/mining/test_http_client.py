"""The connection to an endpoint: how long it may take, which proxies and hosts it goes to, where a key may be seen."""

import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest
from asking import ask, contents, ok, prompts
from fake_endpoint import FakeEndpoint, LocalServer, completion

from crops_jax.errors import InputError
from crops_jax.mining import http_client
from crops_jax.mining.config import EndpointConfig


def test_an_endpoint_that_sends_drop_by_drop_runs_out_of_time(tmp_path, monkeypatch):
    with FakeEndpoint(ok) as endpoint:
        config = endpoint.config(timeout_s=5.0)
        monkeypatch.setattr(http_client, "monotonic", iter([0.0, 6.0]).__next__)
        (failure,) = ask(prompts(1, config), config, tmp_path / "j")
    assert failure.detail.startswith("APITimeoutError")


def test_headers_that_come_drop_by_drop_run_out_of_time(tmp_path):
    class Drip(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            with suppress(OSError):
                for line in [b"HTTP/1.1 200 OK\r\n", *[b"X-More: 1\r\n"] * 100]:  # each read is a short one
                    self.wfile.write(line)
                    time.sleep(0.1)

        def log_message(self, *args):
            pass

    with LocalServer(Drip) as server:
        config = EndpointConfig(base_url=server.url, model="m", retries=0, timeout_s=0.5)
        (failure,) = ask(prompts(1, config), config, tmp_path / "j")
    assert "Timeout" in failure.detail


def test_an_answer_that_takes_too_long_is_asked_for_again(tmp_path):
    def first_is_slow(number):
        time.sleep(0 if number else 2.0)
        return ok(number)

    with FakeEndpoint(first_is_slow) as endpoint:
        config = endpoint.config(retries=1, timeout_s=1.0)
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == ["answer 1"]
        assert len(endpoint.requests) == 2


def test_a_key_that_an_endpoint_sends_back_is_shown_and_kept_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("A_KEY", "sk-0123456789")
    answers = {
        0: (500, {"error": {"message": "bad header Authorization: Bearer sk-0123456789"}}),
        1: (200, b"<html>Bearer sk-0123456789</html>"),
        2: (200, completion("my key is sk-0123456789")),
    }
    with FakeEndpoint(answers.get) as endpoint:
        config = endpoint.config(retries=0, concurrency=1, api_key_env="A_KEY")
        found = ask(prompts(3, config), config, tmp_path / "j")
        assert endpoint.requests[0][1]["Authorization"] == "Bearer sk-0123456789"
    assert "Bearer ***" in found[0].detail and "Bearer ***" in found[1].detail and found[2].content == "my key is ***"
    assert "sk-01" not in capsys.readouterr().err + "".join(p.read_text() for p in tmp_path.iterdir())


def test_a_missing_key_and_a_dead_endpoint_are_clear_errors(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    monkeypatch.setenv("ODD_KEY", "clé")
    dead = EndpointConfig(base_url="http://127.0.0.1:9/v1", retries=0, give_up_after=1)
    for name, said in {"NO_KEY": "NO_KEY holds no key", "ODD_KEY": "ODD_KEY holds characters that no key has"}.items():
        with pytest.raises(InputError, match=said):
            ask(prompts(1, dead), replace(dead, api_key_env=name), tmp_path / "j")
    with pytest.raises(InputError, match=r"failed, the last by APIConnectionError.*refused"):
        ask(prompts(1, dead), dead, tmp_path / "j")


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def proxies(monkeypatch):
    """Sets the proxies of the environment, and no others."""

    def set_them(**values):
        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_them


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5h://127.0.0.1:9", "odd://127.0.0.1:9"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_asked_past_every_proxy(proxy, host, proxies, tmp_path):
    proxies(HTTP_PROXY=proxy, HTTPS_PROXY=proxy, ALL_PROXY=proxy)
    with FakeEndpoint(ok) as endpoint:
        config = endpoint.config(base_url=endpoint.url.replace("127.0.0.1", host))
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == ["answer 0"]


@pytest.mark.parametrize(
    ("host", "here"),
    [("LOCALHOST.", True), ("llm.localhost", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True),
     ("0.0.0.0", True), ("127.0.0.1.example", False), ("128.0.0.1", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_which_hosts_are_this_machine(host, here):
    assert http_client.is_this_machine(host) == here


def test_other_hosts_are_asked_through_the_proxy_unless_it_is_not_for_them(proxies, tmp_path):
    with FakeEndpoint(ok) as proxy:
        proxies(HTTP_PROXY=f"http://127.0.0.1:{proxy.port}")
        config = proxy.config(base_url="http://llm.invalid/v1")
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == ["answer 0"]
        assert [target for _, _, target in proxy.requests] == ["http://llm.invalid/v1/chat/completions"]
        proxies(HTTP_PROXY=f"http://127.0.0.1:{proxy.port}", NO_PROXY="llm.invalid")
        assert contents(ask(prompts(1, config), config, tmp_path / "k")) == ["endpoint_error"]
        assert len(proxy.requests) == 1
    proxies(ALL_PROXY="odd://127.0.0.1:9")
    with pytest.raises(InputError, match=r"http://llm.invalid/v1: no client can be built .* ALL_PROXY"):
        ask(prompts(1, config), config, tmp_path / "k")


def test_prompts_and_key_go_to_no_other_host(tmp_path):
    with FakeEndpoint(ok) as other, FakeEndpoint(ok) as endpoint:
        elsewhere = f"{other.url}/chat/completions?token=t"
        for status, location in ((307, elsewhere), (302, "/login"), (308, "http://[bad")):
            endpoint.behave = lambda n, s=status, to=location: (s, {}, {"Location": to})
            config = endpoint.config()
            with pytest.raises(InputError, match=rf"{endpoint.url}.* redirects to .*status {status}") as error:
                ask(prompts(1, config), config, tmp_path / "j")
            assert "token" not in str(error.value)
        assert not other.requests
        endpoint.requests.clear()
        endpoint.behave = lambda n: ok(n) if n else (307, {}, {"Location": "/v1/chat/completions/"})
        assert contents(ask(prompts(1, config), config, tmp_path / "j")) == ["answer 1"]
