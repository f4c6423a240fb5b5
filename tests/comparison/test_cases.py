"""Which queries are shown, and the training evidence behind what is found for them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import T0, candidate, item, search, write, write_day

from crops_jax.comparison.cases import cases
from crops_jax.retrieval.gains import choose


def eval_folder(folder, values):
    """recall@10 of (set, query) events."""
    rows = [{"set": s, "metric": m, "query": q, "value": v} for (s, q), v in values.items()
            for m in ("recall@10", "recall@50")]  # fmt: skip
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "per_query.parquet")
    return folder


def test_the_largest_gains_and_the_largest_loss_are_chosen(tmp_path):
    ours = {
        ("CT", "a"): 1.0,
        ("QR", "a"): 1.0,
        ("CT", "b"): 0.5,
        ("CT", "c"): 0.0,
        ("CT", "d"): 0.5,
        ("shown", "b"): 9.0,
    }
    base = {
        ("CT", "a"): 0.5,
        ("QR", "a"): 0.0,
        ("CT", "b"): 0.4,
        ("CT", "c"): 1.0,
        ("CT", "d"): 0.5,
        ("shown", "b"): 0.0,
    }
    folders = eval_folder(tmp_path / "ours", ours), eval_folder(tmp_path / "base", base)
    chosen = choose(*folders, "recall@10")
    assert [query for query, _ in chosen] == ["a", "b", "c"], "d neither gains nor loses; what was shown is no gain"
    assert [gain for _, gain in chosen] == pytest.approx([1.5, 0.1, -1.0])


def test_evidence_names_the_query_and_the_feed(tmp_path):
    logs, mined = tmp_path / "logs", tmp_path / "mined"
    mined.mkdir()
    write(logs / "items.parquet", "items", [item(i, f"item {i}") for i in range(4)])
    write(logs / "judgments.parquet", "judgments", [{"query": "Q", "item_id": 1, "grade": 2.0}])
    searches = [search("r1", 1, "q", T0), search("r2", 1, "q reworded", T0 + 1000)]
    write_day(logs, "train", searches, [candidate("r1", 0, clicked=True)], [])
    rows = [("q", 1, "P1", "r2"), ("q", 1, "P2", "77"), ("q", 0, "P0", None), ("q", 2, "X3", None)]
    columns = dict(zip(("query", "item_id", "source", "evidence"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), mined / "candidates.parquet")
    found = cases(
        [("q", 1.0), ("other", -1.0)], {"A": lambda queries, k: np.array([[1, 0, 2], [3, 1, 0]])}, logs, mined
    )
    first, second = (case["lists"]["A"] for case in found)
    assert first[0]["evidence"] == [
        "P1: consumed after rewording to “q reworded”", "P2: watched in the feed by user 77, who asked this",
    ]  # fmt: skip
    assert first[1]["evidence"] == ["P0: clicked for this query"] and first[2]["evidence"] == []
    assert [entry["grade"] for entry in first] == [2.0, None, None], "in whatever spelling; the others are unknown"
    assert first[0]["text"] == "item 1" and [case["seen"] for case in found] == [True, False]
    assert all(entry["evidence"] == [] for entry in second)
