"""What every request passes: how many at a time, how large, how slow; and what is counted of it."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crops_jax.serving.config import ServeConfig
from crops_jax.serving.evidence import WrittenOver
from crops_jax.serving.metrics import Metrics

_BODY_S = 10.0  # a body that takes longer is not waited for
_LINGER_BYTES, _LINGER_S, _SILENCE_S = 16 << 20, 5.0, 0.5  # of a body that is too long: how much of it is let pass
SUGGEST = "/suggest"
_ALWAYS = ("/healthz", "/metrics")  # answered however many others are
_HEADERS = [
    # What the pages show comes from logs: nothing of it may run, and nothing is loaded from elsewhere.
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                                 b"img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]  # fmt: skip


class Refusal(Exception):
    """An answer that ends a request: its status and one line."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status, self.line = status, line


class Gate:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics, routes: tuple[str, ...]):
        self._app, self._config, self._metrics, self._routes = app, config, metrics, routes
        self._apart = {SUGGEST: config.max_suggesting}  # routes with a number of their own
        self._inside: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers an HTTP request, or says why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        start, status, begun = time.perf_counter(), 500, False
        route = scope["path"] if scope["path"] in self._routes else "other"

        async def counted(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        line = route if route in (*_ALWAYS, *self._apart) else ""
        counts, most = route not in _ALWAYS, self._apart.get(line, self._config.max_concurrent)
        self._inside[line] += counts
        self._metrics.in_flight.set(self._inside.total())
        try:
            if self._inside[line] > most:
                raise Refusal(429, f"{most} requests are being answered{f' at {line}' if line else ''}; come again")
            body = await self._body(scope, receive)
            await self._app(scope, _replayed(body, receive), counted)
        except Refusal as refusal:
            if refusal.status == 413:
                await _let_pass(receive)
            extra = {"retry-after": "1"} if refusal.status == 429 else {"connection": "close"}
            answer = JSONResponse({"error": refusal.line}, refusal.status, headers=extra)
            await answer(scope, receive, counted)
        except WrittenOver as error:
            if begun:
                raise
            print(f"error: {error}", file=sys.stderr)
            said = "a file of the bundle was written over; the server's stderr says which"
            await JSONResponse({"error": said}, 503)(scope, receive, counted)
        except Exception:
            if begun:
                raise
            traceback.print_exc()
            answer = JSONResponse({"error": "an error within the server; its stderr says where"}, 500)
            await answer(scope, receive, counted)
        finally:
            self._inside[line] -= counts
            self._metrics.in_flight.set(self._inside.total())
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        most = self._config.max_body
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and (len(told) > 18 or int(told) > most):
            raise Refusal(413, f"the request has more than {most} bytes")
        parts, size = [], 0
        try:
            async with asyncio.timeout(_BODY_S):
                while True:
                    message: Any = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the request ends too early")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise Refusal(413, f"the request has more than {most} bytes")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, f"the request did not arrive within {_BODY_S:g} seconds") from None


async def _let_pass(receive: Receive) -> None:
    """Throws away what a client is still sending, within bounds: one whose connection is shut while it sends reads no
    answer."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while size < _LINGER_BYTES:
                async with asyncio.timeout(_SILENCE_S):
                    message: Any = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, then what comes after it: that the client went away."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
