import doctest
import subprocess
import sys
import threading

import jax
import numpy as np
import pyarrow as pa
import pytest

from crops_jax import input_pipeline
from crops_jax.artifacts import write_folder
from crops_jax.batch import IdFeatures, Tokens
from crops_jax.errors import InputError
from crops_jax.id_features import IdConfig, IdHasher
from crops_jax.input_pipeline import InputConfig, TrainBatches, collate, permuted
from crops_jax.labels import Group
from crops_jax.records import Items, RecordsConfig, RecordsReader, write_records
from crops_jax.schema import TEXT_FIELDS
from crops_jax.text import TextConfig, Tokenizer, train_tokenizer

N, K = 45, 4
CONFIG = InputConfig(batch_queries=8, docs_per_query=K, seed=3, prefetch=2)


def text_of(item):
    return f"item number {item}" + " long" * (item % 4)


def make_groups():
    """Group g holds g % 4 + 1 documents: g, g + 1, ... ; every third query string is shared by two groups."""
    for g in range(N):
        ids = [(g + i) % 30 for i in range(g % K + 1)]
        place = np.arange(len(ids), dtype=np.int32)
        query = f"query {g // 2 * 2 if g % 3 else g}"
        yield Group(f"r{g}", g, query, np.array(ids), 5 - place, 1 << place)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    ids = list(range(30))
    table = pa.table({"item_id": ids, **{name: [text_of(i) for i in ids] for name in TEXT_FIELDS}})
    folder = tmp_path_factory.mktemp("data") / "records"
    with write_folder(folder, kind="records") as out:
        write_records(make_groups(), Items({"items": table}), out, RecordsConfig(shards=3), seed=0)
    return RecordsReader(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = train_tokenizer(map(text_of, range(30)), 300, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    return Tokenizer(TextConfig(tokenizer=str(path), append_eos=True, max_query_tokens=12, max_doc_tokens=24))


def assert_equal_batches(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_every_epoch_is_a_permutation_and_differs_from_the_next(size):
    epochs = [permuted(np.arange(size), size, 11, e) for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(size))
    if size > 5:
        assert not any(np.array_equal(epochs[i], epochs[j]) for i in range(4) for j in range(i))
        assert not np.array_equal(epochs[0], permuted(np.arange(size), size, 12, 0))


def test_the_permutation_looks_random():
    """Fixed points and correlations of a random permutation of 4096: about 1, and 0 with deviation 1/64."""
    order = np.arange(4096)
    epochs = [permuted(order, 4096, 0, e) for e in range(50)]
    assert 0.5 < np.mean([(e == order).sum() for e in epochs]) < 1.6
    correlations = [np.corrcoef(order, e)[0, 1] for e in epochs] + [np.corrcoef(e[:-1], e[1:])[0, 1] for e in epochs]
    assert np.abs(correlations).max() < 4.5 / 64
    assert np.abs(np.mean(correlations)) < 4.5 / 64 / 10


def test_the_order_never_changes_with_the_code_or_the_machine():
    """A run saved by an older version resumes in the same order only while these values stand."""
    assert permuted(np.arange(8), 8, 0, 0).tolist() == [0, 2, 7, 4, 6, 1, 3, 5]
    assert permuted(np.arange(8), 8, 0, np.full(8, 1)).tolist() == [2, 5, 0, 3, 7, 1, 4, 6]


def test_all_six_orders_of_three_groups_occur():
    orders = {tuple(permuted(np.arange(3), 3, 0, e).tolist()) for e in range(60)}
    assert len(orders) == 6


def test_positions_far_into_a_huge_data_set_are_direct():
    size = 500_000_000_000
    there = permuted(np.array([0, size - 1, 123_456_789]), size, 1, np.array([0, 7, 9]))
    assert len(set(there.tolist())) == 3 and there.min() >= 0 and there.max() < size


def test_each_group_is_read_once_an_epoch_across_full_batches(reader, tokenizer):
    batches = TrainBatches(reader, tokenizer, CONFIG, 45)  # 45 steps of 8 = 8 epochs of 45
    read = np.concatenate([batches.groups_at(step) for step in range(45)])
    for epoch in read.reshape(8, N):
        assert sorted(epoch.tolist()) == list(range(N))
    assert len({tuple(epoch) for epoch in read.reshape(8, N).tolist()}) == 8
    assert batches.steps_per_epoch == 45 / 8


def test_a_batch_holds_its_groups_in_contiguous_padded_rows(reader, tokenizer):
    batches = TrainBatches(reader, tokenizer, CONFIG, 10)
    batch, records = batches.batch_at(2), batches.records_at(2)
    assert batch.sizes == (8, 32) and batch.docs.ids.shape == (32, 24) and batch.query.ids.shape == (8, 12)
    assert {a.dtype for a in jax.tree.leaves(batch)} == {np.dtype(np.int32), np.dtype(bool)}
    for b, record in enumerate(records):
        rows = slice(b * K, b * K + len(record))
        rest = slice(b * K + len(record), b * K + K)
        assert batch.query_key[b] == record.query_key
        np.testing.assert_array_equal(batch.doc_key[rows], record.doc_key)
        np.testing.assert_array_equal(batch.label[rows], record.label)
        np.testing.assert_array_equal(batch.source[rows], record.source)
        assert batch.valid[rows].all() and not batch.valid[rest].any()
        assert (batch.doc_key[rest] == -1).all() and not batch.label[rest].any() and not batch.source[rest].any()
        assert not batch.docs.length[rest].any()
        texts = ["\n".join([text_of(i)] * 4) for i in record.item_id.tolist()]
        np.testing.assert_array_equal(batch.docs.ids[rows], tokenizer.encode_documents(texts).ids)
    np.testing.assert_array_equal(batch.owner, np.repeat(np.arange(8), K))


def test_equal_query_strings_share_their_key_in_a_batch(reader, tokenizer):
    batch = collate(reader.read(range(N)), tokenizer, K)
    records = reader.read(range(N))
    for i in range(N):
        for j in range(N):
            assert (batch.query_key[i] == batch.query_key[j]) == (records[i].query == records[j].query)
    assert len(set(batch.query_key.tolist())) < N


def test_resuming_at_any_step_equals_the_straight_run(reader, tokenizer):
    batches = TrainBatches(reader, tokenizer, CONFIG, 9)
    with batches.from_step(0) as stream:
        straight = list(stream)
    assert [step for step, _ in straight] == list(range(9))
    fresh = TrainBatches(RecordsReader(reader.folder), tokenizer, CONFIG, 9)
    with fresh.from_step(6) as stream:
        for step, batch in stream:
            assert_equal_batches(batch, straight[step][1])
    assert step == 8
    other = TrainBatches(reader, tokenizer, InputConfig(batch_queries=8, docs_per_query=K, seed=4), 9)
    assert not np.array_equal(other.groups_at(0), batches.groups_at(0))


@pytest.mark.parametrize("hosts", [2, 8])
def test_slices_of_the_hosts_concatenate_to_the_global_batch(reader, tokenizer, hosts):
    whole = TrainBatches(reader, tokenizer, CONFIG, 9).batch_at(7)
    parts = [TrainBatches(reader, tokenizer, CONFIG, 9, host, hosts).batch_at(7) for host in range(hosts)]
    assert_equal_batches(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), whole)


def test_hashed_ids_make_batches_of_the_same_groups(reader, tokenizer):
    hasher = IdHasher(IdConfig(max_doc_terms=8))
    sparse = TrainBatches(reader, hasher, CONFIG, 9).batch_at(1)
    dense = TrainBatches(reader, tokenizer, CONFIG, 9).batch_at(1)
    assert isinstance(sparse.docs, IdFeatures) and isinstance(dense.docs, Tokens)
    assert sparse.docs.ids.shape == (32, 1) and sparse.docs.bags.shape == (32, 2, 8)
    np.testing.assert_array_equal(sparse.docs.ids[:, 0] > 0, dense.valid)
    np.testing.assert_array_equal(sparse.doc_key, dense.doc_key)


def test_bad_input_is_listed(reader, tokenizer):
    with pytest.raises(InputError) as caught:
        TrainBatches(reader, tokenizer, InputConfig(batch_queries=8, docs_per_query=3), 9, 0, 3)
    assert len(caught.value.problems) == 2 and "a group of 4 documents" in str(caught.value)
    with pytest.raises(InputError, match="holds 4 documents"):
        collate(reader.read(range(N)), tokenizer, 3)
    with pytest.raises(InputError, match="batch_queries: 0 is below 1"):
        InputConfig(batch_queries=0)
    with pytest.raises(IndexError):
        TrainBatches(reader, tokenizer, CONFIG, 9).batch_at(9)


def test_the_reading_thread_hands_over_its_error_and_ends_when_closed(reader, tokenizer):
    class Broken(TrainBatches):
        def batch_at(self, step):
            if step == 1:
                raise InputError("shard", "damaged")
            return super().batch_at(step)

    with Broken(reader, tokenizer, CONFIG, 9).from_step(0) as stream:
        assert next(stream)[0] == 0
        for _ in range(2):
            with pytest.raises(InputError, match="shard: damaged"):
                next(stream)
    unread = TrainBatches(reader, tokenizer, CONFIG, 1000).from_step(0)
    next(unread)
    unread.close()
    assert unread.waited_s > 0
    assert not [t for t in threading.enumerate() if t.name == "input-pipeline"]


def test_grain_checkpoints_resume_on_whole_batches(reader, tokenizer):
    grain = pytest.importorskip("grain")
    batches = TrainBatches(reader, tokenizer, CONFIG, 5)
    dataset = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(num_threads=1))
    # As lists of arrays, since the check compares elements with numpy's assert_equal.
    grain.experimental.assert_equal_output_after_checkpoint(dataset.map(jax.tree.leaves))
    assert_equal_batches(list(dataset)[4], batches.batch_at(4))


def test_imports_without_grain_and_tensorflow_datasets():
    code = (
        "import sys\nfor name in ('grain', 'tensorflow_datasets', 'duckdb', 'scann'): sys.modules[name] = None\n"
        "import crops_jax.input_pipeline"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_doctest():
    result = doctest.testmod(input_pipeline)
    assert result.attempted > 0 and result.failed == 0
