"""What something that suggests answered to a test set, as a folder."""

from __future__ import annotations

import statistics
from pathlib import Path
from time import perf_counter

import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.artifacts.folders import Folder
from crops_jax.artifacts.manifest import checked_file, read_manifest
from crops_jax.suggestions.suggester import Asked, Suggester
from crops_jax.suggestions.testset import SuggestionTest

ANSWERS = "suggestion_answers"
_EVENTS = pa.schema(
    [pa.field("event_id", pa.string(), False), pa.field("suggestions", pa.list_(pa.string()), False)]
)  # in the order of the test set
_TIMED = 100  # requests that are answered one by one, for the latency


def write_answers(suggester: Suggester, test: SuggestionTest, out: Folder) -> None:
    """Writes what a suggester answers to a test set, and how long a request asked alone takes."""
    asked, events = test.asked, test.events  # of both truths at once: a request of both is answered once
    found = suggester.suggest(asked)
    rows = pa.table({"event_id": events, "suggestions": pa.array(found, pa.list_(pa.string()))}, schema=_EVENTS)
    pq.write_table(rows, out / "suggestions.parquet", write_page_checksum=True)
    took = []
    for n in range(min(_TIMED, len(events))):
        one, begun = slice(n, n + 1), perf_counter()
        suggester.suggest(Asked(asked.prefixes[one], asked.users[one], asked.recent[one]))
        took.append(1e3 * (perf_counter() - begun))
    out.counts.update(events=len(events), ms=statistics.median(took), timed=len(took))


def read_answers(folder: Path) -> tuple[list[list[str]], float]:
    """(suggestions of each event, milliseconds of a request) of a folder of answers.

    Raises:
      InputError: the folder is another kind, not complete, or damaged.
    """
    counts = read_manifest(folder, ANSWERS)["counts"]
    rows = pq.read_table(checked_file(folder, "suggestions.parquet"))
    return rows["suggestions"].to_pylist(), counts["ms"]
