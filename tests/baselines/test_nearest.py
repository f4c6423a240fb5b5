"""Mined negatives: the nearest documents of a query, without what it is known to like."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.baselines.nearest import nearest_negatives, write_candidates
from crops_jax.labels import LabelsConfig, read_groups
from crops_jax.mining.candidates import CANDIDATES_SCHEMA


def test_the_nearest_documents_without_the_positive_ties_by_smaller_id():
    angles = np.deg2rad([0, 10, -10, 40, 90, 180])
    docs = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ids = np.array([3, 5, 8, 9, 11, 20])
    found = nearest_negatives(docs[:1], docs, ids, [np.array([3])], top=3)
    assert found[0].tolist() == [5, 8, 9]
    assert nearest_negatives(docs[:1], docs, ids, [np.array([3, 8, 20])], top=99)[0].tolist() == [5, 9, 11]


def test_clicks_and_mined_negatives_make_groups_like_any_other_candidates(tmp_path):
    rows = [("b", "r2", 7, 2, "P0"), ("a", "r1", 7, 1, "P0")]
    columns = dict(zip(("query", "request_id", "user_id", "item_id", "source"), zip(*rows, strict=True), strict=True))
    nulls = {"theta": [None, None], "evidence": [None, None]}
    positives = pa.table({n: list((columns | nulls)[n]) for n in CANDIDATES_SCHEMA.names}, schema=CANDIDATES_SCHEMA)
    path = tmp_path / "candidates.parquet"
    write_candidates(positives, ["a", "b"], [np.array([4, 5, 6]), np.array([1])], path)
    assert pq.read_table(path)["request_id"].to_pylist() == [None, None, None, "r1", None, "r2"]
    groups = list(read_groups(path, LabelsConfig(sources=("P0", "N1"))))
    assert [(g.query, g.item_id.tolist(), g.label.tolist()) for g in groups] == [
        ("a", [1, 4, 5, 6], [4, 1, 1, 1]), ("b", [2, 1], [4, 1])
    ]  # fmt: skip
