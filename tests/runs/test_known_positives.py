"""Known positives of a query: which of them a batch carries, for whatever spelling, and how many are left out."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import WORDS, sparse, tiny_experiment, with_logs

from crops_jax.artifacts.manifest import seal
from crops_jax.baselines.config import AdoreConfig, NegativesConfig
from crops_jax.batches.collate import key_words
from crops_jax.errors import InputError
from crops_jax.labels import LabelsConfig
from crops_jax.losses.config import InfoNCEBinaryConfig
from crops_jax.models.config import FrozenConfig
from crops_jax.parallel.sharding import make_mesh
from crops_jax.records import read_items
from crops_jax.runs.folder import RUN, check_folder, open_folder
from crops_jax.runs.known_positives import KnownPositives
from crops_jax.runs.tasks import task_of
from crops_jax.stable_hash import text_keys

ROWS = [("b", 5, "P0"), ("iPhone", 1, "P1"), ("iPhone", 2, "P0"), ("iPhone", 2, "P0"), ("iPhone", 3, "P0"),
        ("iPhone", 4, "X3"), ("iPhone", 9, "P2")]  # fmt: skip


def read(tmp_path, most, **labels):
    query, item, source = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"query": query, "item_id": item, "source": source}), tmp_path / "candidates.parquet")
    return KnownPositives.read(tmp_path / "candidates.parquet", LabelsConfig(**labels), lambda ids: 100 + ids, most)


def of(known, *queries):
    found = known.of(key_words(np.append(text_keys(queries), -1)))
    assert (found[-1] == -1).all(), "a padding row knows nothing"
    return [{int(low) for high, low in row if high >= 0} for row in found[:-1]]


def test_positives_of_any_search_under_any_spelling(tmp_path):
    known = read(tmp_path, 8)
    assert of(known, "iphone", "b", "nobody") == [{101, 102, 103, 109}, {105}, set()]
    assert of(read(tmp_path, 8, sources=("P0", "X3")), "iphone") == [{102, 103}], "of the sources that take part"


def test_of_more_the_most_frequent_stay_and_the_rest_is_told(tmp_path, capsys):
    assert of(read(tmp_path, 1), "iphone", "b") == [{102}, {105}]
    assert "3 of 5 known positives are left out, of 1 queries that have more than 1" in capsys.readouterr().err


def test_batches_carry_them(tmp_path):
    e = with_logs(sparse(tiny_experiment(tmp_path)))
    e = replace(e, loss=InfoNCEBinaryConfig(), input=replace(e.input, known_positives=3))
    task = task_of(e)
    mesh = make_mesh(e.mesh)
    batches = task.open(task.rounds[0], None, mesh, False).batches
    batch = batches.load(batches.start()).batch
    assert batch.known.shape == task.abstract_batch(mesh).known.shape == (16, 3, 2)
    keys = read_items(e.folder("logs")).keys(e.text.field_order)
    word = {key: number for number, key in enumerate(map(tuple, key_words(text_keys(WORDS)).tolist()))}
    for query, known in zip(batch.query_key.tolist(), batch.known.tolist(), strict=True):
        number = word.get(tuple(query))
        clicked = [] if number is None else key_words(keys(np.array([number, number + 8]))).tolist()
        assert sorted(known) == sorted([*clicked, *[[-1, -1]] * (3 - len(clicked))])
    with pytest.raises(InputError, match=r"is of no use without loss\.mask_duplicate_ids"):
        task_of(replace(e, loss=InfoNCEBinaryConfig(mask_duplicate_ids=False)))


def _adore(e):
    frozen = FrozenConfig(towers=("document",), tau=True)
    model = replace(e.model, frozen=frozen, tie_towers=False, init_from="star")
    return replace(e, negatives=AdoreConfig(), model=model)


@pytest.mark.parametrize("arm", [
    lambda e: replace(e, input=replace(e.input, known_positives=3)),
    lambda e: replace(e, negatives=NegativesConfig(count=1, rounds=2)),
    _adore,
], ids=["known positives", "mined negatives", "adore"])  # fmt: skip
def test_a_run_goes_on_with_the_candidates_and_items_that_it_began_with(arm, tmp_path):
    plain = with_logs(sparse(tiny_experiment(tmp_path)))
    assert not {"candidates", "items"} & task_of(plain).identity().keys(), "its shards are all that it reads"
    e = arm(plain)
    began = task_of(e).identity()
    open_folder(e.arm_folder("train"), e, began)

    with_logs(plain)  # mined again: other manifests, the same bytes
    seal(e.folder("mined"), kind="mined", config="of another version", inputs={"logs": e.folder("logs")}, counts={})
    check_folder(e.arm_folder("train"), e, task_of(e).identity())

    candidates = e.folder("mined") / "candidates.parquet"
    pq.write_table(pq.read_table(candidates).slice(1), candidates)
    seal(e.folder("mined"), kind="mined", config=None, inputs={"logs": e.folder("logs")}, counts={})
    now = task_of(e).identity()
    assert {name for name in now if now[name] != began[name]} == {"candidates"}
    with pytest.raises(InputError, match="the candidates changed since the run began"):
        check_folder(e.arm_folder("train"), e, now)

    earlier = e.arm_folder("train") / RUN  # as 0.9.1 wrote it
    known = json.loads(earlier.read_text())
    earlier.write_text(json.dumps({name: known[name] for name in ("config", "shards", "tokenizer")}))
    check_folder(e.arm_folder("train"), e, now)
