"""Connections on which no whole request comes do not keep others out."""

import asyncio
from itertools import chain, repeat

import pytest
import uvicorn

from crops_jax.serving import connections
from crops_jax.serving.connections import BoundedProtocol

HEAD = b"GET / HTTP/1.1\r\nhost: here\r\n"


async def app(scope, receive, send):
    if scope["type"] == "http":
        await asyncio.sleep(0.3)  # longer than a head is waited for
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def with_server(ask):
    server = uvicorn.Server(uvicorn.Config(app, http=BoundedProtocol, port=0, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        return await asyncio.wait_for(ask(server.servers[0].sockets[0].getsockname()), 20)
    finally:
        server.should_exit = True
        await task


async def left_alone(address, parts):
    """What a client reads that sends these parts of a request, a little apart, and waits for the end."""
    reader, writer = await asyncio.open_connection(*address)
    for part in parts:
        if writer.is_closing():
            break
        writer.write(part)
        await asyncio.sleep(0.05)
    try:
        return await reader.read()
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.2)


@pytest.mark.parametrize(
    "parts", [(), (HEAD,), chain([HEAD], repeat(b"a: b\r\n"))], ids=["nothing", "a part", "drop by drop"]
)
def test_a_head_that_does_not_end_is_not_waited_for(parts):
    assert asyncio.run(with_server(lambda address: left_alone(address, parts))) in (b"", b"reset")


def test_an_answer_may_take_longer_than_a_head_and_the_next_head_not():
    async def ask(address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(HEAD + b"\r\n")
        first = await reader.readuntil(b"ok")
        writer.write(HEAD)  # on the same connection, and never to its end
        rest = await reader.read()
        writer.close()
        return first, rest

    first, rest = asyncio.run(with_server(ask))
    assert first.startswith(b"HTTP/1.1 200") and rest == b""


def test_a_connection_too_many_is_closed_and_the_others_are_answered(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 20)  # the held ones may be slow
    monkeypatch.setattr(connections, "most_connections", lambda: 2)

    async def ask(address):
        whole = HEAD + b"connection: close\r\n\r\n"
        held = [await asyncio.open_connection(*address) for _ in range(2)]
        await asyncio.sleep(0.05)
        refused = await left_alone(address, [whole])
        for _, writer in held:
            writer.write(whole)
        answers = [await reader.read() for reader, _ in held]
        for _, writer in held:
            writer.close()
        return refused, answers

    refused, answers = asyncio.run(with_server(ask))
    assert refused in (b"", b"reset") and all(b"200 OK" in answer for answer in answers)
