"""Case studies (paper Figs. 3 and 8): what two methods find for a query, and which training evidence is behind it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax.artifacts.folders import Folder
from crops_jax.handover.evidence import write_evidence
from crops_jax.labels import SOURCES, LabelsConfig
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.mining.config import MiningConfig
from crops_jax.serving.evidence import Evidence, words
from crops_jax.text.tokenizer import document_text

Search = Callable[[list[str], int], np.ndarray]  # (queries, k) -> int64[n, k] item ids
SHOWN = 5
POSITIVES = tuple(source.letter for source in SOURCES if source.label >= LabelsConfig.min_positive)


def cases(
    chosen: Sequence[tuple[str, float]], methods: Mapping[str, Search], logs: Path, mined: Path, mining: MiningConfig
) -> list[dict[str, Any]]:
    """For each query the first results of every method, with grade and training evidence; JSON-able.

    Args:
      chosen: (query, gain) pairs (`retrieval.gains.choose`).
      methods: title -> its search.
      mining: the settings that `mined` was made with.
    """
    texts, queries = _texts(open_logs(logs)), [query for query, _ in chosen]
    lists = {title: search(queries, SHOWN) for title, search in methods.items()}
    with tempfile.TemporaryDirectory() as scratch:
        out = Folder(Path(scratch))
        write_evidence(logs, mined, out, mining)
        evidence = Evidence(out.path / "evidence", out.counts["evidence"]["graded_by"])
        return [
            {
                "query": query,
                "gain": gain,
                "seen": evidence.query(query) is not None,
                "lists": {title: _shown(evidence, query, found[row].tolist(), texts) for title, found in lists.items()},
            }
            for row, (query, gain) in enumerate(chosen)
        ]


def _shown(evidence: Evidence, query: str, items: list[int], texts: Mapping[int, str]) -> list[dict[str, Any]]:
    known, pairs, grades = evidence.query(query), evidence.pairs(query, items), evidence.grades(query, items)
    return [
        {"text": texts.get(item, ""), "grade": grade, "evidence": words(pair, known, item, POSITIVES)[0]}
        for item, pair, grade in zip(items, pairs, grades, strict=True)
    ]


def _texts(folder: LogFolder) -> dict[int, str]:
    items = folder.read("items")
    fields = (items[name].to_pylist() for name in ("ocr_cover", "photo_caption", "keyword", "click_query"))
    whole = (" · ".join(document_text(*row).split("\n")) for row in zip(*fields, strict=True))
    return {i: text[:120] for i, text in zip(items["item_id"].to_pylist(), whole, strict=True)}
