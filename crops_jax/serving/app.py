"""The routes. Every answer that is no success is JSON with one line, {"error": "..."}."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from crops_jax.normal_text import has_text
from crops_jax.serving.config import ServeConfig
from crops_jax.serving.engine import Engine, Shelf
from crops_jax.serving.explore import compared
from crops_jax.serving.gate import SUGGEST, Gate, Refusal
from crops_jax.suggestions.suggester import SHOWN, Asked

_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/explorer.js": ("explorer.js", "text/javascript; charset=utf-8"),
    "/explorer.css": ("explorer.css", "text/css; charset=utf-8"),
}
_ROUTES = (*_PAGES, "/search", "/embed", SUGGEST, "/explore", "/examples", "/healthz", "/metrics")
_K = 10


class Search(BaseModel):
    """The body of POST /search."""

    model_config = ConfigDict(extra="forbid", strict=True)
    query: str
    k: int = _K
    bundle: str | None = None


class Address(BaseModel):
    """What the address of GET /explore says."""

    model_config = ConfigDict(extra="forbid")  # a misspelt `bundle` would be answered from another one
    q: str
    k: int = _K


class SearchAddress(Address):
    """What the address of GET /search says."""

    bundle: str | None = None


class SuggestAddress(Address):
    """What the address of GET /suggest says."""

    k: int = SHOWN


class Embed(BaseModel):
    """The body of POST /embed."""

    model_config = ConfigDict(extra="forbid", strict=True)
    texts: list[str]
    tower: Literal["query", "document"] = "query"
    bundle: str | None = None


def make_app(shelf: Shelf, config: ServeConfig) -> FastAPI:
    """The app over what lies on the shelf."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await shelf.close()

    # Its pages of documentation load scripts from elsewhere.
    app = FastAPI(
        title="crops_jax", docs_url=None, redoc_url=None, openapi_url=None, lifespan=life, redirect_slashes=False
    )
    _add_errors(app)
    _add_search(app, shelf, config)
    _add_explorer(app, shelf, config)
    _add_suggestions(app, shelf, config)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "bundles": [
            {"title": e.bundle.title, "sha256": e.bundle.sha256, "documents": len(e.bundle.ids),
             "search": e.bundle.search} for e in shelf.engines
        ]}  # fmt: skip

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(shelf.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_middleware(Gate, config=config, metrics=shelf.metrics, routes=_ROUTES)
    return app


def _add_search(app: FastAPI, shelf: Shelf, config: ServeConfig) -> None:
    async def found(body: Search) -> dict[str, Any]:
        engine = _engine(shelf, body.bundle)
        _check_text(body.query, "query", config)
        _check_k(body.k, config)
        hits = await engine.search(body.query, body.k)
        shown = await asyncio.to_thread(engine.bundle.shown, hits.ids)  # who asks for many keeps nobody waiting
        return {
            "query": body.query,
            "bundle": engine.bundle.title,
            "hits": [row | {"cosine": cosine} for row, cosine in zip(shown, hits.cosines, strict=True)],
        }

    @app.get("/search")
    async def search(asked: Annotated[SearchAddress, Query()]) -> dict[str, Any]:
        return await found(Search(query=asked.q, k=asked.k, bundle=asked.bundle))

    app.post("/search")(found)

    @app.post("/embed")
    async def embed(body: Embed) -> dict[str, Any]:
        engine = _engine(shelf, body.bundle)
        if not 1 <= len(body.texts) <= config.max_texts:
            raise Refusal(400, f"texts: {len(body.texts)} of them; 1 to {config.max_texts} are taken at a time")
        for number, text in enumerate(body.texts):
            _check_text(text, f"texts[{number}]", config, empty=body.tower == "document")
        vectors = await engine.embed(body.texts, body.tower)
        return {"bundle": engine.bundle.title, "tower": body.tower, "vectors": [v.tolist() for v in vectors]}


def _add_explorer(app: FastAPI, shelf: Shelf, config: ServeConfig) -> None:
    @app.get("/explore")
    async def explore(asked: Annotated[Address, Query()]) -> dict[str, Any]:
        _check_text(asked.q, "query", config)
        _check_k(asked.k, config)
        return await compared(shelf.engines, asked.q, asked.k)

    @app.get("/examples")
    def offered() -> dict[str, Any]:
        return {"examples": shelf.examples, "suggests": shelf.writer is not None}

    for route, (name, kind) in _PAGES.items():
        content = files("crops_jax.serving").joinpath("static", name).read_bytes()
        answer = Response(content, media_type=kind, headers={"cache-control": "no-cache"})
        app.add_route(route, _always(answer), ["GET"])


def _add_suggestions(app: FastAPI, shelf: Shelf, config: ServeConfig) -> None:
    one_at_a_time = asyncio.Lock()

    @app.get(SUGGEST)
    async def suggest(asked: Annotated[SuggestAddress, Query()]) -> dict[str, Any]:
        if (writer := shelf.writer) is None:
            raise Refusal(404, "no writer of suggestions is served; --writer names one")
        _check_text(asked.q, "prefix", config, empty=True)
        if not 1 <= asked.k <= SHOWN:
            raise Refusal(400, f"k: {_line(str(asked.k))}; 1 to {SHOWN} is taken")
        async with one_at_a_time:
            found = await asyncio.to_thread(writer.suggest, Asked([asked.q], [None], [[]]), asked.k)
        return {"prefix": asked.q, "suggestions": found[0]}


def _always(answer: Response) -> Callable[[Request], Awaitable[Response]]:
    async def page(_: Request) -> Response:
        return answer

    return page


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        kind = request.headers.get("content-type", "")
        if request.method == "POST" and not kind.startswith("application/json"):
            return JSONResponse({"error": "content-type: a JSON object is taken, as application/json"}, 400)
        place = ".".join(map(str, first["loc"][1:])) or "request"  # the first says body or query
        place = f"body, character {place}" if first["type"] == "json_invalid" else place
        return JSONResponse({"error": f"{place}: {_line(first['msg'])}"}, 400)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": _line(str(error.detail))}, error.status_code, headers=error.headers)


def _engine(shelf: Shelf, title: str | None) -> Engine:
    """The bundle of this title; the last one where none is asked for: the first is the baseline."""
    engines = {engine.bundle.title: engine for engine in shelf.engines}
    if title is None:
        return shelf.engines[-1]
    if title not in engines:
        raise Refusal(404, f"no such bundle; there are: {', '.join(engines)}")
    return engines[title]


def _check_text(text: str, place: str, config: ServeConfig, empty: bool = False) -> None:
    if len(text) > config.max_chars:
        raise Refusal(400, f"{place}: {len(text)} characters; at most {config.max_chars} are taken")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refusal(400, f"{place}: holds half a character (a lone surrogate)") from None
    if not empty and not has_text(text):
        raise Refusal(400, f"{place}: has no text")


def _check_k(k: int, config: ServeConfig) -> None:
    if not 1 <= k <= config.max_k:
        raise Refusal(400, f"k: {_line(str(k))}; 1 to {config.max_k} is taken")


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
