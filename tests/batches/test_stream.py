import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from time import monotonic, sleep

import jax
import numpy as np
import pyarrow as pa
import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.batch import IdFeatures, Tokens
from crops_jax.batches.collate import encode_groups, key_words, padded_batch
from crops_jax.batches.config import InputConfig, PackingConfig
from crops_jax.batches.order import permuted
from crops_jax.batches.prefetch import Prefetcher
from crops_jax.batches.stream import TrainBatches
from crops_jax.errors import InputError
from crops_jax.labels import Group
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.records import Items, RecordsConfig, RecordsReader, write_records
from crops_jax.text.hashed_ids import IdConfig, IdHasher
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer

N, K = 45, 4
CONFIG = InputConfig(batch_queries=8, docs_per_query=K, shards=4, seed=3, prefetch=2)
# Six groups a shard at most, and rows for about four.
PACKED = replace(
    CONFIG,
    batch_queries=24,
    packing=PackingConfig(doc_row_tokens=32, doc_rows=24, query_row_tokens=48, query_rows=4, lookahead=3),
)


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


def walk(batches, steps, position=None):
    """The next `steps` batches as a list of Loaded."""
    position, found = batches.start() if position is None else position, []
    for _ in range(steps):
        found.append(batches.load(position))
        position = found[-1].position
    return found


@pytest.mark.parametrize("config", [CONFIG, PACKED], ids=["padded", "packed"])
def test_each_shard_reads_its_part_of_every_epoch_once(reader, tokenizer, config):
    """Shard s of 4 reads places s, s+4, ... of epochs that follow each other: any 45 of its places in a row are 45/4
    of each of four epochs. After many batches no group was read twice as often as another."""
    batches = TrainBatches(reader, tokenizer, config)
    loaded = walk(batches, 60)
    order = permuted(np.arange(45 * 20) % 45, 45, 3, np.arange(45 * 20) // 45)
    last = loaded[-1].position
    for s in range(4):
        alone = walk(TrainBatches(reader, tokenizer, config, [s]), 60)
        read = np.concatenate([one.group_numbers for one in alone])
        put_off = [p for p in last[s, 1:] if p >= 0]
        expected = [order[s + 4 * place] for place in range(last[s, 0]) if place not in put_off]
        assert sorted(read.tolist()) == sorted(expected)
    counts = np.bincount(np.concatenate([one.group_numbers for one in loaded]), minlength=N)
    assert counts.min() > 0 and counts.max() - counts.min() <= 3


def test_a_batch_holds_its_groups_in_contiguous_padded_rows(reader, tokenizer):
    loaded = walk(TrainBatches(reader, tokenizer, CONFIG), 3)[2]
    batch, records = loaded.batch, reader.read(loaded.group_numbers)
    assert batch.sizes == (8, 32) and batch.docs.ids.shape == (32, 24) and batch.query.ids.shape == (8, 12)
    assert {a.dtype for a in jax.tree.leaves(batch)} == {np.dtype(np.int32), np.dtype(bool)}
    for b, record in enumerate(records):
        rows = slice(b * K, b * K + len(record))
        rest = slice(b * K + len(record), b * K + K)
        np.testing.assert_array_equal(batch.query_key[b], key_words(np.array([record.query_key]))[0])
        np.testing.assert_array_equal(batch.doc_key[rows], key_words(record.doc_key))
        np.testing.assert_array_equal(batch.label[rows], record.label)
        np.testing.assert_array_equal(batch.source[rows], record.source)
        assert batch.valid[rows].all() and not batch.valid[rest].any()
        assert (batch.doc_key[rest] == -1).all() and not batch.label[rest].any() and not batch.source[rest].any()
        assert not batch.docs.length[rest].any()
        texts = ["\n".join([text_of(i)] * 4) for i in record.item_id.tolist()]
        np.testing.assert_array_equal(batch.docs.ids[rows], tokenizer.encode_documents(texts).ids)


def unpacked(packed, slots):
    """The texts of a packed batch as padded rows, read off segments and positions alone."""
    shards, texts = packed.first.shape
    ids, length = np.zeros((shards * texts, slots), np.int32), np.zeros(shards * texts, np.int32)
    for s, r, t in np.argwhere(packed.segment > 0):
        text = s * texts + packed.segment[s, r, t] - 1
        assert packed.first[s, packed.segment[s, r, t] - 1] + packed.position[s, r, t] == r * packed.ids.shape[2] + t
        ids[text, packed.position[s, r, t]] = packed.ids[s, r, t]
        length[text] += 1
    np.testing.assert_array_equal(length, packed.length.reshape(-1))
    return ids, length


def test_a_packed_batch_holds_the_same_texts_as_a_padded_one_of_its_groups(reader, tokenizer):
    loaded = walk(TrainBatches(reader, tokenizer, PACKED), 5)[4]
    records, batch = reader.read(loaded.group_numbers), loaded.batch
    used = np.flatnonzero(batch.query_key[:, 0] >= 0)
    assert len(used) == len(records) and {a.dtype for a in jax.tree.leaves(batch)} == {
        np.dtype(np.int32),
        np.dtype(bool),
    }
    query_ids, query_length = unpacked(batch.query, 12)
    doc_ids, doc_length = unpacked(batch.docs, 24)
    for b, record in zip(used, records, strict=True):
        rows = slice(b * K, b * K + len(record))
        np.testing.assert_array_equal(batch.query_key[b], key_words(np.array([record.query_key]))[0])
        np.testing.assert_array_equal(batch.doc_key[rows], key_words(record.doc_key))
        query = tokenizer.encode_queries([record.query])
        np.testing.assert_array_equal(query_ids[b, : query_length[b]], query.ids[0, : query.length[0]])
        docs = tokenizer.encode_documents(["\n".join([text_of(i)] * 4) for i in record.item_id.tolist()])
        np.testing.assert_array_equal(doc_length[rows], docs.length)
        for row, length in enumerate(docs.length):
            np.testing.assert_array_equal(doc_ids[b * K + row, :length], docs.ids[row, :length])
    assert batch.valid.sum() == sum(map(len, records)) == (doc_length > 0).sum()


def test_a_group_that_does_not_fit_waits_for_the_next_batch_and_no_longer(reader, tokenizer):
    batches = TrainBatches(reader, tokenizer, PACKED)
    loaded = walk(batches, 40)
    waiting = [set(row[1:][row[1:] >= 0].tolist()) for one in loaded for row in one.position[:1]]
    assert any(waiting)
    for now, then in pairwise(waiting):
        assert not now or min(now) not in then  # the oldest is served first
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(one.batch)) for one in loaded}
    assert len(shapes) == 1  # whatever the groups, one compiled step


