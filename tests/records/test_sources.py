"""An ablation is a filter: groups read with some sources are those written with these alone."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hand_logs import item

from crops_jax.artifacts.folders import write_folder
from crops_jax.batches.config import InputConfig
from crops_jax.errors import InputError
from crops_jax.labels import LETTERS, LOG_ONLY, PAPER, LabelsConfig, caps, levels
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.records import Items, RecordsConfig, RecordsReader, write_records
from crops_jax.records.assemble import assemble
from crops_jax.records.provenance import labels_json
from crops_jax.records.shards import finish, open_shards
from crops_jax.records.tally import Tally
from crops_jax.records.write import RecordMaker
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer

ROOM = LabelsConfig(caps=caps(**dict.fromkeys(PAPER, 60)))  # no cap leaves anything out
ITEMS = Items({"items": pa.Table.from_pylist([item(i, f"item {i}") for i in range(-9, 60)])})
CHOICES = [LOG_ONLY, ("P0", "P1"), ("P1",), ("P2", "P3", "U2"), *[tuple(s for s in PAPER if s != cut) for cut in PAPER]]


def candidates(events=90, queries=7):
    """Events of a few queries with documents of every source; the same document often has several."""
    draw = np.random.default_rng(5)
    rows = set()
    for e in range(events):
        query = f"q{draw.integers(queries)}"
        for source in ("P0", "X3", "U2", "F1"):
            for i in draw.choice(60, draw.integers(0, 4), replace=False).tolist():
                rows.add((query, f"r{e:03d}", i, source))
    for q in range(queries):
        for source in ("P1", "P2", "P3"):
            for i in draw.choice(60, 6, replace=False).tolist():
                rows.add((f"q{q}", None, -1 - i % 9 if source == "P3" else i, source))
    names = ("query", "request_id", "item_id", "source")
    rows = [dict(zip(names, row, strict=True)) | {"user_id": 7 if row[1] else None} for row in sorted(rows, key=str)]
    return pa.Table.from_pylist(rows, schema=CANDIDATES_SCHEMA)


def written(folder, labels, tokenizer=None):
    """Records of the candidates under these labels."""
    with write_folder(folder, kind="records") as out:
        maker, tally = RecordMaker(ITEMS, 0.3, tokenizer, min_positive=labels.min_positive), Tally()
        with open_shards(out.path, 3, True, 0) as splits:
            for split, framed, found in maker.framed(assemble(candidates(), labels), tally):
                splits[split].write(framed, found)
        held = {split: shards.held for split, shards in splits.items()}
        finish(out, held, tally, None, labels_json(labels))
    return folder


@pytest.fixture(scope="module")
def with_room(tmp_path_factory):
    return written(tmp_path_factory.mktemp("records") / "all", ROOM)


def told(folder, split, sources=()):
    """request -> everything of its group but the tokens."""
    reader = RecordsReader(folder, split, sources)
    return {r.request_id: {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(r).items()}
            for r in reader.read(range(len(reader)))}  # fmt: skip


@pytest.mark.parametrize("sources", CHOICES, ids="-".join)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_groups_read_with_some_sources_are_those_written_with_them(sources, split, with_room, tmp_path):
    wanted = told(written(tmp_path / "some", replace(ROOM, sources=sources)), split)
    found = told(with_room, split, sources)
    assert found == wanted and len(wanted) >= (5 if split == "train" else 1)
    if sources == LOG_ONLY:  # searches without a click are no groups now
        assert len(wanted) < len(told(with_room, split))


def test_positives_may_begin_at_another_label(with_room, tmp_path):
    """From 3 on, what was exposed and not clicked makes a group too; from 5 on, P1 alone does."""

    def groups(folder, sources=()):
        return told(folder, "train", sources) | told(folder, "validation", sources)

    begun_at_3 = []
    for least in (3, 4):
        wanted = groups(written(tmp_path / f"some{least}", replace(ROOM, sources=LOG_ONLY, min_positive=least)))
        everything = written(tmp_path / f"all{least}", replace(ROOM, min_positive=least))
        assert groups(everything, LOG_ONLY) == wanted and min(max(r["label"]) for r in wanted.values()) == least
        begun_at_3.append(sum(max(r["label"]) == 3 for r in wanted.values()))
    assert begun_at_3 == [6, 0]
    of_p1 = groups(written(tmp_path / "five", replace(ROOM, min_positive=5)))
    assert of_p1.keys() == {request for request, r in groups(with_room).items() if max(r["label"]) == 5}


def test_labels_are_those_of_the_records_and_caps_hold_again(tmp_path):
    """P1 has label 4 here. What P1 gave a place and U2 holds too is one of the two U2 now."""
    labels = LabelsConfig(levels=levels(P1=4), caps=caps(**dict.fromkeys(PAPER, 4)) | caps(P1=9, U2=2))
    folder = written(tmp_path / "r", labels)
    assert max(max(r["label"]) for r in told(folder, "train").values()) == 4
    records = told(folder, "train", ("P0", "U2")).values()
    most = max(sum(label == 2 for label in r["label"]) for r in records)
    assert most == 2 and {label for r in records for label in r["label"]} == {4, 2}
    for r in records:
        assert r["label"] == sorted(r["label"], reverse=True) and set(r["source"]) <= {1, 32, 33}


def test_token_ids_go_with_their_documents(with_room, tmp_path):
    config = TextConfig(str(train_tokenizer(["item 12"], 260, tmp_path / "t.json")), append_eos=True)
    tokenizer = Tokenizer(config)
    reader = RecordsReader(written(tmp_path / "r", ROOM, tokenizer), sources=("P0", "P2"))
    for record in reader.read(range(10)):
        rows = tokenizer.encode_documents([f"item {i}" for i in record.item_id.tolist()])
        assert record.tokens.length.tolist() == rows.length.tolist()
        assert record.tokens.docs.tolist() == [t for ids, n in zip(*rows, strict=True) for t in ids[:n].tolist()]


def test_what_cannot_be_chosen_is_an_error_that_says_so(with_room, tmp_path):
    with pytest.raises(InputError, match=r"(?s)'P9' is none of its sources P0, .*'N1' is none"):
        RecordsReader(with_room, sources=("P0", "P9", "N1"))
    folder = written(tmp_path / "one", replace(ROOM, one_anchor=True))
    with pytest.raises(InputError, match="one anchor each"):
        RecordsReader(folder, sources=("P0",))
    with write_folder(tmp_path / "r", kind="records") as out:
        write_records(assemble(candidates(), ROOM), ITEMS, out, RecordsConfig(), 0)
    with pytest.raises(InputError, match="not made of mined candidates"):
        RecordsReader(tmp_path / "r", sources=("P0",))
    assert InputConfig().sources == () and len(LETTERS) <= 14  # bits beside the two flags of the side-car


def test_a_flipped_bit_of_what_tells_of_the_sources_is_found(with_room, tmp_path):
    folder = shutil.copytree(with_room, tmp_path / "r")
    path = folder / "crops-train.tfrecord-00001-of-00003.sources.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)
    assert len(RecordsReader(folder)) == len(RecordsReader(with_room))  # all groups are read without it
    with pytest.raises(InputError, match=rf"{path.name}: its bytes have changed since it was written"):
        RecordsReader(folder, sources=LOG_ONLY)
