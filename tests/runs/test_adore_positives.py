"""What ADORE takes for a query's positives: whatever spelling was typed, and every item of a clicked text."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny import WORDS, sparse, tiny_experiment, with_logs

from crops_jax.artifacts.manifest import seal
from crops_jax.baselines.config import AdoreConfig
from crops_jax.batches.collate import key_words
from crops_jax.runs.tasks import task_of
from crops_jax.stable_hash import text_keys


def test_clicks_under_another_spelling_and_copies_of_clicked_items_are_positives(tmp_path):
    e = with_logs(sparse(tiny_experiment(tmp_path)))
    path = e.folder("logs") / "items.parquet"
    items = pq.read_table(path).to_pylist()
    items[39] = {**items[0], "item_id": 39, "keyword": items[0]["keyword"].upper()}  # a copy of what `pump` clicked
    pq.write_table(pa.Table.from_pylist(items, schema=pq.read_schema(path)), path)
    seal(e.folder("logs"), kind="logs", config=None, inputs={}, counts={})
    path = e.folder("mined") / "candidates.parquet"
    rows = pq.read_table(path)
    upper = pa.array([q.upper() if q == "lamp" else q for q in rows["query"].to_pylist()])
    pq.write_table(rows.set_column(rows.column_names.index("query"), "query", upper).sort_by("query"), path)
    frozen = replace(e.model.frozen, towers=("document",), tau=True)
    e = replace(e, negatives=AdoreConfig(), model=replace(e.model, frozen=frozen, tie_towers=False, init_from="star"))
    keys, found = task_of(e)._positives
    of = {tuple(key): {*rows.tolist()} - {-1} for key, rows in zip(keys.tolist(), found, strict=True)}
    pump, lamp, drill = (of[tuple(key)] for key in key_words(text_keys(WORDS[:3])).tolist())
    assert pump == {0, 8, 39}, "rows of the corpus are item ids here"
    assert lamp == {1, 9} and drill == {2, 10}
    assert np.asarray(found).shape == (len(WORDS), 3)
