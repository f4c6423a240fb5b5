"""Which queries are shown, and the training evidence behind what is found for them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import write_logs, write_mined

from crops_jax.comparison.cases import cases
from crops_jax.mining.config import MiningConfig
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
    logs, mined = write_logs(tmp_path), write_mined(tmp_path)
    methods = {"A": lambda queries, k: np.array([[4, 0, 1], [3, 5, 0]])}
    found = cases([("TRANSFORMER", 1.0), ("other", -1.0)], methods, logs, mined, MiningConfig())
    first, second = (case["lists"]["A"] for case in found)
    assert first[0]["evidence"] == ["P2: watched in the feed by 2 users who asked this"]
    assert first[1]["evidence"][0] == "P0: clicked for this query in 1 search"
    assert "P3: a language model was shown it" in first[1]["evidence"][1] and first[2]["evidence"] == []
    assert [entry["grade"] for entry in first] == [2.0, None, None], "in whatever spelling; the others are unknown"
    assert first[0]["text"] == "transformer winding · k4" and [case["seen"] for case in found] == [True, False]
    assert all(entry["evidence"] == [] for entry in second)
