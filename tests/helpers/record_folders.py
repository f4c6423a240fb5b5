"""Folders of records, written from groups that are made up."""

import numpy as np
import pyarrow as pa

from crops_jax.artifacts.folders import write_folder
from crops_jax.labels import Group
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.records import Items, RecordsConfig, write_records


def graded(request_id, user_id, query, ids, labels, sources):
    return Group(request_id, user_id, query, np.array(ids), np.array(labels, np.int32), np.array(sources, np.int32))


def items_table(ids):
    columns = {name: pa.array([f"{name} of {i}, größer" for i in ids]) for name in TEXT_FIELDS}
    counters = {name: pa.array([abs(i) * 10 for i in ids], pa.int64()) for name in COUNTERS}
    return pa.table({"item_id": pa.array(ids, pa.int64()), **columns, **counters})


def make_groups(n):
    draw = np.random.default_rng(7)
    groups = []
    for i in range(n):
        ids = [*draw.choice(40, 1 + i % 5, replace=False).tolist(), -1 - i % 3]
        labels = [4] * len(ids[:-1]) + [5]
        groups.append(graded(f"r{i}", i % 6, f"query {i % 9}", ids, labels, [1 << (k % 7) for k in range(len(ids))]))
    return groups


ITEMS = Items({"items": items_table(list(range(40))), "knowledge": items_table([-1, -2, -3])})
TRAIN_ONLY = RecordsConfig(validation_share=0)


def write(folder, groups=None, items=ITEMS, config=TRAIN_ONLY, seed=0):
    with write_folder(folder, kind="records") as out:
        write_records(make_groups(50) if groups is None else groups, items, out, config, seed)
    return folder
