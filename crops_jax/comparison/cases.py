"""Case studies (paper Figs. 3 and 8): what two methods find for a query, and which training evidence is behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.normal_text import normal_form
from crops_jax.text.tokenizer import document_text

Search = Callable[[list[str], int], np.ndarray]  # (queries, k) -> int64[n, k] item ids
SHOWN = 5


def cases(
    chosen: Sequence[tuple[str, float]], methods: Mapping[str, Search], logs: Path, mined: Path
) -> list[dict[str, Any]]:
    """For each query the first results of every method, with grade and training evidence; JSON-able.

    Args:
      methods: title -> its search.
    """
    folder = open_logs(logs)
    texts, (grades, unlisted) = _texts(folder), _grades(folder)
    evidence = _Evidence(folder, mined)
    queries = [query for query, _ in chosen]
    lists = {title: search(queries, SHOWN) for title, search in methods.items()}
    seen = {normal_form(q) for q in folder.read("searches", "train", ["query"])["query"].unique().to_pylist()}
    return [
        {
            "query": query,
            "gain": gain,
            "seen": normal_form(query) in seen,
            "lists": {
                title: [
                    {"text": texts.get(item, ""), "grade": grades.get((normal_form(query), item), unlisted),
                     "evidence": evidence.of(query, item)}
                    for item in found[row].tolist()
                ]
                for title, found in lists.items()
            },
        }
        for row, (query, gain) in enumerate(chosen)
    ]  # fmt: skip


class _Evidence:
    """Why a document of the platform was a positive of a query in training."""

    def __init__(self, folder: LogFolder, mined: Path):
        table = pq.read_table(mined / "candidates.parquet", columns=["query", "item_id", "source", "evidence"])
        table = table.filter(pc.is_in(table["source"], pa.array(["P0", "P1", "P2"])))
        searches = folder.read("searches", "train", ["request_id", "query"])
        self._query_of = dict(zip(searches["request_id"].to_pylist(), searches["query"].to_pylist(), strict=True))
        self._rows: dict[tuple[str, int], dict[str, str | None]] = {}
        for row in table.to_pylist():
            self._rows.setdefault((normal_form(row["query"]), row["item_id"]), {})[row["source"]] = row["evidence"]

    def of(self, query: str, item: int) -> list[str]:
        """In words; nothing where the document was no positive of the query in training."""
        words = []
        for source, why in sorted(self._rows.get((normal_form(query), item), {}).items()):
            match source:
                case "P0":
                    words.append("P0: clicked for this query")
                case "P1":
                    words.append(f"P1: consumed after rewording to “{self._query_of.get(why, why)}”")
                case "P2":
                    words.append(f"P2: watched in the feed by user {why}, who asked this")
        return words


def _texts(folder: LogFolder) -> dict[int, str]:
    items = folder.read("items")
    fields = (items[name].to_pylist() for name in ("ocr_cover", "photo_caption", "keyword", "click_query"))
    whole = (" · ".join(document_text(*row).split("\n")) for row in zip(*fields, strict=True))
    return {i: text[:120] for i, text in zip(items["item_id"].to_pylist(), whole, strict=True)}


def _grades(folder: LogFolder) -> tuple[dict[tuple[str, int], float], float | None]:
    """The grade of every judged pair, and that of the others: 0 by the whole truth, else unknown."""
    name = next((n for n in ("truth", "judgments") if folder.has(n)), None)
    if name is None:
        return {}, None
    table = folder.read(name)
    columns = (table[n].to_pylist() for n in ("query", "item_id", "grade"))
    return {(normal_form(q), i): g for q, i, g in zip(*columns, strict=True)}, 0.0 if name == "truth" else None
