"""Labels and shards of mined candidates: groups a second, and the most memory that a process took.

    python benchmarks/records.py --searches 100_000 1_000_000

Makes the candidates of so many searches (20 a search, Zipf items and queries, one query with 2 % of all searches) with
a pool of P1, P2 and P3 a query, and a catalogue of items in proportion; then writes their shards, in a process of its
own for each number. Everything lies below a scratch folder, which is removed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from memory import bytes_of

from crops_jax.artifacts.folders import write_folder
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import run_command
from crops_jax.labels import LabelsConfig
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS, arrow_schema
from crops_jax.logs.tables import write_batches
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.mining.knowledge import KNOWLEDGE_SCHEMA
from crops_jax.records import RecordsConfig
from crops_jax.records.parts import PartSettings
from crops_jax.records.workers import Mined, write_mined

OF_A_SEARCH = {"P0": 1, "X3": 5, "U2": 8, "F1": 6}
OF_A_QUERY = {"P1": 5, "P2": 8, "P3": 1}
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l", "rd", "mp")]
AT_ONCE = 50_000  # searches
ROW_GROUP = 1 << 17  # of mined candidates


def main() -> None:
    args = arguments()
    found = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for searches in args.searches:
            work = Path(scratch) / str(searches)
            rows = write_inputs(work, searches, args.searches_an_item)
            found.append((searches, rows, *in_own_process(work, args.workers, args.memory_limit)))
    print(f"python {shlex.join(sys.argv)}")
    print(f"{os.cpu_count()} cores, {args.workers or os.cpu_count()} workers; other work on the machine slows it\n")
    columns = ["searches", "candidates", "groups", "seconds", "groups/s", "CPU seconds", "peak RSS, MB", "of a worker"]
    print("".join(f"{name:>14}" for name in columns))
    for searches, rows, groups, seconds, cpu, own, worker in found:
        numbers = [searches, rows, groups, f"{seconds:.1f}", f"{groups / seconds:,.0f}", f"{cpu:.1f}", own, worker]
        print("".join(f"{n if isinstance(n, str) else f'{n:,}':>14}" for n in numbers))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, nargs="+", default=[100_000], help="one or more sizes")
    parser.add_argument("--searches-an-item", type=float, default=0.5, help="how small the catalogue is")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one a core")
    parser.add_argument("--memory-limit", default="4GB", help="of the engine that joins the texts")
    parser.add_argument("--scratch", help="where all is written (the system's folder for temporary files)")
    return parser.parse_args()


def write_inputs(work: Path, searches: int, searches_an_item: float) -> int:
    """Logs with a catalogue, and mined candidates; returns the rows of the latter."""
    draw = np.random.default_rng(0)
    items, queries = int(searches / searches_an_item), max(searches // 4, 1)
    with write_folder(work / "logs", kind="logs") as out:
        write_batches(arrow_schema("items"), (documents(np.arange(i, min(i + AT_ONCE, items)), draw)
                                              for i in range(0, items, AT_ONCE)), out / "items.parquet")  # fmt: skip
    with write_folder(work / "mined", kind="mined") as out:
        written = documents(-1 - np.arange(queries), draw) | {"query": query_texts(np.arange(queries))}
        pq.write_table(pa.table(written).select(KNOWLEDGE_SCHEMA.names).cast(KNOWLEDGE_SCHEMA),
                       out / "knowledge.parquet")  # fmt: skip
        rows = 0
        with pq.ParquetWriter(out / "candidates.parquet", CANDIDATES_SCHEMA, compression="zstd") as writer:
            for table in candidates(searches, queries, items, draw):
                writer.write_table(table, row_group_size=ROW_GROUP)
                rows += table.num_rows
    return rows


def documents(ids: np.ndarray, draw: np.random.Generator) -> dict:
    """Items or written documents with some 30 words in four fields."""
    words = np.array(WORDS)
    texts = {}
    for name, n in zip(TEXT_FIELDS, (6, 12, 5, 7), strict=True):
        joined = [" ".join(row) for row in words[draw.integers(len(WORDS), size=(len(ids), n))].tolist()]
        texts[name] = pa.array(joined, pa.string())
    return {"item_id": ids, **texts, **{name: draw.integers(0, 10**6, len(ids)) for name in COUNTERS}}


def query_texts(numbers: np.ndarray) -> list[str]:
    return [f"{WORDS[n % len(WORDS)]} {n:09d}" for n in numbers.tolist()]


def zipf(draw: np.random.Generator, size: int, of: int) -> np.ndarray:
    """Numbers below `of` with probability about 1 / rank."""
    return np.minimum(of ** draw.random(size) - 1, of - 1).astype(np.int64)


def candidates(searches: int, queries: int, items: int, draw: np.random.Generator) -> Iterator[pa.Table]:
    """Tables sorted by query, from the first to the last."""
    asked = zipf(draw, searches, queries)
    asked[draw.random(searches) < 0.02] = queries // 2  # a robot
    names = np.array(query_texts(np.arange(queries)))
    place = np.empty(queries, np.int64)
    place[np.argsort(names)] = np.arange(queries)  # by the text, as mining sorts
    asked = asked[np.argsort(place[asked], kind="stable")]
    last = -1
    for start in range(0, searches, AT_ONCE):
        here = asked[start : start + AT_ONCE]
        new = here[np.diff(here, prepend=last) != 0]
        last = here[-1]
        parts = [(query, None, source, n) for query in (new,) for source, n in OF_A_QUERY.items()]
        parts += [(here, np.arange(start, start + len(here)), source, n) for source, n in OF_A_SEARCH.items()]
        yield table_of(parts, names, items, place, draw)


def table_of(parts: list, names: np.ndarray, items: int, place: np.ndarray, draw: np.random.Generator) -> pa.Table:
    query, request, item, source = [], [], [], []
    for of_query, of_request, letter, n in parts:
        query.append(np.repeat(of_query, n))
        request.append(np.repeat(of_request if of_request is not None else np.full(len(of_query), -1), n))
        found = zipf(draw, n * len(of_query), items)
        item.append(-1 - query[-1] if letter == "P3" else found)
        source.append(np.full(n * len(of_query), letter))
    query, request, item, source = (np.concatenate(column) for column in (query, request, item, source))
    order = np.lexsort((item, source, request, place[query]))
    query, request, item, source = (column[order] for column in (query, request, item, source))
    new = np.ones(len(query), bool)
    new[1:] = (np.diff(request) != 0) | (np.diff(item) != 0) | (np.diff(query) != 0)
    query, request, item, source = (column[new] for column in (query, request, item, source))
    null = request < 0
    columns = {
        "query": pa.array(names[query]),
        "request_id": pa.array(np.char.add("r", request.astype(str)), mask=null),
        "user_id": pa.array(request % 1000, mask=null),
        "item_id": pa.array(item),
        "source": pa.array(source),
        "theta": pa.nulls(len(query), pa.float32()),
        "evidence": pa.nulls(len(query), pa.string()),
        "position": pa.nulls(len(query), pa.int32()),
    }
    return pa.table(columns).cast(CANDIDATES_SCHEMA)


def in_own_process(work: Path, workers: int, memory_limit: str) -> tuple[int, float, float, int, int]:
    """(groups, seconds, CPU seconds of all processes, peak RSS in MB of the process, that of its largest worker)."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=measured, args=(work, workers, memory_limit, there))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def measured(work: Path, workers: int, memory_limit: str, answer: Connection) -> None:
    inputs = {name: work / name for name in ("mined", "logs")}
    mined = Mined(work / "mined/candidates.parquet", work / "mined/knowledge.parquet", work / "logs", inputs)
    config = RecordsConfig(workers=workers)
    settings = PartSettings(LabelsConfig(), config.validation_share, TEXT_FIELDS)
    start, done, peaks = time.perf_counter(), threading.Event(), {os.getpid(): 0}
    watch = threading.Thread(target=keep_peaks, args=(peaks, done))
    watch.start()
    with write_folder(work / "records", kind="records", inputs=inputs) as out:
        write_mined(mined, out, config, settings, 0, EngineConfig(memory_limit=memory_limit), work / "parts")
    seconds = time.perf_counter() - start
    done.set()
    watch.join()
    groups = sum(split["groups"] for split in out.counts["splits"].values())
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = peaks.pop(os.getpid())
    answer.send((groups, seconds, sum(u.ru_utime + u.ru_stime for u in used), own, max(peaks.values(), default=0)))


def keep_peaks(peaks: dict[int, int], done: threading.Event) -> None:
    """Notes the peak RSS of this process and its workers, in MB, every 50 ms. (`ru_maxrss` of a child that is started
    by a large process begins with that one's.)"""
    while not done.wait(0.05):
        for pid in (os.getpid(), *(worker.pid for worker in multiprocessing.active_children())):
            with suppress(OSError):
                peaks[pid] = bytes_of("VmHWM", pid) >> 20


if __name__ == "__main__":
    run_command(main)
