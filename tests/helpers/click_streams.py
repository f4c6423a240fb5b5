"""Click-streams as files, and what came of them in a log folder."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def parquet(folder: Path, events: list[dict], items: list[dict]) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    (folder / "events").mkdir(exist_ok=True)
    for part in range(3):  # whose rows lie in any order
        pq.write_table(pa.Table.from_pylist(events[part::3]), folder / "events" / f"part-{part}.parquet")
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    return folder / "events", folder / "items.parquet"


def rows(logs: Path, table: str) -> list[dict]:
    return pq.read_table(logs / f"{table}.parquet").to_pylist()


def facts_of(logs: Path) -> dict:
    """Who asked what when, what was shown for it, and what the feed showed, whatever the requests are called."""
    searches = {row["request_id"]: (row["user_id"], row["query"], row["ts"]) for row in rows(logs, "test/searches")}
    shown = [(*searches[row.pop("request_id")], *row.values()) for row in rows(logs, "test/candidates")]
    feed = [tuple(row.values()) for row in rows(logs, "test/feed")]
    return {"searches": sorted(searches.values()), "shown": sorted(shown), "feed": sorted(feed)}
