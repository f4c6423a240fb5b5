"""The server in a process of its own: what it answers, what it refuses, and how it takes a bundle and stops."""

import asyncio
import json
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from bundles import CHINESE, MARKUP, TITLES, write_bundle
from server import serving
from shop import command, flip
from writers import write_writer

from crops_jax import serve
from crops_jax.artifacts.manifest import fingerprint
from crops_jax.errors import InputError
from crops_jax.models import sentence_encoder
from crops_jax.serving import bundle as serving_bundle
from crops_jax.serving.bundle import open_bundle
from crops_jax.serving.config import ServeConfig
from crops_jax.serving.engine import Shelf
from crops_jax.serving.explore import _seen


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return [write_bundle(folder / "a", "baseline", 0, index=True), write_bundle(folder / "b", "CroPS", 1)]


@pytest.fixture(scope="module")
def server(bundles, tmp_path_factory):
    with serving(*bundles, "--max_k", 30, log=tmp_path_factory.mktemp("log") / "stderr") as started:
        yield started


@pytest.fixture(scope="module")
def alone(bundles):
    """(vectors of a tower, the k best by a plain product) of a bundle, without the server."""
    towers = {
        (i, t): sentence_encoder.load(b / f"{t}_tower") for i, b in enumerate(bundles) for t in ("query", "document")
    }

    def encode(bundle, tower, texts):
        return towers[bundle, tower].encode(texts)

    def search(bundle, query, k):
        scores = np.load(bundles[bundle] / "vectors.npy") @ encode(bundle, "query", [query])[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return best.tolist(), scores[best].tolist()

    return encode, search


@pytest.mark.parametrize(("number", "title"), [(0, "baseline"), (1, "CroPS"), (1, None)])
def test_a_search_finds_what_the_product_of_the_vectors_says(server, alone, number, title):
    for query in ("transformer", CHINESE, MARKUP, "lamp 3 " * 200):
        named = {"bundle": title} if title else {}
        status, found = server.get("/search", q=query, k=7, **named)
        ids, scores = alone[1](number, query, 7)
        assert status == 200 and found["bundle"] == (title or "CroPS") and found["query"] == query
        assert [hit["id"] for hit in found["hits"]] == ids
        assert [hit["cosine"] for hit in found["hits"]] == pytest.approx(scores, abs=1e-5)
        assert [hit["ocr_cover"] for hit in found["hits"]] == [TITLES[i] for i in ids]
        assert server.post("/search", {"query": query, "k": 7, **named}) == (200, found)
    assert len(server.get("/search", q="coil", k=30)[1]["hits"]) == len(TITLES), "there are no more"


@pytest.mark.parametrize("tower", ["query", "document"])
def test_vectors_are_those_of_the_exported_towers(server, alone, tower):
    texts = ["transformer", CHINESE, "film\nmusic " * 40]
    status, found = server.post("/embed", {"texts": texts, "tower": tower, "bundle": "baseline"})
    assert status == 200
    np.testing.assert_allclose(found["vectors"], alone[0](0, tower, texts), atol=1e-5)


def test_queries_that_come_together_are_computed_together_and_stay_apart(server):
    queries = [f"lamp {i % 8}" for i in range(64)]
    wanted = {query: server.get("/search", q=query, k=3)[1] for query in set(queries)}
    before = server.metric("crops_batch_queries_count")
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda query: server.get("/search", q=query, k=3)[1], queries))
    assert server.metric("crops_batch_queries_count") - before < 64
    for query, got in zip(queries, found, strict=True):
        assert [hit["id"] for hit in got["hits"]] == [hit["id"] for hit in wanted[query]["hits"]]


