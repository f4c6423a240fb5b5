"""Small logs written by hand, one row a line, for the tests of validation, mining and test sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.logs.schema import COUNTERS, TABLES, TEXT_FIELDS, arrow_schema

T0 = 1_750_000_000_000  # the train day's first moment, ms
DAY = 86_400_000


def item(item_id: int, title: str | None) -> dict:
    return {"item_id": item_id, **dict.fromkeys(TEXT_FIELDS), "ocr_cover": title, **dict.fromkeys(COUNTERS, 1)}


def search(request_id: str, user_id: int, query: str, ts: int) -> dict:
    return {"request_id": request_id, "user_id": user_id, "query": query, "ts": ts}


def candidate(request_id: str, item_id: int, stage: str = "exposed", position: int = 1, **acts) -> dict:
    row = {"request_id": request_id, "item_id": item_id, "stage": stage, "position": position}
    return row | {"clicked": False, "liked": False, "watch_ms": 0} | acts


def feed(user_id: int, item_id: int, ts: int, **acts) -> dict:
    acts = acts or {"clicked": True}
    row = {"user_id": user_id, "item_id": item_id, "ts": ts, "clicked": False, "liked": False, "watch_ms": 0}
    return row | {"duration_ms": 30_000} | acts


def typed(request_id: str, user_id: int | None, prefix: str, ts: int) -> dict:
    return {"request_id": request_id, "user_id": user_id, "prefix": prefix, "ts": ts}


def suggested(request_id: str, queries: list[str], shown: int = 99, taken: str | None = None) -> list[dict]:
    """Suggestions in their order; the first `shown` were shown."""
    return [
        {"request_id": request_id, "query": q, "position": n, "shown": n <= shown, "clicked": q == taken}
        for n, q in enumerate(queries, 1)
    ]


def followed(request_id: str, query: str, item_id: int, ts: int, ordered: bool = False) -> dict:
    return {"request_id": request_id, "query": query, "item_id": item_id, "ordered": ordered, "ts": ts}


def write(path: Path, table: str, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in TABLES[table]}
    fields = [field.with_nullable(TABLES[table][field.name].may_be_null) for field in arrow_schema(table)]
    pq.write_table(pa.table(columns, schema=pa.schema(fields)), path)


def write_day(logs: Path, day: str, searches: list, candidates: list, feed: list) -> None:
    for name, rows in {"searches": searches, "candidates": candidates, "feed": feed}.items():
        write(logs / day / f"{name}.parquet", name, rows)


def write_suggestions(logs: Path, day: str, typed: list, suggested: list, followed: list) -> None:
    for name, rows in {"suggestions": typed, "suggested": suggested, "followed": followed}.items():
        write(logs / day / f"{name}.parquet", name, rows)


def small_world(logs: Path) -> Path:
    """Two days in which every source occurs; item 9 has no text, request r9 an empty query, r8 a huge one.

    Users 1 and 2 ask "transformer"; user 1 asks again, "power transformer", 60 s later and clicks item 3 there.
    User 1's feed has items 4 and 5 ("film" scores below theta).
    """
    titles = ["transformer film", "transformer toys", "transformer trailer", "transformer coil", "transformer winding",
              "film music", "transformer oil", "transformer core", "coil"]  # fmt: skip
    write(logs / "items.parquet", "items", [*(item(i, t) for i, t in enumerate(titles)), item(9, "  ")])
    write_day(
        logs, "train",
        [search("r1", 1, "transformer", T0), search("r2", 1, "power transformer", T0 + 60_000),
         search("r3", 2, "transformer", T0 + 1_000), search("r8", 3, "x" * 10_000, T0), search("r9", 3, " \t", T0)],
        [candidate("r1", 0, clicked=True), candidate("r1", 1, position=2), candidate("r1", 3, "ranked"),
         candidate("r1", 8, "filtered"), candidate("r1", 9, "filtered", position=2),
         candidate("r2", 3, clicked=True), candidate("r2", 5, position=2, watch_ms=20_000),
         candidate("r3", 1, liked=True), candidate("r3", 2, position=2),
         candidate("r8", 1, clicked=True), candidate("r9", 1, clicked=True)],
        [feed(1, 4, T0 + 5_000), feed(1, 5, T0 + 6_000), feed(1, 9, T0 + 7_000), feed(2, 8, T0 + 9_000, liked=False)],
    )  # fmt: skip
    late = T0 + 2 * DAY
    write_day(
        logs, "test",
        [search("t1", 1, "transformer", late), search("t2", 1, "transformer parts", late + 90_000),
         search("t3", 2, "transformer", late + 1_000), search("t4", 2, "transformer coil", late + 92_000)],
        [candidate("t1", 0, clicked=True), candidate("t1", 1, position=2, clicked=True),
         candidate("t2", 6, clicked=True), candidate("t2", 5, position=2, clicked=True),
         candidate("t3", 2, liked=True), candidate("t4", 3, clicked=True), candidate("t4", 7, "ranked")],
        [feed(1, 4, late + 5_000)],
    )  # fmt: skip
    grades = {0: 3.0, 3: 2.0, 4: 3.0, 7: 1.0}
    judgments = [{"query": "transformer", "item_id": i, "grade": grade} for i, grade in grades.items()]
    write(logs / "judgments.parquet", "judgments", judgments)
    return logs


class WordOverlap:
    """A relevance model that can be computed by hand: the share of the query's words that the text holds."""

    def __init__(self):
        self.asked: list[tuple[str, str]] = []

    def scores(self, queries, texts):
        self.asked += zip(queries, texts, strict=True)
        return np.array([self._share(q, t) for q, t in zip(queries, texts, strict=True)], np.float32)

    def query_similarity(self, a, b):
        return np.array([max(self._share(x, y), self._share(y, x)) for x, y in zip(a, b, strict=True)], np.float32)

    @staticmethod
    def _share(query: str, text: str) -> float:
        words = query.split()
        return sum(word in text.split() for word in words) / len(words)


class Always(WordOverlap):
    """Everything is relevant and similar."""

    @staticmethod
    def _share(query: str, text: str) -> float:
        return 1.0


def rewrite(logs: Path, table: str, change) -> None:
    """Every file of a table, in all days, through `change`: an Arrow table to another."""
    for path in sorted(logs.rglob(f"{table}.parquet")):
        pq.write_table(change(pq.read_table(path, partitioning=None)), path)


def recast(logs: Path, table: str, **columns) -> None:
    """Columns of a table in other types: an Arrow type, or a function of the column."""

    def change(read: pa.Table) -> pa.Table:
        for name, to in columns.items():
            cast = to(read[name]) if callable(to) else read[name].cast(to)
            read = read.set_column(read.column_names.index(name), name, cast)
        return read

    rewrite(logs, table, change)


def as_spark_writes(logs: Path) -> Path:
    """The folder with every table as a folder of two files out of order, beside marks and checksums."""
    for path in sorted(p for p in logs.rglob("*.parquet") if p.is_file()):
        table = pq.read_table(path, partitioning=None)
        path.unlink()
        path.mkdir()
        order = np.random.default_rng(1).permutation(table.num_rows)
        for number, rows in enumerate(np.array_split(order, 2)):
            part = path / f"part-{number:05d}-c000.snappy.parquet"
            pq.write_table(table.take(pa.array(rows)), part, compression="snappy")
            part.with_name(f".{part.name}.crc").write_bytes(b"crc\0")
        (path / "_SUCCESS").touch()
    return logs