def test_the_oldest_group_of_a_shard_is_in_every_batch(reader, tokenizer):
    """Also where it and the next could not share the rows: half of the groups fill more than half of a shard's row."""
    tight = replace(PACKED.packing, doc_row_tokens=96, doc_rows=4)
    for packing in (PACKED.packing, tight):
        position = (batches := TrainBatches(reader, tokenizer, replace(PACKED, packing=packing))).start()
        for _ in range(30):
            oldest = np.where(position[:, 1] >= 0, position[:, 1], position[:, 0])
            position = batches.load(position).position
            assert (oldest < position[:, 0]).all() and not (position[:, 1:] == oldest[:, None]).any()


def test_equal_query_strings_share_their_key_in_a_batch(reader, tokenizer):
    records = reader.read(range(N))
    batch = padded_batch([encode_groups(records, tokenizer)], N, K, tokenizer.pad_id)
    for i in range(N):
        for j in range(N):
            assert (batch.query_key[i] == batch.query_key[j]).all() == (records[i].query == records[j].query)
    assert len(set(map(tuple, batch.query_key.tolist()))) < N


@pytest.mark.parametrize("config", [CONFIG, PACKED], ids=["padded", "packed"])
def test_resuming_at_any_position_equals_the_straight_run(reader, tokenizer, config):
    batches = TrainBatches(reader, tokenizer, config)
    with Prefetcher(batches, 0, batches.start(), stop=9) as stream:
        straight = list(stream)
    assert [step for step, _ in straight] == list(range(9))
    fresh = TrainBatches(RecordsReader(reader.folder), tokenizer, config)
    with Prefetcher(fresh, 6, straight[5][1].position, stop=9) as stream:
        for step, loaded in stream:
            assert_equal_batches(loaded.batch, straight[step][1].batch)
            np.testing.assert_array_equal(loaded.position, straight[step][1].position)
    assert step == 8
    other = TrainBatches(reader, tokenizer, replace(config, seed=4))
    assert not np.array_equal(other.load(other.start()).group_numbers, straight[0][1].group_numbers)


@pytest.mark.parametrize("config", [CONFIG, PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize("shards", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 2], [1, 3]]])
def test_the_processes_read_disjoint_parts_of_the_same_batch(reader, tokenizer, config, shards):
    whole = walk(TrainBatches(reader, tokenizer, config), 5)[4]
    parts = [walk(TrainBatches(reader, tokenizer, config, own), 5)[4] for own in shards]

    def joined(*leaves):
        """Rows by shard, put back in the order of the shards."""
        by_shard = {s: rows for own, leaf in zip(shards, leaves, strict=True)
                    for s, rows in zip(own, np.split(leaf, len(own)), strict=True)}  # fmt: skip
        return np.concatenate([by_shard[s] for s in range(4)])

    assert_equal_batches(jax.tree.map(joined, *[p.batch for p in parts]), whole.batch)
    np.testing.assert_array_equal(joined(*[p.position for p in parts]), whole.position)
    assert sorted(np.concatenate([p.group_numbers for p in parts])) == sorted(whole.group_numbers)