def test_what_is_no_request_is_refused_in_one_line(server):
    assert server.get("/search", q="a")[0] == 200
    before = server.metric('crops_requests_total{route="/search",status="200"}')
    json_type = {"content-type": "application/json"}
    refused = [
        (400, "GET", "/search", None, "q"), (400, "GET", "/search?q=", None, "no text"),
        (400, "GET", "/search?q=%E3%80%80%20", None, "no text"), (400, "GET", "/search?q=a&k=0", None, "1 to 30"),
        (400, "GET", "/search?q=a&k=31", None, "1 to 30"), (400, "GET", "/search?q=a&k=ten", None, "k"),
        (400, "GET", f"/search?q={'a' * 2000}", None, "at most 1999"),
        (404, "GET", "/search?q=a&bundle=x", None, "CroPS"),
        (400, "GET", "/search?q=a&bundel=x", None, "bundel"), (400, "GET", "/explore?q=a&limit=3", None, "limit"),
        (400, "GET", "/suggest?q=a&n=3", None, "n"), (404, "GET", "/search/?q=a", None, "Not Found"),
        (400, "POST", "/search", b"{", "body, character 1: JSON"), (400, "POST", "/search", b'{"query": 3}', "query"),
        (400, "POST", "/search", b'{"query": "a", "limit": 3}', "limit"), (400, "POST", "/search", b'["a"]', ""),
        (400, "POST", "/search", rb'{"query": "a \ud83d"}', "surrogate"), (400, "POST", "/search", b"[" * 100_000, ""),
        (400, "POST", "/embed", b'{"texts": []}', "1 to 64"), (400, "POST", "/embed", b'{"texts": [""]}', r"texts[0]"),
        (400, "POST", "/embed", json.dumps({"texts": ["a"] * 65}).encode(), "1 to 64"),
        (400, "POST", "/embed", b'{"texts": ["a"], "tower": "middle"}', "tower"),
        (413, "POST", "/embed", b"a" * (2 << 20), "bytes"), (404, "GET", "/admin", None, ""),
        (405, "DELETE", "/search", None, ""), (400, "GET", "/explore?q=%20", None, "no text"),
    ]  # fmt: skip
    got, answer = server.raw("POST", "/search", b'{"query": "a"}', {"content-type": "text/plain"})
    assert got == 400 and "content-type" in json.loads(answer)["error"]
    for status, method, path, body, said in refused:
        got, answer = server.raw(method, path, body, json_type if body else {})
        line = json.loads(answer)["error"]
        assert got == status and said in line and "\n" not in line and len(line) < 300, (method, path[:60], got, answer)
    assert server.metric('crops_requests_total{route="/search",status="200"}') == before
    assert server.get("/healthz")[1]["status"] == "ok"


def test_the_explorer_says_what_moved_and_why(server):
    status, found = server.get("/explore", q="TRANSFORMER", k=20)
    baseline, ours = found["lists"]
    assert status == 200 and [baseline["title"], ours["title"]] == ["baseline", "CroPS"]
    assert (baseline["search"], ours["search"]) == ("scann", "exact")
    assert found["seen"] == {"searches": 3, "written": 1, "title": "Written <i>by</i> a model", "exemplar": TITLES[0]}
    places = [{row["id"]: row["rank"] for row in rows["results"]} for rows in (baseline, ours)]
    for own, other, rows in ((0, 1, baseline), (1, 0, ours)):
        for row in rows["results"]:
            assert row["elsewhere"] == places[other][row["id"]] and places[own][row["id"]] == row["rank"]
    of_baseline, of_ours = ({row["id"]: row for row in rows["results"]} for rows in (baseline, ours))
    assert of_ours["4"]["why"] == ["P2: watched in the feed by 2 users who asked this"] and of_ours["4"]["label"] == 4
    assert (of_ours["4"]["shown"], of_ours["4"]["grade"]) == (0, 2.0)
    assert of_baseline["4"]["why"] == [] and of_baseline["4"]["unused"] and of_baseline["4"]["label"] is None
    assert of_ours["0"]["shown"] == 2 and of_ours["2"]["why"] == []
    assert server.get("/explore", q="lamp of nobody")[1]["seen"] == {"searches": 0, "written": 0}
    offered = server.get("/examples")[1]["examples"]
    assert offered == [
        {"query": "lamp", "why": "CroPS finds more"},
        {"query": "transformer", "why": "CroPS finds more"},
    ]


