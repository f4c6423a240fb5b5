"""Shards: written, read, in the same bytes again; and damaged in every way."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from record_folders import TRAIN_ONLY, graded, items_table, make_groups, write

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest, write_manifest
from crops_jax.errors import InputError
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.records import Items, RecordsConfig, RecordsReader, growing, record_features, write_records
from crops_jax.records.features import decode_example, encode_example
from crops_jax.records.tfrecord import TFRecordReader, TFRecordWriter, build_index, index_path, masked_crc
from crops_jax.records.write import held_out as is_held_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("records") / "records")


def shards(folder):
    return sorted(p for p in folder.iterdir() if ".tfrecord-" in p.name and not p.name.endswith(".npy"))


def counts(folder):
    return json.loads((folder / "manifest.json").read_text())["counts"]


def test_checksum_of_the_format():
    # crc32c("123456789") = e3069283 is the published check value; the mask is rotate right 15, add a282ead8.
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_what_is_read_is_what_was_written(folder):
    reader = RecordsReader(folder)
    by_request = {g.request_id: g for g in make_groups(50)}
    order = np.random.default_rng(1).permutation(len(reader))
    records = reader.read(order)
    assert {r.request_id for r in records} == set(by_request)
    for record in records:
        group = by_request[record.request_id]
        assert (record.user_id, record.query) == (group.user_id, group.query)
        assert record.item_id.tolist() == group.item_id.tolist() and record.item_id.dtype == np.int64
        assert record.label.tolist() == group.label.tolist() and record.source.tolist() == group.source.tolist()
        assert record.keyword == [f"keyword of {i}, größer" for i in group.item_id.tolist()]
        assert record.like_cnt.tolist() == [abs(i) * 10 for i in group.item_id.tolist()]
    assert reader.read([order[3]])[0].request_id == records[3].request_id


def test_keys_stand_for_one_query_and_one_document(folder):
    reader = RecordsReader(folder)
    records = reader.read(range(len(reader)))
    queries = {(r.query_key, r.query) for r in records}
    documents = {pair for r in records for pair in zip(r.doc_key.tolist(), r.item_id.tolist(), strict=True)}
    assert len({k for k, _ in queries}) == len(queries) == len({q for _, q in queries}) == 9
    assert len({k for k, _ in documents}) == len(documents) == len({i for _, i in documents})
    assert {i for _, i in documents} == {i for g in make_groups(50) for i in g.item_id.tolist()}
    assert counts(folder)["distinct_documents"] == len(documents) and counts(folder)["distinct_queries"] == 9
    assert reader.max_docs_per_query == 6


def test_same_seed_same_bytes_and_another_seed_another_order(folder, tmp_path):
    again, other = write(tmp_path / "again"), write(tmp_path / "other", seed=1)
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in again.iterdir())
    assert [n for n in names if (folder / n).read_bytes() != (again / n).read_bytes()] == []
    assert shards(folder)[0].read_bytes() != shards(other)[0].read_bytes()
    lengths = counts(other)["splits"]["train"]["shard_lengths"]
    assert max(lengths) - min(lengths) <= 1


def test_the_fingerprint_is_that_of_the_groups_wherever_they_lie(folder, tmp_path):
    def fingerprint(name, groups):
        return RecordsReader(write(tmp_path / name, groups)).fingerprint()

    known, groups = RecordsReader(folder).fingerprint(), make_groups(50)
    assert fingerprint("same", groups) == known
    groups[7] = replace(groups[7], label=groups[7].label - 1)  # not a byte longer
    assert fingerprint("other", groups) != known


def test_a_share_of_the_queries_is_held_out_whatever_the_seed(tmp_path):
    """Of 200 queries 0.2 are drawn by their texts: 40 with deviation 5.7. None is in both splits."""
    groups = [graded(f"r{i}", i, f"query {i % 200}", [i % 40, 40 + i % 7], [4, 3], [1, 16]) for i in range(500)]
    items = Items({"items": items_table(list(range(47)))})
    config = RecordsConfig(shards=3, validation_share=0.2)
    folders = [write(tmp_path / f"{seed}", groups, items, config, seed) for seed in (0, 1)]
    held_out, trained = [], []
    for folder in folders:
        splits = [RecordsReader(folder, split) for split in ("validation", "train")]
        records = [reader.read(range(len(reader))) for reader in splits]
        held_out.append({r.query for r in records[0]})
        trained.append({r.query for r in records[1]})
        assert sorted(r.request_id for part in records for r in part) == sorted(g.request_id for g in groups)
        assert len({r.query_key for part in records for r in part}) == 200
        assert len({k for part in records for r in part for k in r.doc_key.tolist()}) == 47
        sizes = [{"groups": len(part), "documents": 2 * len(part)} for part in records]
        lengths = [[len(records[0])], counts(folder)["splits"]["train"]["shard_lengths"]]
        expected = [size | {"shard_lengths": n} for size, n in zip(sizes, lengths, strict=True)]
        assert [counts(folder)["splits"][split] for split in ("validation", "train")] == expected
    assert held_out[0] == held_out[1] and held_out[0].isdisjoint(trained[0])
    assert 23 < len(held_out[0]) < 57
    assert is_held_out("Cordless  DRILL ", 0.5) == is_held_out("cordless drill", 0.5)
    assert {is_held_out("cordless drill", share) for share in (0, 0.999999)} == {False, True}


def test_fewer_groups_than_shards(tmp_path):
    reader = RecordsReader(write(tmp_path / "r", make_groups(2), config=replace(TRAIN_ONLY, shards=5)))
    assert sorted(r.request_id for r in reader.read([0, 1])) == ["r0", "r1"]


def test_32_flipped_bits_are_each_an_error_with_file_and_offset(folder):
    draw, sound = np.random.default_rng(0), 0
    for path in draw.choice(shards(folder), 32):
        good = path.read_bytes()
        bit = int(draw.integers(8 * len(good)))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        index = np.load(index_path(path))
        record = int(np.searchsorted(index[:, 0], bit // 8, side="right")) - 1
        path.write_bytes(bad)
        try:
            reader = TFRecordReader(path)
            with pytest.raises(InputError) as caught:
                reader.read(record)
            others = [i for i in range(len(reader)) if i != record]
            sound += sum(len(reader.read(i)) > 0 for i in others)
            with pytest.raises(InputError):
                build_index(path)
        finally:
            path.write_bytes(good)
        assert str(path) in str(caught.value) and f"at byte {index[record, 0]}" in str(caught.value)
    assert sound > 32  # the records beside the damaged one still read


def test_a_cut_file_is_an_error_with_file_and_offset_before_and_after_it_is_opened(folder, tmp_path):
    path = shards(write(tmp_path / "cut"))[1]
    reader, size, last = TFRecordReader(path), path.stat().st_size, len(TFRecordReader(path)) - 1
    start = int(np.load(index_path(path))[last, 0])
    with path.open("r+b") as stream:
        stream.truncate(size - 9)
    expected = f"record {last} at byte {start} should end at byte {size}, but the file ends at byte {size - 9}"
    with pytest.raises(InputError, match=expected):
        reader.read(last)
    with pytest.raises(InputError, match=rf"{path.name}: ends at byte {size - 9}, its index says byte {size}"):
        TFRecordReader(path)
    with pytest.raises(InputError, match=expected):
        build_index(path)
    with pytest.raises(InputError, match=rf"{path.name}: {size - 9} bytes, the manifest says {size}"):
        RecordsReader(path.parent)
    with path.open("r+b") as stream:
        stream.truncate(start + 5)  # inside a header
    with pytest.raises(InputError, match=f"record {last} at byte {start} .* ends at byte {start + 5}"):
        build_index(path)


def test_missing_foreign_and_damaged_indexes(tmp_path):
    paths = [tmp_path / "a.tfrecord", tmp_path / "b.tfrecord"]
    for path, lengths in zip(paths, ([3, 5, 0], [4, 4, 0]), strict=True):
        with TFRecordWriter(path) as writer:
            for length in lengths:
                writer.write(b"x" * length)
    good = index_path(paths[0]).read_bytes()
    index_path(paths[0]).write_bytes(index_path(paths[1]).read_bytes())  # same total size, other records
    with pytest.raises(InputError, match="record 0 at byte 0 is 3 bytes long, its index says 4"):
        TFRecordReader(paths[0]).read(0)
    np.save(index_path(paths[0]), np.array([[0, 3], [19, 6], [40, 0]], np.uint64))
    with pytest.raises(InputError, match="entry 2 points to byte 40"):
        TFRecordReader(paths[0])
    index_path(paths[0]).write_bytes(good[:50])
    with pytest.raises(InputError, match="is not a readable index"):
        TFRecordReader(paths[0])
    for at, bit in ((26, 3), (126, 3)):  # of the header, which numpy parses as Python
        flipped = bytearray(good)
        flipped[at] ^= 1 << bit
        index_path(paths[0]).write_bytes(flipped)
        with pytest.raises(InputError, match="is not a readable index"):
            TFRecordReader(paths[0])
    index_path(paths[0]).unlink()
    with pytest.raises(InputError, match=r"a\.tfrecord\.index\.npy: is missing"):
        TFRecordReader(paths[0])
    assert build_index(paths[0]) == 3 and index_path(paths[0]).read_bytes() == good
    assert TFRecordReader(paths[0]).read(1) == b"xxxxx"
    with pytest.raises(IndexError):
        TFRecordReader(paths[0]).read(3)


@pytest.mark.parametrize("rows", [0, 1, 99_999])
def test_an_array_that_grows_is_the_one_that_numpy_writes(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(growing, "_HELD", 1000)
    for dtype, columns in (("<u8", (2,)), ("<u2", ())):
        whole = np.arange(rows * int(np.prod(columns, dtype=int))).astype(dtype).reshape(rows, *columns)
        array = growing.GrowingArray(tmp_path / "grown.npy", dtype, columns)
        for part in np.array_split(whole, 7):
            array.append(part.tobytes())
        array.close()
        np.save(tmp_path / "whole.npy", whole)
        assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_failed_write_leaves_no_index(tmp_path):
    with pytest.raises(RuntimeError), TFRecordWriter(tmp_path / "a.tfrecord") as writer:
        writer.write(b"x")
        raise RuntimeError
    assert not index_path(tmp_path / "a.tfrecord").exists()


def test_tensorflow_datasets_reads_the_metadata_and_parses_the_records(folder):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_parser import ExampleParserNp
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    info = tfds.builder_from_directory(str(folder)).info
    assert info.splits["train"].num_examples == 50 and sorted(info.splits["train"].shard_lengths) == [12, 12, 13, 13]
    assert [f.split("/")[-1] for f in info.splits["train"].filenames] == [p.name for p in shards(folder)]
    assert set(info.features["docs"].keys()) >= {"item_id", "label", *TEXT_FIELDS}
    data = TFRecordReader(shards(folder)[0]).read(0)
    ours = decode_example(data, "here")
    for parsed in (info.features.deserialize_example_np(data),
                   ExampleParserNp(info.features.get_serialized_info()).parse_example(data)):  # fmt: skip
        assert parsed["query"] == ours.query.encode() and parsed["query_key"] == ours.query_key
        np.testing.assert_array_equal(parsed["docs"]["item_id"], ours.item_id)
        assert [t.decode() for t in parsed["docs"]["ocr_cover"]] == ours.ocr_cover
    example = {"request_id": ours.request_id, "user_id": ours.user_id, "query": ours.query,
               "query_key": ours.query_key,
               "docs": {name: getattr(ours, name) for name in info.features["docs"].feature}}  # fmt: skip
    features = record_features()
    serializer = ExampleSerializer(features.get_serialized_info())
    theirs = serializer.get_tf_example(features.encode_example(example)).SerializeToString(deterministic=True)
    assert theirs == data == encode_example(ours)


def test_rejects_are_counted_by_reason(tmp_path):
    empty = items_table([50])
    for name in TEXT_FIELDS:
        empty = empty.set_column(empty.column_names.index(name), name, pa.array([" " if name == "keyword" else None]))
    items = Items({"items": items_table([1, 2]), "more": empty.drop_columns(list(COUNTERS))})
    groups = [
        graded("kept", 1, "q", [1, 50, 99], [4, 3, 1], [1, 16, 64]),
        graded("lost its positive", 1, "q", [50, 2], [5, 3], [2, 16]),
        graded("no query", 1, " ", [1], [4], [1]),
    ]
    with write_folder(tmp_path / "r", kind="records") as out:
        returned = write_records(groups, items, out, RecordsConfig(), seed=0)
    assert returned["rejects"] == {"unknown_item": 1, "item_without_text": 2, "query_without_text": 1,
                                   "group_without_positive": 1}  # fmt: skip
    assert counts(tmp_path / "r") == returned
    assert RecordsReader(tmp_path / "r").read([0])[0].item_id.tolist() == [1]
    with pytest.raises(InputError, match="no group is left"), write_folder(tmp_path / "s", kind="records") as out:
        write_records(groups[1:], items, out, RecordsConfig(), seed=0)


def test_a_document_without_text_in_the_fields_that_the_model_reads_is_left_out(tmp_path):
    table = items_table([1, 2])
    table = table.set_column(table.column_names.index("ocr_cover"), "ocr_cover", pa.array(["a cover", ""]))
    groups = [graded("one", 1, "q", [1, 2], [4, 5], [1, 2]), graded("none", 1, "p", [2], [4], [1])]
    with write_folder(tmp_path / "r", kind="records") as out:
        told = write_records(groups, Items({"items": table}), out, RecordsConfig(), seed=0, fields=("ocr_cover",))
    assert told["rejects"]["item_without_text"] == 2 and told["rejects"]["group_without_positive"] == 1
    assert [r.item_id.tolist() for r in RecordsReader(tmp_path / "r").read([0])] == [[1]]


def test_item_tables_are_checked():
    with pytest.raises(InputError) as caught:
        Items({"a": pa.table({"item_id": [1]}), "b": items_table([1]).drop_columns(["keyword"])})
    assert len(caught.value.problems) == 5
    with pytest.raises(InputError, match="1 item ids occur twice"):
        Items({"a": items_table([1, 2]), "b": items_table([2])})


def test_a_folder_that_disagrees_with_its_manifest(tmp_path):
    folder = write(tmp_path / "r")
    manifest = read_manifest(folder)
    manifest["counts"]["splits"]["train"]["shard_lengths"][0] += 1
    write_manifest(folder, manifest)
    with pytest.raises(InputError, match="its index holds 13 records, the manifest says 14"):
        RecordsReader(folder)
    with pytest.raises(InputError, match=r"has no split 'validation'; .* --records.validation_share above 0"):
        RecordsReader(folder, "validation")
    del manifest["counts"]["format"]
    write_manifest(folder, manifest)
    with pytest.raises(InputError, match="another version; write the shards again"):
        RecordsReader(folder)
    shards(folder)[2].unlink()
    with pytest.raises(InputError, match=r"crops-train\.tfrecord-00002-of-00004: missing"):
        RecordsReader(folder)
    with pytest.raises(InputError, match="no such folder"):
        RecordsReader(tmp_path / "nowhere")


def test_bytes_that_are_no_record_are_an_error_with_a_place():
    with pytest.raises(InputError, match="shard 3, record 4: is not a record"):
        decode_example(b"\xff\xff\xff", "shard 3, record 4")
    with pytest.raises(InputError, match="is not a record"):
        decode_example(b"", "here")


def test_the_log_half_imports_without_jax_and_without_tensorflow_datasets():
    code = (
        "import sys\n"
        "for name in ('jax', 'tensorflow_datasets', 'tensorflow', 'grain', 'transformers'): sys.modules[name] = None\n"
        "import crops_jax.text.tokenizer, crops_jax.text.hashed_ids, crops_jax.records, crops_jax.records.jsonl\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opening_shards_imports_all_that_reading_them_needs(folder):
    # While a lazy import of tensorflow-datasets runs, other threads' relative imports fail: so not in a reading thread.
    code = (
        "import sys\nfrom crops_jax.records import RecordsReader\n"
        "reader = RecordsReader(sys.argv[1])\nbefore = set(sys.modules)\nreader.read([0])\n"
        "late = [name for name in set(sys.modules) - before if name.startswith(('tensorflow_datasets', 'etils'))]\n"
        "sys.exit(f'imported by the first read: {sorted(late)[:5]}' if late else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


@pytest.mark.interop
def test_tensorflow_reads_the_shards(folder):
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    dataset = tfds.builder_from_directory(str(folder)).as_dataset(split="train", shuffle_files=False)
    theirs = {e["request_id"].decode(): e for e in tfds.as_numpy(dataset)}
    ours = RecordsReader(folder).read(range(50))
    assert set(theirs) == {r.request_id for r in ours}
    for record in ours:
        np.testing.assert_array_equal(theirs[record.request_id]["docs"]["item_id"], record.item_id)
        np.testing.assert_array_equal(theirs[record.request_id]["docs"]["label"], record.label)
