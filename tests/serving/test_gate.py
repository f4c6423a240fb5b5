"""How many requests are taken, how large, and what is counted of them."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.serving import engine, gate
from crops_jax.serving.app import make_app
from crops_jax.serving.config import ServeConfig
from crops_jax.serving.engine import Found, Shelf
from crops_jax.serving.evidence import WrittenOver
from crops_jax.serving.gate import Gate
from crops_jax.serving.metrics import Metrics


async def asked(app, path="/search", parts=(b"",), headers=(), pause=0.0, method="POST"):
    """(status, JSON body) of one request whose body comes in parts."""
    waiting, sent = list(parts), []

    async def receive():
        await asyncio.sleep(pause)
        if not waiting:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"q=la", "headers": list(headers)}
    await app(scope, receive, send)
    body = b"".join(m.get("body", b"") for m in sent)
    assert dict(sent[0]["headers"])[b"x-content-type-options"] == b"nosniff"
    return sent[0]["status"], json.loads(body or b"null")


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(len(body)).encode()})


def gated(app, **limits):
    metrics = Metrics()
    return Gate(app, ServeConfig(("x",), **limits), metrics, ("/search", "/suggest", "/healthz")), metrics


def test_who_comes_when_all_places_are_taken_is_sent_away_and_health_is_always_told():
    free = asyncio.Event()

    async def slow(scope, receive, send):
        if scope["path"] != "/healthz":
            await free.wait()
        await echo(scope, receive, send)

    async def ask():
        app, metrics = gated(slow, max_concurrent=2)
        inside = [asyncio.create_task(asked(app)) for _ in range(2)]
        await asyncio.sleep(0.02)
        away, health = await asked(app), await asked(app, "/healthz")
        free.set()
        return away, health, await asyncio.gather(*inside), await asked(app), metrics.text().decode()

    away, health, inside, after, text = asyncio.run(ask())
    assert away == (429, {"error": "2 requests are being answered; come again"})
    assert health == (200, 0) and inside == [(200, 0)] * 2 and after == (200, 0)
    assert 'crops_requests_total{route="/search",status="429"} 1.0' in text
    assert 'crops_requests_total{route="/search",status="200"} 3.0' in text and "crops_in_flight 0.0" in text


def test_who_types_keeps_no_search_out():
    free = asyncio.Event()

    async def slow(scope, receive, send):
        if scope["path"] == "/suggest":
            await free.wait()
        await echo(scope, receive, send)

    async def ask():
        app, metrics = gated(slow, max_concurrent=2, max_suggesting=3)
        typing = [asyncio.create_task(asked(app, "/suggest")) for _ in range(3)]
        await asyncio.sleep(0.02)
        away, search, text = await asked(app, "/suggest"), await asked(app), metrics.text().decode()
        free.set()
        return away, search, text, await asyncio.gather(*typing)

    away, search, text, typing = asyncio.run(ask())
    assert away == (429, {"error": "3 requests are being answered at /suggest; come again"})
    assert search == (200, 0) and typing == [(200, 0)] * 3 and "crops_in_flight 3.0" in text


def test_a_writer_is_taken_anew_with_the_bundles(monkeypatch):
    writers = iter(["old", "new"])
    shelf = Shelf(ServeConfig(("x",)), lambda: next(writers))
    monkeypatch.setattr(engine, "open_bundle", lambda path, config: SimpleNamespace(title="x", ids=[], sha256="0"))
    monkeypatch.setattr(engine, "examples", lambda bundles, first: [])
    shelf.open()
    assert shelf.writer == "old"
    asyncio.run(shelf.take_anew())
    assert shelf.writer == "new"
    kept = shelf.engines
    with pytest.raises(StopIteration):  # no third writer
        shelf.open()
    assert shelf.writer == "new" and shelf.engines is kept


def test_a_bundle_that_was_written_over_is_told_in_one_line_without_its_place(capsys):
    async def broken(scope, receive, send):
        raise WrittenOver("/srv/bundle/evidence/pairs.parquet", "was written over")

    said = {"error": "a file of the bundle was written over; the server's stderr says which"}
    assert asyncio.run(asked(gated(broken)[0])) == (503, said)
    assert "error: /srv/bundle/evidence/pairs.parquet: was written over" in capsys.readouterr().err


def test_what_fails_within_is_told_on_stderr_and_answered_as_all_else(capsys):
    class Broken:
        def suggest(self, asked, count):
            raise KeyError("broken")

    shelf = Shelf(ServeConfig(("x",)))
    shelf.writer = Broken()
    app = make_app(shelf, ServeConfig(("x",)))
    assert asyncio.run(asked(app, "/suggest", method="GET")) == (
        500,
        {"error": "an error within the server; its stderr says where"},
    )
    assert "KeyError: 'broken'" in capsys.readouterr().err
    assert 'crops_requests_total{route="/suggest",status="500"} 1.0' in shelf.metrics.text().decode()

    async def half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("later")

    with pytest.raises(KeyError, match="later"):  # an answer that has begun cannot become another one
        asyncio.run(asked(gated(half)[0]))


@pytest.mark.parametrize("route", ["/search", "/explore"])
def test_texts_that_may_come_from_disk_make_nobody_else_wait(route):
    loops = []

    class Slow:
        title, search, ids, evidence = "Slow", "exact", [7], None

        def shown(self, item_ids):
            loops.append(asyncio._get_running_loop())
            return [{"id": item, **dict.fromkeys(TEXT_FIELDS, "lamp")} for item in item_ids]

    class Finds:
        bundle = Slow()

        async def search(self, query, k):
            return Found([7], [0.5])

    config = ServeConfig(("x",))
    shelf = Shelf(config)
    shelf.engines = [Finds()]
    status, body = asyncio.run(asked(make_app(shelf, config), route, method="GET"))
    assert status == 200 and "lamp" in json.dumps(body) and loops == [None], "a thread without an event loop"


def test_what_is_still_sent_of_a_refused_body_is_let_pass_before_the_answer():
    """A client whose connection is shut while it sends cannot read why."""
    app, _ = gated(echo, max_body=8)
    parts = [bytes([letter]) * 9 for letter in b"abcde"]
    waiting = iter(parts)

    async def ask():
        sent = []

        async def receive():
            body = next(waiting)
            return {"type": "http.request", "body": body, "more_body": body is not parts[-1]}

        async def send(message):
            sent.append((message, len(list(waiting))))  # what was not read yet, when the answer began

        await app({"type": "http", "method": "POST", "path": "/search", "headers": [(b"content-length", b"45")]},
                  receive, send)  # fmt: skip
        return sent[0]

    answer, unread = asyncio.run(ask())
    assert answer["status"] == 413 and unread == 0


@pytest.mark.parametrize("headers", [(), [(b"content-length", b"9")], [(b"content-length", b"x")]])
def test_a_body_is_refused_by_its_bytes_whatever_it_says_of_them(headers):
    app, _ = gated(echo, max_body=8)
    assert asyncio.run(asked(app, parts=[b"1234", b"56789"], headers=headers))[0] == 413
    assert asyncio.run(asked(gated(echo, max_body=9)[0], parts=[b"1234", b"56789"], headers=headers)) == (200, 9)


def test_a_slow_body_is_not_waited_for_and_paths_of_clients_are_no_labels(monkeypatch):
    monkeypatch.setattr(gate, "_BODY_S", 0.05)
    app, metrics = gated(echo)
    assert asyncio.run(asked(app, "/<script>", parts=[b"1", b"2"], pause=0.04))[0] == 408
    assert 'crops_requests_total{route="other",status="408"} 1.0' in metrics.text().decode()