def test_an_exemplar_that_is_not_encoded_is_not_shown(bundles):
    bundle = open_bundle(bundles[1], ServeConfig((str(bundles[1]),)))
    assert _seen(bundle, "transformer")["exemplar"] == TITLES[0]
    without = replace(bundle, ids=bundle.ids[1:])
    assert _seen(without, "transformer") == {"searches": 3, "written": 1, "title": "Written <i>by</i> a model"}


def test_a_bundle_that_is_written_over_in_place_answers_as_before_or_says_so(bundles, tmp_path):
    """`cp -r NEW/. SERVED/` leaves the files what they are for who has them open, but not their bytes."""
    place = shutil.copytree(bundles[1], tmp_path / "served")
    bundle = open_bundle(place, ServeConfig((str(place),), exact=True))
    queries = bundle.towers["query"].encode(["transformer"])
    before = bundle.index.search(queries, 3), bundle.shown(bundle.ids[:3])
    for file in (f for f in place.rglob("*") if f.is_file()):
        file.write_bytes(b"")
    after = bundle.index.search(queries, 3), bundle.shown(bundle.ids[:3])
    assert after[1] == before[1] and all(np.array_equal(a, b) for a, b in zip(after[0], before[0], strict=True))
    with pytest.raises(InputError, match=r"queries\.parquet: was written over while it is served; put the bundle"):
        bundle.evidence.query("transformer")


