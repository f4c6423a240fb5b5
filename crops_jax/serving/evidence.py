"""Why a document can be found for a query: a bundle's evidence, looked up and said in words."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.errors import InputError
from crops_jax.labels import LETTERS, SOURCES
from crops_jax.normal_text import normal_form
from crops_jax.report.tables import several

_KEPT = 4  # row groups in memory, of each table


@dataclass(frozen=True)
class QueryFacts:
    """What the train day knew of a query."""

    searches: int
    written: int
    """Documents that a language model wrote for it."""
    title: str | None
    """The title of one of them."""
    exemplar: int | None
    """The item that the model was shown."""


@dataclass(frozen=True)
class PairFacts:
    """What the train day knew of a query and a document."""

    sources: tuple[str, ...] = ()
    """Those that were mined for the pair."""
    shown: int = 0
    """Searches of the query that exposed the document."""
    clicked: int = 0
    reworded: str | None = None
    """P1: what the user asked next."""
    feeds: int = 0
    """P2: users of the query who watched it in their feed."""


class Evidence:
    """The evidence of a bundle. Read from disk as it is asked for; safe to use from several threads."""

    def __init__(self, folder: Path, graded_by: str | None):
        """Opens the tables that `handover.evidence` wrote into `folder`.

        Args:
          graded_by: "truth" where pairs that are not listed have grade 0.
        """
        self._queries = _Sorted(folder / "queries.parquet")
        self._pairs = _Sorted(folder / "pairs.parquet")
        self._grades = _Sorted(folder / "grades.parquet")
        self._unlisted = 0.0 if graded_by == "truth" else None

    def query(self, query: str) -> QueryFacts | None:
        """What is known of a query, however it is spelled; None if nobody asked it on the train day."""
        rows = self._queries.rows(normal_form(query))
        if not rows:
            return None
        return QueryFacts(**{name: rows[0][name] for name in ("searches", "written", "title", "exemplar")})

    def pairs(self, query: str, items: Sequence[int]) -> list[PairFacts]:
        """What is known of the query and each item."""
        found = {row["item_id"]: row for row in self._pairs.rows(normal_form(query), items)}
        return [_pair(found[item]) if item in found else PairFacts() for item in items]

    def grades(self, query: str, items: Sequence[int]) -> list[float | None]:
        """The grade of the query and each item; None where it is unknown."""
        rows = self._grades.rows(normal_form(query), items)
        found = {row["item_id"]: row["grade"] for row in rows}
        return [found.get(item, self._unlisted) for item in items]


def words(pair: PairFacts, query: QueryFacts | None, item: int, trained: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what the method learnt the pair from, what was mined but this method does not learn from), in words.

    Args:
      trained: the sources that the method trains on.
    """
    elsewhere = "in other searches " if pair.shown else ""
    said = {source.letter: source.meaning for source in SOURCES} | {
        "P0": f"clicked for this query in {several(pair.clicked, 'search', 'searches')}",
        "P1": f"consumed after this query was reworded to “{pair.reworded}”",
        "P2": f"watched in the feed by {several(pair.feeds, 'user')} who asked this",
        "X3": f"shown in {several(pair.shown - pair.clicked, 'search', 'searches')}, not clicked",
        "U2": f"{elsewhere}ranked, not shown",
        "F1": f"{elsewhere}filtered out before ranking",
    }
    sources = [letter for letter in pair.sources if letter != "P3"]  # what it wrote is in no index
    if query is not None and query.exemplar == item:
        said["P3"] = f"a language model was shown it, and wrote “{query.title}” for this query"
        sources.append("P3")
    told = [(letter, f"{letter}: {said[letter]}") for letter in LETTERS if letter in sources]
    return [text for letter, text in told if letter in trained], [
        text for letter, text in told if letter not in trained
    ]


def label(pair: PairFacts, trained: Sequence[str], levels: Mapping[str, int]) -> int | None:
    """The label of the pair in training: the highest that a source gives it; None without any."""
    return max((levels[source] for source in pair.sources if source in trained), default=None)


def _pair(row: Mapping[str, Any]) -> PairFacts:
    sources = tuple(letter for bit, letter in enumerate(LETTERS) if row["source"] >> bit & 1)
    return PairFacts(sources, *(row[name] for name in ("shown", "clicked", "reworded", "feeds")))


class WrittenOver(InputError):
    """A file of a bundle that is served has other bytes than when it was opened."""


class _Sorted:
    """A Parquet file sorted by `query`: the rows of one query, without reading the others' row groups."""

    def __init__(self, path: Path):
        self._path, self._as_opened = path, path.stat()
        self._file = pq.ParquetFile(path, page_checksum_verification=True)
        column = self._file.schema_arrow.names.index("query")
        groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]
        ends = [group.column(column).statistics if group.num_rows else None for group in groups]
        # A group without statistics may hold any query.
        self._first = ["" if end is None or not end.has_min_max else end.min for end in ends]
        self._last = ["\U0010ffff" if end is None or not end.has_min_max else end.max for end in ends]
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = Lock()

    def rows(self, query: str, items: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The rows of a query; of these items, where they are given."""
        found = []
        for number in range(bisect_left(self._last, query), bisect_right(self._first, query)):
            table = self._group(number)
            column = table["query"].chunk(0) if table.num_rows else pa.array([], pa.string())
            low, high = _place(column, query, False), _place(column, query, True)
            part = table.slice(low, high - low)
            if items is not None:
                part = part.filter(pc.is_in(part["item_id"], pa.array(items, pa.int64())))
            found += part.to_pylist()
        return found

    def _is_written_over(self) -> bool:
        """Whether the open file has other bytes now. Where the folder was moved or removed, it has not."""
        try:
            now = self._path.stat()
        except OSError:
            return False
        before = self._as_opened
        return now.st_ino == before.st_ino and (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)

    def _group(self, number: int) -> pa.Table:
        with self._lock:
            if number not in self._kept:
                if self._is_written_over():
                    mend = "put the bundle's folder in its place as a whole, then kill -HUP"
                    raise WrittenOver(str(self._path), f"was written over while it is served; {mend}")
                self._kept[number] = self._file.read_row_group(number).combine_chunks()
            self._kept.move_to_end(number)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[number]


def _place(column: pa.Array, query: str, after: bool) -> int:
    """Where `query` begins in a sorted column, or where it ends."""
    low, high = 0, len(column)
    while low < high:
        middle = (low + high) // 2
        value = column[middle].as_py()
        if value < query or (after and value == query):
            low = middle + 1
        else:
            high = middle
    return low
