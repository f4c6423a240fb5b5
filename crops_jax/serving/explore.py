"""What the explorer shows of a query: the lists of one bundle or two, what moved, and why each document is found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.retrieval.ranking import positions_of
from crops_jax.serving.bundle import Bundle
from crops_jax.serving.engine import Engine, Found
from crops_jax.serving.evidence import PairFacts, QueryFacts, label, words

DEPTH = 100  # how far down the other list a document is looked for


async def compared(engines: Sequence[Engine], query: str, k: int, depth: int = DEPTH) -> dict[str, Any]:
    """JSON of the first k documents of each bundle, all ids as text, for JavaScript's numbers are no int64."""
    found = await asyncio.gather(*(engine.search(query, max(k, depth)) for engine in engines))
    lists = []
    for number, (engine, own) in enumerate(zip(engines, found, strict=True)):
        other = found[1 - number] if len(found) == 2 else None
        # Reads from disk: in a thread, so that nobody else waits for it.
        rows = await asyncio.to_thread(lambda e=engine, f=own, o=other: list(_rows(e.bundle, query, f, o, k)))
        about = {"title": engine.bundle.title, "search": engine.bundle.search, "documents": len(engine.bundle.ids)}
        lists.append(about | {"evidence": engine.bundle.evidence is not None, "results": rows})
    seen = await asyncio.to_thread(_seen, engines[-1].bundle, query)
    return {"query": query, "depth": max(k, depth), "seen": seen, "lists": lists}


def _seen(bundle: Bundle, query: str) -> dict[str, Any] | None:
    """What the train day knew of the query: searches is 0 where nobody asked it; None without evidence."""
    if bundle.evidence is None:
        return None
    known = bundle.evidence.query(query)
    if known is None:
        return {"searches": 0, "written": 0}
    seen: dict[str, Any] = {"searches": known.searches, "written": known.written, "title": known.title}
    # An item is not encoded where all its text is in fields that `text.field_order` leaves out.
    if known.exemplar is not None and positions_of(bundle.ids, np.array([known.exemplar]))[0] >= 0:
        shown = bundle.shown([known.exemplar])
        seen["exemplar"] = next(shown[0][name] for name in TEXT_FIELDS if shown[0][name])
    return seen


def _rows(bundle: Bundle, query: str, own: Found, other: Found | None, k: int) -> Iterator[dict[str, Any]]:
    items = own.ids[:k]
    place = {} if other is None else {item: rank for rank, item in enumerate(other.ids, 1)}
    evidence = bundle.evidence
    known = evidence.query(query) if evidence else None
    pairs = evidence.pairs(query, items) if evidence else [None] * len(items)
    grades = evidence.grades(query, items) if evidence else [None] * len(items)
    rows = zip(items, own.cosines, bundle.shown(items), pairs, grades, strict=False)
    for rank, (item, cosine, shown, pair, grade) in enumerate(rows, 1):
        title, *more = [shown[name] for name in TEXT_FIELDS if shown[name]] or [""]
        row = {"rank": rank, "id": str(shown["id"]), "cosine": round(cosine, 4), "title": title, "more": more}
        if other is not None:
            row["elsewhere"] = place.get(item)
        if pair is not None:
            row |= _why(bundle, pair, known, item) | {"grade": grade}
        yield row


def _why(bundle: Bundle, pair: PairFacts, known: QueryFacts | None, item: int) -> dict[str, Any]:
    learnt, unused = words(pair, known, item, bundle.sources)
    return {
        "label": label(pair, bundle.sources, bundle.levels),
        "why": learnt,
        "unused": unused,
        "shown": pair.shown,
        "clicked": pair.clicked,
    }