def test_hashed_ids_make_batches_of_the_same_groups(reader, tokenizer):
    hasher = IdHasher(IdConfig(max_doc_terms=8))
    sparse = walk(TrainBatches(reader, hasher, CONFIG), 2)[1].batch
    dense = walk(TrainBatches(reader, tokenizer, CONFIG), 2)[1].batch
    assert isinstance(sparse.docs, IdFeatures) and isinstance(dense.docs, Tokens)
    assert sparse.docs.ids.shape == (32, 1) and sparse.docs.bags.shape == (32, 2, 8)
    np.testing.assert_array_equal(sparse.docs.ids[:, 0] > 0, dense.valid)
    np.testing.assert_array_equal(sparse.doc_key, dense.doc_key)


def test_bad_input_is_listed(reader, tokenizer):
    narrow = replace(PACKED, docs_per_query=3, packing=replace(PACKED.packing, doc_row_tokens=20))
    with pytest.raises(InputError) as caught:
        TrainBatches(reader, tokenizer, narrow)
    assert len(caught.value.problems) == 2 and "a group of 4 documents" in str(caught.value)
    assert "packing.doc_row_tokens is 20, but text.max_doc_tokens is 24" in str(caught.value)
    with pytest.raises(InputError, match="hashed ids of the sparse model have none to save"):
        TrainBatches(reader, IdHasher(IdConfig()), PACKED)
    with pytest.raises(InputError, match=r"request r\d+ has \d+ tokens and does not fit; more doc_rows"):
        walk(TrainBatches(reader, tokenizer, replace(PACKED, packing=replace(PACKED.packing, doc_rows=4))), 20)
    with pytest.raises(InputError, match="batch_queries: 0 is not above zero"):
        InputConfig(batch_queries=0)
    with pytest.raises(InputError) as caught:
        InputConfig(batch_queries=12, packing=PackingConfig(query_rows=12))
    assert caught.value.problems == ["batch_queries = 12 is no multiple of shards = 8",
                                     "packing.query_rows = 12 is no multiple of shards = 8"]  # fmt: skip


def test_the_reading_thread_hands_over_its_error_and_ends_when_closed(reader, tokenizer):
    class Broken(TrainBatches):
        def load(self, position):
            if position[0, 0] > 0:
                raise InputError("shard", "damaged")
            return super().load(position)

    broken = Broken(reader, tokenizer, CONFIG)
    with Prefetcher(broken, 0, broken.start()) as stream:
        assert next(stream)[0] == 0
        for _ in range(2):
            with pytest.raises(InputError, match="shard: damaged"):
                next(stream)
    batches = TrainBatches(reader, tokenizer, CONFIG)
    unread = Prefetcher(batches, 0, batches.start())
    next(unread)
    unread.close()
    assert unread.waited_s > 0
    assert not [t for t in threading.enumerate() if t.name == "input-pipeline"]


def test_so_many_batches_are_made_ahead_and_one_more_waits(reader, tokenizer):
    made = []

    class Counted(TrainBatches):
        def load(self, position):
            made.append(threading.current_thread().name)
            return super().load(position)

    batches = Counted(reader, tokenizer, replace(CONFIG, prefetch=3))
    with Prefetcher(batches, 0, batches.start()) as stream:
        deadline = monotonic() + 10
        while len(made) < 4 and monotonic() < deadline:
            sleep(0.01)
        sleep(0.1)
        assert made == ["input-pipeline"] * 4
        next(stream)


def test_grain_checkpoints_resume_on_whole_batches(reader, tokenizer):
    """The library's own check of an iterator: its output after any saved state equals the straight run's."""
    grain = pytest.importorskip("grain")

    class Iterator(grain.DatasetIterator):
        def __init__(self):
            super().__init__()
            self._batches = TrainBatches(reader, tokenizer, PACKED)
            self._position, self._left = self._batches.start(), 6

        def __next__(self):
            if not self._left:
                raise StopIteration
            loaded = self._batches.load(self._position)
            self._position, self._left = loaded.position, self._left - 1
            return jax.tree.leaves(loaded.batch)  # as arrays: the check compares with numpy's assert_equal

        def get_state(self):
            return {"position": self._position.tolist(), "left": self._left}

        def set_state(self, state):
            self._position, self._left = np.array(state["position"], np.int32), state["left"]

    class Dataset(grain.IterDataset):
        def __iter__(self):
            return Iterator()

    grain.experimental.assert_equal_output_after_checkpoint(Dataset())


def test_imports_without_grain_and_tensorflow_datasets():
    code = (
        "import sys\nfor name in ('grain', 'tensorflow_datasets', 'duckdb', 'scann'): sys.modules[name] = None\n"
        "import crops_jax.batches.stream"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
