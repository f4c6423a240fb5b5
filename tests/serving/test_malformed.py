"""Ten thousand requests that nobody would write: none of them a 500, and the server's memory stays where it was."""

import http.client
import json
import os
import re
import socket

import pytest
from bundles import write_bundle
from server import serving

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

pytestmark = pytest.mark.slow
REQUESTS = 10_000
SPARED_MB = 40  # Python's allocator keeps what the longest requests took

paths = st.sampled_from(["/search", "/embed", "/explore", "/examples", "/healthz", "/metrics", "/", "/../x", "//"])
queries = st.dictionaries(st.sampled_from(["q", "k", "bundle", "x"]), st.text(max_size=40), max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
bodies = st.one_of(
    st.binary(max_size=300),
    values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({}, optional={
        "query": values, "k": values, "texts": values, "tower": values, "bundle": values, "x": values,
    }).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip
kinds = st.sampled_from(["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/x", ""])
# Whole requests whose bytes obey nothing, or almost.
heads = st.sampled_from(
    [
        b"GET /search?q=%s HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST /search HTTP/1.1\r\nhost: a\r\n%s",
        b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n",
        b"%s",
        b"GET / HTTP/9.9\r\n%s\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n%s\r\n0\r\n\r\n",
    ]
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("malformed")
    with serving(write_bundle(folder / "b", "CroPS", 1), log=folder / "log") as started:
        yield started
        assert "Traceback" not in started.log.read_text()


def megabytes(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def well_formed(server, path, query, body, kind):
    """The status of a request that is HTTP, whatever else it is."""
    from urllib.parse import urlencode

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    text = f"{path}?{urlencode(query, errors='surrogatepass')}" if query else path
    connection.request("POST" if body is not None else "GET", text, body, {"content-type": kind} if kind else {})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def raw(server, data):
    """The statuses of what a socket is answered that sends these bytes and no more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := client.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answer)]


def test_ten_thousand_malformed_requests(server):
    counted = {"all": 0}
    statuses = set()

    def settings(examples):
        return hypothesis.settings(
            max_examples=examples, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
        )  # fmt: skip

    @settings(REQUESTS // 2)
    @hypothesis.given(paths, queries, st.none() | bodies, kinds)
    def parsed(path, query, body, kind):
        status, answer = well_formed(server, path, query, body, kind)
        counted["all"] += 1
        statuses.add(status)
        assert status < 500, (path, query, body, kind, answer)
        if status >= 400:
            assert "\n" not in json.loads(answer)["error"]

    @settings(REQUESTS // 2)
    @hypothesis.given(heads, st.binary(max_size=200))
    def bytes_alone(head, data):
        found = raw(server, head.replace(b"%s", data))
        counted["all"] += 1
        statuses.update(found)
        assert all(status < 500 for status in found), (head, data, found)

    for _ in range(200):  # what every server takes once: compiled shapes, buffers, Python's own pools
        server.get("/search", q="warm " * 99, k=9)
        raw(server, b"\x00" * 100)
    before = megabytes(server.process.pid)
    parsed()
    bytes_alone()
    grown = megabytes(server.process.pid) - before
    print(f"{counted['all']} requests, statuses {sorted(statuses)}, memory grew by {grown:.1f} MB")
    assert counted["all"] >= 0.9 * REQUESTS and {200, 400, 404} <= statuses
    assert grown < SPARED_MB and server.get("/healthz")[1]["status"] == "ok"
    assert server.get("/search", q="transformer", k=3)[0] == 200
