"""Shards that hold token ids beside their texts."""

from dataclasses import replace

import jax
import numpy as np
import pyarrow as pa
import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.batches.config import InputConfig, PackingConfig
from crops_jax.batches.stream import TrainBatches
from crops_jax.errors import InputError
from crops_jax.labels import Group
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.records import Items, RecordsConfig, RecordsReader, write_records
from crops_jax.records.features import decode_example, encode_example, record_features
from crops_jax.records.jsonl import data_item
from crops_jax.records.tfrecord import TFRecordReader
from crops_jax.text.hashed_ids import IdConfig, IdHasher
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer

TEXTS = [f"item {i}, größer" + " and a long tail" * (i % 5) for i in range(30)]
PADDED = InputConfig(batch_queries=8, docs_per_query=4, shards=4, seed=3)
PACKED = replace(
    PADDED, packing=PackingConfig(doc_row_tokens=48, doc_rows=16, query_row_tokens=16, query_rows=8, lookahead=3)
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = train_tokenizer(TEXTS, 300, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    order = ("keyword", "photo_caption", "ocr_cover")
    return TextConfig(
        str(path), append_eos=True, eos_token="~", max_query_tokens=6, max_doc_tokens=24, field_order=order
    )


@pytest.fixture(scope="module")
def folders(text, tmp_path_factory):
    """(texts, texts and token ids) of the same groups; some queries and documents are longer than their rows."""
    columns = {"photo_caption": TEXTS, "ocr_cover": [""] * 30, "keyword": ["a|b"] * 30, "click_query": [None] * 30}
    items = Items({"items": pa.table({"item_id": list(range(30)), **columns})})
    groups = []
    for g in range(40):
        ids = np.array([(g + i) % 30 for i in range(g % 4 + 1)])
        place = np.arange(len(ids), dtype=np.int32)
        groups.append(Group(f"r{g}", g, f"query {g // 2}" * (g % 3 + 1), ids, 5 - place, 1 << place))
    root, written = tmp_path_factory.mktemp("records"), []
    for name, tokenizer in (("texts", None), ("tokens", Tokenizer(text))):
        with write_folder(root / name, kind="records") as out:
            write_records(groups, items, out, RecordsConfig(shards=3, validation_share=0.1), 0, tokenizer)
        written.append(root / name)
    return written


class Silent(Tokenizer):
    """Knows everything about its tokens, but tokenises nothing."""

    def encode(self, texts, max_len):
        raise AssertionError("a text was tokenised")


@pytest.mark.parametrize("config", [PADDED, PACKED], ids=["padded", "packed"])
def test_batches_are_those_of_the_texts_and_no_tokeniser_is_called(folders, text, config):
    from_text = TrainBatches(RecordsReader(folders[0]), Tokenizer(text), config)
    from_ids = TrainBatches(RecordsReader(folders[1]), Silent(text), config)
    position = from_text.start()
    for _ in range(12):
        a, b = from_text.load(position), from_ids.load(position)
        jax.tree.map(np.testing.assert_array_equal, vars(a), vars(b))
        assert jax.tree.map(lambda x: x.dtype, a.batch) == jax.tree.map(lambda x: x.dtype, b.batch)
        position = a.position
    assert a.batch.docs.length.max() == 24 and a.batch.query.length.max() == 6  # some were cut


def test_the_texts_stay_for_other_models_and_json_lines(folders):
    plain, tokenised = (RecordsReader(folder) for folder in folders)
    for a, b in zip(plain.read(range(len(plain))), tokenised.read(range(len(plain))), strict=True):
        assert data_item(a) == data_item(b) and a.tokens is None and b.tokens is not None
    hasher = IdHasher(IdConfig(max_doc_terms=8))
    a, b = (TrainBatches(reader, hasher, PADDED) for reader in (plain, tokenised))
    jax.tree.map(np.testing.assert_array_equal, a.load(a.start()).batch, b.load(b.start()).batch)


def test_another_tokeniser_or_text_config_is_refused_by_name(folders, text, tmp_path):
    other = replace(text, tokenizer=str(train_tokenizer(TEXTS[:3], 290, tmp_path / "tokenizer.json")))
    wrong = replace(other, max_doc_tokens=20, field_order=TEXT_FIELDS[:2])
    with pytest.raises(InputError) as caught:
        TrainBatches(RecordsReader(folders[1]), Tokenizer(wrong), PADDED)
    field_order, longest, tokenizer = caught.value.problems
    assert f"text.field_order {list(text.field_order)}, this run has {list(TEXT_FIELDS[:2])}" in field_order
    assert "made with text.max_doc_tokens 24, this run has 20; write the shards again" in longest
    assert all(Tokenizer(t).fingerprint() in tokenizer for t in (text, other))
    assert str(folders[1]) in longest and "--records.tokenize=False" in longest
    TrainBatches(RecordsReader(folders[0]), Tokenizer(wrong), PADDED)  # texts fit every tokeniser


def test_tensorflow_datasets_reads_the_token_ids(folders, text):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    info = tfds.builder_from_directory(str(folders[1])).info
    assert set(info.splits) == {"train", "validation"}
    assert sum(split.num_examples for split in info.splits.values()) == 40
    data = TFRecordReader(folders[1] / "crops-train.tfrecord-00000-of-00003").read(1)
    ours, theirs = decode_example(data, "here"), info.features.deserialize_example_np(data)
    assert encode_example(ours) == data
    np.testing.assert_array_equal(theirs["query_ids"], ours.tokens.query)
    np.testing.assert_array_equal(theirs["doc_ids"], ours.tokens.docs)
    np.testing.assert_array_equal(theirs["docs"]["tokens"], ours.tokens.length)
    assert {theirs[name].dtype for name in ("query_ids", "doc_ids")} == {np.dtype(np.int32)}
    rows = Tokenizer(text).encode_queries([ours.query])
    assert ours.tokens.query.tolist() == rows.ids[0, : rows.length[0]].tolist()
    features = record_features(tokenised=True)
    docs = {name: getattr(ours, name) for name in features["docs"].feature if name != "tokens"}
    example = {name: getattr(ours, name) for name in ("request_id", "user_id", "query", "query_key")}
    example |= {"query_ids": ours.tokens.query, "doc_ids": ours.tokens.docs,
                "docs": docs | {"tokens": ours.tokens.length}}  # fmt: skip
    serializer = ExampleSerializer(features.get_serialized_info())
    assert serializer.get_tf_example(features.encode_example(example)).SerializeToString(deterministic=True) == data


def test_token_ids_that_do_not_add_up_are_an_error_with_a_place(folders):
    record = RecordsReader(folders[1]).read([0])[0]
    cut = replace(record, tokens=replace(record.tokens, docs=record.tokens.docs[1:]))
    with pytest.raises(InputError, match=r"shard 3, record 4: docs/tokens counts .* doc_ids has"):
        decode_example(encode_example(cut), "shard 3, record 4")