def test_what_cannot_be_served_is_told_before_anything_is_read(bundles):
    with pytest.raises(InputError, match="3 bundles; one or two are served"):
        command(serve, None, "a", "b", "c")
    with pytest.raises(InputError, match="max_k: 0 is not above zero"):
        command(serve, None, "a", "--max_k", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot be listened on"):
        command(serve, None, str(bundles[0]), "--port", str(taken.getsockname()[1]))
    with serve._listen(ServeConfig(("a",), port=0)) as free:  # else answers of two parts wait for the client's word
        assert free.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    with pytest.raises(InputError, match=r"no such folder; make it with `python -m crops_jax\.bundle"):
        open_bundle("nowhere", ServeConfig(("nowhere",)))


def test_bundles_of_one_title_are_told_apart(bundles):
    shelf = Shelf(ServeConfig(bundles=(str(bundles[1]), str(bundles[1]))))
    shelf.open()
    assert [engine.bundle.title for engine in shelf.engines] == ["CroPS (1)", "CroPS (2)"]


def test_a_damaged_bundle_is_not_served(bundles, tmp_path):
    for name in ("vectors.npy", "items.arrow", "query_tower/model.safetensors", "evidence/pairs.parquet"):
        spoilt = shutil.copytree(bundles[1], tmp_path / name.replace("/", "-"))
        flip(spoilt / name)
        with pytest.raises(InputError, match=f"{name}: its bytes have changed"):
            open_bundle(spoilt, ServeConfig((str(spoilt),)))
    with pytest.raises(InputError, match="holds 'export', but 'bundle' is needed"):
        open_bundle(bundles[1].parent / "export", ServeConfig(("x",)))


@pytest.mark.parametrize("comes", [True, False])
def test_a_bundle_that_is_replaced_while_it_is_read_is_not_served(bundles, tmp_path, monkeypatch, comes):
    """Its vectors would be those of one run, and its towers those of another."""
    place = shutil.copytree(bundles[0], tmp_path / "bundle")
    load = serving_bundle.load_towers

    def meanwhile(path, most):
        shutil.rmtree(place)
        if comes:
            shutil.copytree(bundles[1], place)
        return load(path, most)

    monkeypatch.setattr(serving_bundle, "load_towers", meanwhile)
    with pytest.raises(InputError, match="bundle: was replaced, or went away, while it was read"):
        open_bundle(place, ServeConfig((str(place),)))


@contextmanager
def asking(server):
    """The answers that four clients get, who ask all the time."""
    over, answers = threading.Event(), []

    def ask():
        while not over.is_set():
            answers.append(server.get("/search", q="transformer", k=3))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        yield answers
    finally:
        over.set()
        for client in clients:
            client.join()


def wait_for(server, said):
    for _ in range(600):
        if said():
            return
        time.sleep(0.05)
    raise AssertionError(server.log.read_text())


def test_a_new_bundle_is_taken_without_a_dropped_request_and_a_damaged_one_is_not(bundles, tmp_path):
    first, second = (shutil.copytree(b, tmp_path / f"{i}") for i, b in enumerate(bundles))
    shas = [fingerprint(first), fingerprint(second)]
    current = tmp_path / "current"
    current.symlink_to(first)

    def point_to(folder):
        (tmp_path / "next").symlink_to(folder)
        (tmp_path / "next").replace(current)
        server.process.send_signal(signal.SIGHUP)

    def served():
        return server.get("/healthz")[1]["bundles"][0]["sha256"]

    with serving(current, log=tmp_path / "log") as server:
        with asking(server) as answers:
            assert served() == shas[0]
            point_to(second)
            wait_for(server, lambda: served() == shas[1])
            flip(first / "vectors.npy")
            point_to(first)
            wait_for(server, lambda: "served further" in server.log.read_text())
            assert served() == shas[1] and server.metric('crops_reloads_total{result="refused"}') == 1
        assert len(answers) > 20 and {status for status, _ in answers} == {200}
        assert {found["bundle"] for _, found in answers} == {"baseline", "CroPS"}


@pytest.mark.parametrize(("error", "said"), [
    (InputError("bundle", "is damaged"), "error: bundle: is damaged\n"),
    (PermissionError("may not be read"), "PermissionError: may not be read\n"),
])  # fmt: skip
def test_whatever_keeps_a_new_bundle_from_being_taken_is_told(error, said, capsys):
    class Refusing:
        async def take_anew(self):
            raise error

    asyncio.run(serve._take_anew(Refusing()))
    assert capsys.readouterr().err.endswith(f"{said}what was read before is served further\n")


def test_a_server_that_is_told_to_stop_answers_what_it_has(bundles, tmp_path):
    body = b'{"query": "lamp"}'
    fields = f"host: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    head = f"POST /search HTTP/1.1\r\n{fields}\r\n\r\n"
    with serving(bundles[0], log=tmp_path / "log") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as late:
            late.sendall(head.encode() + body[:4])  # half of a request is there
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            late.sendall(body[4:])
            late.settimeout(20)
            answer = b""
            while part := late.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200") and server.process.wait(30) == 0, server.log.read_text()
        with pytest.raises(ConnectionRefusedError):
            server.get("/healthz")


@pytest.mark.slow
def test_a_writer_suggests_known_queries_for_whatever_is_typed(bundles, tmp_path):
    queries = ["lamp", CHINESE, MARKUP, "lava rock"]
    writer = write_writer(tmp_path / "writer", queries)
    with serving(bundles[0], "--writer", writer, log=tmp_path / "log") as started:
        for typed in ("", "la", CHINESE[:1], "x" * 1_999):
            status, found = started.get("/suggest", q=typed, k=3)
            assert status == 200 and found["prefix"] == typed
            assert len(found["suggestions"]) == 3 and {*found["suggestions"]} <= {*queries}
        assert started.get("/suggest", q="la", k=17) == (400, {"error": "k: 17; 1 to 16 is taken"})
        assert started.get("/suggest", q="x" * 2_000)[0] == 400 and started.get("/suggest")[0] == 400
        assert started.get("/examples")[1]["suggests"]


def test_without_a_writer_nothing_is_suggested(server):
    status, found = server.get("/suggest", q="la")
    assert status == 404 and "--writer" in found["error"]
    assert not server.get("/examples")[1]["suggests"]


@pytest.mark.slow
def test_a_damaged_writer_is_not_served(bundles, tmp_path):
    writer = write_writer(tmp_path / "writer", ["lamp", "lava"])
    flip(writer / "writer/model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        serve._writer(str(writer))
