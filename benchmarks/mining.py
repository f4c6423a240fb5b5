"""What the data engine mines a second, on logs with busy users, and what it needs of memory and disk.

    python benchmarks/mining.py --candidates 2_000_000

Makes the logs of one day in a scratch folder, in blocks: Zipf's users, queries and items, and a robot with 2 % of all
searches and feed rows, which is not left out. Mines them, labels what is mined and writes its shards; and then
computes P1 and P2 before theta once more, in DuckDB's SQL as one writes it by hand, with the same memory and threads.
theta is a STAND-IN: a hash of the two texts, above alpha for a tenth of all pairs. P3 is off. Each side runs in a
process of its own; the table says what it took.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from memory import bytes_of

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import MANIFEST, read_manifest, seal
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError, run_command
from crops_jax.labels import LabelsConfig
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.logs.tables import write_batches
from crops_jax.mining.config import (
    FunnelConfig,
    MiningConfig,
    QueryLevelConfig,
    SystemLevelConfig,
    WorldKnowledgeConfig,
)
from crops_jax.mining.train_day import mine
from crops_jax.progress import stage
from crops_jax.records import RecordsConfig
from crops_jax.records.parts import PartSettings
from crops_jax.records.workers import Mined, write_mined
from crops_jax.report.tables import Table

T0, DAY, BLOCK = 1_750_000_000_000, 86_400_000, 1 << 20
A_SEARCH, ROBOT, CLICKS = 20, 0.02, 0.15  # candidates a search, the robot's share, clicks an exposed candidate
P1, P2 = "P1: interactions after reformulations", "P2: feed interactions around queries"
SIMILAR = "theta of the queries of reformulations"  # within P1
SHARDS = "labels and shards"
STAGES = {  # stage of `mine` -> the rows that it works on
    "checking the train day": ("searches", "candidates", "feed", "items"),
    "numbering searches": ("searches",),
    P1: ("searches", "candidates"),
    P2: ("searches", "feed"),
    "unique pairs of P1 and P2": ("pairs",),
    "theta of P1 and P2 pairs": ("pairs",),
    "unique pairs of X3, U2 and F1": ("candidates",),  # these two with --funnel-alpha
    "theta of X3, U2 and F1 pairs": ("funnel_pairs",),
    "writing candidates": ("written",),
    SHARDS: ("groups",),
}


def main() -> None:
    args = arguments()
    if args.side:
        print(json.dumps({"mine": mine_side, "sql": sql_side}[args.side](args)))
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        logs = args.logs or Path(scratch) / "logs"
        if not (logs / MANIFEST).exists():
            with stage("making the logs"):
                make_logs(logs, args.candidates, args.seed)
        rows = read_manifest(logs)["counts"]
        if rows["candidates"] != args.candidates:
            raise InputError(f"--logs {logs}", f"holds {rows['candidates']} candidates: name another folder")
        ours = run("mine", args, logs, scratch)
        show(rows, ours)  # now: the other side may need more memory than there is
        compare(ours, run("sql", args, logs, scratch))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--candidates", type=int, default=2_000_000, help="a twentieth of it are searches, a quarter feed"
    )
    parser.add_argument("--memory-limit", default="4GB", help="of DuckDB, on both sides")
    parser.add_argument("--threads", type=int, default=0, help="of DuckDB, on both sides; 0: one a core")
    parser.add_argument(
        "--funnel-alpha", type=float, help="theta's threshold for X3, U2 and F1 too; none: all are kept"
    )
    parser.add_argument("--scratch", default=None, help="folder for logs and spill, which go away at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=("mine", "sql"), default="", help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help="folder to keep the logs in; those that are there are taken")
    return parser.parse_args()


def run(side: str, args: argparse.Namespace, logs: Path, scratch: str) -> dict:
    """One side in a process of its own: its answer, and the seconds of each stage that it told."""
    flags = [f"--side={side}", f"--logs={logs}", f"--scratch={scratch}", f"--memory-limit={args.memory_limit}"]
    flags += [] if args.funnel_alpha is None else [f"--funnel-alpha={args.funnel_alpha}"]
    command = [sys.executable, __file__, *flags, f"--threads={args.threads}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        told = []
        for line in process.stderr:
            print(line, end="", file=sys.stderr)
            told.append(line)
        answer = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"side {side!r} ended with code {process.returncode}")
    seconds = dict(re.findall(r"^ {3}(.*): (\d+\.\d) s$", "".join(told), re.MULTILINE))
    return json.loads(answer) | {"stages": {name: float(s) for name, s in seconds.items()}}


class StandInTheta:
    """No model: a hash of the two texts, above 0.6 for a tenth of all pairs; all queries are similar."""

    def __init__(self):
        self._connection = duckdb.connect()

    def scores(self, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        pairs = pa.table({"query": pa.array(queries, pa.string()), "text": pa.array(texts, pa.string())})
        hashed = self._connection.from_arrow(pairs).project(f"hash(query, text) % {1 << 24}")
        (uniform,) = hashed.fetchnumpy().values()
        return ((uniform / (1 << 24)) ** (np.log(0.6) / np.log(0.9))).astype(np.float32)

    def query_similarity(self, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        return np.ones(len(a), np.float32)


def mine_side(args: argparse.Namespace) -> dict:
    engine = EngineConfig(args.memory_limit, args.scratch, threads=args.threads)
    config = MiningConfig(
        world_knowledge=WorldKnowledgeConfig(enabled=False),
        funnel=FunnelConfig(args.funnel_alpha),
        max_searches_per_user=1 << 60,  # the robot stays
        engine=engine,
    )
    start, folder = time.monotonic(), Path(args.scratch) / "mined"
    with Watch(args.scratch) as watch:
        with write_folder(folder, kind="mined") as out:
            counts = mine(args.logs, out, StandInTheta(), config)
            mined = time.monotonic() - start
        with stage(SHARDS):
            groups = write_shards(args, folder, engine)
    rejects = json.loads((folder / "rejects.json").read_text())
    return {
        "seconds": mined,
        "pairs": rejects["theta"]["pairs_scored"],
        "funnel_pairs": rejects.get("funnel", {}).get("pairs_scored", 0),
        "groups": groups,
        "counts": {name: counts[name] for name in ("candidates", "P1", "P2")},
    } | watch.facts()


def write_shards(args: argparse.Namespace, mined: Path, engine: EngineConfig) -> int:
    """Labels what is mined, writes its shards, and gives the number of groups."""
    inputs = {"mined": mined, "logs": args.logs}
    source = Mined(mined / "candidates.parquet", mined / "knowledge.parquet", args.logs, inputs)
    config = RecordsConfig(workers=args.threads)
    settings = PartSettings(LabelsConfig(), config.validation_share, TEXT_FIELDS)
    scratch = Path(args.scratch)
    with write_folder(scratch / "records", kind="records", inputs=inputs) as out:
        write_mined(source, out, config, settings, 0, engine, scratch / "parts")
    return sum(split["groups"] for split in out.counts["splits"].values())


SQL = """
CREATE TEMP TABLE p1 AS
WITH s AS (SELECT *, ts // {window} AS bucket FROM read_parquet('{logs}/train/searches.parquet')),
  later AS (SELECT * FROM s UNION ALL SELECT * REPLACE (bucket - 1 AS bucket) FROM s)
SELECT a.request_id, a.query, c.item_id, b.request_id AS next_request_id, b.ts - a.ts AS gap_ms
FROM s a JOIN later b USING (user_id, bucket) JOIN read_parquet('{logs}/train/candidates.parquet') c
  ON c.request_id = b.request_id
WHERE b.ts - a.ts BETWEEN 1 AND {window} AND a.query <> b.query
  AND c.stage = 'exposed' AND (c.clicked OR c.liked OR c.watch_ms >= {watch});

CREATE TEMP TABLE p2 AS
WITH asked AS (SELECT DISTINCT query, user_id, ts FROM read_parquet('{logs}/train/searches.parquet')),
  seen AS (SELECT DISTINCT user_id, item_id, ts FROM read_parquet('{logs}/train/feed.parquet')
           WHERE clicked OR liked OR watch_ms >= {watch}),
  rows AS (SELECT user_id, ts, item_id, 1 AS seen FROM seen SEMI JOIN asked USING (user_id)
           UNION ALL SELECT DISTINCT user_id, ts, NULL, 0 FROM asked),
  placed AS (SELECT *, (sum(seen) OVER (PARTITION BY user_id ORDER BY ts, seen, item_id ROWS UNBOUNDED PRECEDING)
                        - seen) // {most} AS block FROM rows),
  around AS (SELECT user_id, ts, item_id, block + unnest([-1, 0, 1]) AS block FROM placed WHERE seen = 1),
  near AS (SELECT asked.query, asked.user_id, around.item_id, min(abs(around.ts - asked.ts)) AS distance_ms
           FROM asked JOIN (SELECT * FROM placed WHERE seen = 0) p USING (user_id, ts) JOIN around
             ON around.user_id = asked.user_id AND around.block = p.block
           WHERE abs(around.ts - asked.ts) <= {day} GROUP BY ALL)
SELECT * FROM near
QUALIFY row_number() OVER (PARTITION BY query, user_id ORDER BY distance_ms, item_id) <= {most};
"""


def sql_side(args: argparse.Namespace) -> dict:
    query, system = QueryLevelConfig(), SystemLevelConfig()
    sql = SQL.format(logs=args.logs, window=query.window_ms, watch=system.min_watch_ms, day=system.window_ms,
                     most=system.max_items_per_user)  # fmt: skip
    threads = {"threads": args.threads} if args.threads else {}
    with Watch(args.scratch) as watch:
        folder = tempfile.mkdtemp(prefix="crops-spill-", dir=args.scratch)
        connection = duckdb.connect(config={"memory_limit": args.memory_limit, "temp_directory": folder, **threads})
        seconds = {}
        for statement in sql.split(";\n")[:2]:
            start = time.monotonic()
            connection.execute(statement)
            seconds[statement.split()[3]] = time.monotonic() - start
        rows = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in seconds}
        pairs = "SELECT count(*) FROM (SELECT query, item_id FROM p1 UNION SELECT query, item_id FROM p2)"
        pairs = connection.execute(pairs).fetchone()[0]
    return {"seconds": seconds, "rows": rows, "pairs": pairs} | watch.facts()


class Watch:
    """The most bytes that lay in the spill folders of a scratch folder, and that a worker process held.

    Both are looked at ten times a second: `ru_maxrss` of a child that a large process starts begins with that one's.
    """

    def __init__(self, scratch: str):
        self.scratch, self.spilled, self.worker, self._over = Path(scratch), 0, 0, threading.Event()

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            sizes = 0
            for path in self.scratch.glob("crops-spill-*/**/*"):
                with suppress(OSError):  # it was removed just now
                    sizes += path.stat().st_size
            self.spilled = max(self.spilled, sizes)
            for worker in multiprocessing.active_children():
                with suppress(OSError):
                    self.worker = max(self.worker, bytes_of("VmHWM", worker.pid))

    def facts(self) -> dict[str, float]:
        """Peak RSS of this process and of its largest worker, and the spill: GB."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return {"rss": own, "worker": self.worker / 1e9, "spill": self.spilled / 1e9}


def make_logs(logs: Path, candidates: int, seed: int) -> dict[str, int]:
    """Writes a sealed log folder with one day and returns the rows of each table."""
    searches = candidates // A_SEARCH
    rng = np.random.default_rng(seed)
    # People are flatter than queries: the busiest does a hundred times what the median does, not ten thousand times.
    users, queries, items = Zipf(searches // 2, searches // 250), Zipf(searches // 4), Zipf(searches)
    rows = {"items": write_batches("items", item_rows(items.count), logs / "items.parquet")}
    asked = (search_rows(rng, first, count, users, queries) for first, count in blocks(searches, BLOCK))
    rows["searches"] = write_batches("searches", asked, logs / "train/searches.parquet")
    shown = (candidate_rows(rng, first, count, items) for first, count in blocks(searches, BLOCK // A_SEARCH))
    rows["candidates"] = write_batches("candidates", shown, logs / "train/candidates.parquet")
    watched = (feed_rows(rng, count, users, items) for _, count in blocks(candidates // 4, BLOCK))
    rows["feed"] = write_batches("feed", watched, logs / "train/feed.parquet")
    seal(logs, kind="logs", config=None, inputs={}, counts=rows)
    return rows


class Zipf:
    """Numbers below `count`, the smaller the more frequent: 1 / (number + flat)."""

    def __init__(self, count: int, flat: int = 10):
        self.count, self._flat = max(count, 1_000), max(flat, 10)
        self._low, self._high = np.log(self._flat), np.log(self.count + self._flat)

    def draw(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> np.ndarray:
        return (np.exp(rng.uniform(self._low, self._high, shape)) - self._flat).astype(np.int64).clip(0, self.count - 1)


def blocks(total: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(size, total - first)) for first in range(0, total, size))


def item_rows(count: int) -> Iterator[dict]:
    for first, rows in blocks(count, BLOCK):
        ids = np.arange(first, first + rows)
        text = joined("item", ids, " on topic", ids % 4_999, " in style", ids % 997, " of maker", ids % 83)
        yield {"item_id": ids, "ocr_cover": text, "photo_caption": joined("seen in", ids % 7_919),
               "keyword": joined("k", ids % 499), "click_query": pa.nulls(rows, pa.string()),
               **dict.fromkeys(COUNTERS, np.ones(rows, np.int64))}  # fmt: skip


def search_rows(rng: np.random.Generator, first: int, count: int, users: Zipf, queries: Zipf) -> dict:
    """Every second search comes 5 to 120 s after the one before it, of the same user, with other words."""
    user = 1 + users.draw(rng, count)
    user[rng.random(count) < ROBOT] = 0
    ts = T0 + rng.integers(0, DAY - 200_000, count)
    user[1::2] = user[: count // 2 * 2 : 2]
    ts[1::2] = ts[: count // 2 * 2 : 2] + rng.integers(5_000, 120_000, count // 2)
    query = queries.draw(rng, count)
    return {"request_id": joined("r", np.arange(first, first + count)), "user_id": user,
            "query": joined("find", query, " of topic", query % 4_999), "ts": ts}  # fmt: skip


def candidate_rows(rng: np.random.Generator, first: int, count: int, items: Zipf) -> dict:
    """Twenty different items a search: eight exposed, eight ranked, four filtered."""
    request = pa.array(np.repeat(np.arange(count), A_SEARCH))
    item = (items.draw(rng, count)[:, None] + np.cumsum(rng.integers(1, 40, (count, A_SEARCH)), axis=1)) % items.count
    place = np.tile(np.arange(A_SEARCH), count)
    exposed = place < 8
    clicked = exposed & (rng.random(len(place)) < CLICKS)
    stages = pa.array(["exposed", "ranked", "filtered"]).take(pa.array(place // 8))
    return {"request_id": joined("r", np.arange(first, first + count)).take(request), "item_id": item.ravel(),
            "stage": stages, "position": place % 8 + 1, "clicked": clicked,
            "liked": clicked & (rng.random(len(place)) < 0.1),
            "watch_ms": np.where(exposed, rng.integers(0, 12_000, len(place)), 0)}  # fmt: skip


def feed_rows(rng: np.random.Generator, count: int, users: Zipf, items: Zipf) -> dict:
    user = 1 + users.draw(rng, count)
    user[rng.random(count) < ROBOT] = 0
    return {"user_id": user, "item_id": items.draw(rng, count), "ts": T0 + rng.integers(0, DAY, count),
            "clicked": rng.random(count) < 0.15, "liked": rng.random(count) < 0.02,
            "watch_ms": rng.integers(0, 12_000, count), "duration_ms": np.full(count, 30_000)}  # fmt: skip


def joined(*parts: str | np.ndarray) -> pa.Array:
    """Words and numbers as one text a row."""
    texts = [p if isinstance(p, str) else pa.array(p).cast(pa.string()) for p in parts]
    return pc.binary_join_element_wise(*texts, " ")


def line(name: str, seconds: float, rows: int) -> list[str]:
    return [name, f"{seconds:.1f}", f"{rows / max(seconds, 0.05):,.0f}"]


def show(rows: dict[str, int], ours: dict) -> None:
    told = rows | {name: ours[name] for name in ("pairs", "funnel_pairs", "groups")}
    told["written"] = ours["counts"]["candidates"]
    lines = []
    for name, of in STAGES.items():
        if name in ours["stages"]:
            lines.append(line(name, ours["stages"][name], sum(told[table] for table in of)))
    lines.insert(-1, line("all of mining", ours["seconds"], sum(rows.values())))
    print(f"python {shlex.join(sys.argv)}")
    print(", ".join(f"{count:,} {table}" for table, count in rows.items()))
    print(Table("", ["stage", "s", "rows/s"], lines).text())
    print(f"theta's stand-in scored {ours['pairs']:,} pairs; written: "
          + ", ".join(f"{count:,} {name}" for name, count in ours["counts"].items()))  # fmt: skip
    show_memory("ours", ours)


def show_memory(name: str, side: dict) -> None:
    gigabytes = {of: f"{side[of]:.1f} GB" for of in ("rss", "worker", "spill")}
    print(
        f"{name}: peak RSS {gigabytes['rss']}, of a worker {gigabytes['worker']}, spill {gigabytes['spill']}",
        flush=True,
    )


def compare(ours: dict, by_hand: dict) -> None:
    show_memory("SQL by hand", by_hand)
    mined = {"p1": ours["stages"][P1] - ours["stages"][SIMILAR], "p2": ours["stages"][P2]}
    lines = [[name.upper(), f"{mined[name]:.1f}", f"{by_hand['seconds'][name]:.1f}",
              f"{mined[name] / by_hand['seconds'][name]:.2f}"] for name in mined]  # fmt: skip
    whole = sum(mined.values()), sum(by_hand["seconds"].values())
    lines.append(["both", *(f"{s:.1f}" for s in whole), f"{whole[0] / whole[1]:.2f}"])
    print(Table("", ["before theta", "ours, s", "SQL by hand, s", "ratio"], lines).text())
    print(
        f"unique pairs: ours {ours['pairs']:,}, by hand {by_hand['pairs']:,} (by hand an item seen again takes places)"
    )


if __name__ == "__main__":
    run_command(main)
