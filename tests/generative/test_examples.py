"""Graded groups as target distributions, the items' texts beside them, and the sources that take part."""

from dataclasses import replace

import numpy as np
import pytest
from generators import CONFIG
from tiny import WORDS

from crops_jax.errors import InputError
from crops_jax.generative.examples import GradedExamples, batch_of
from crops_jax.generative.item_ids import ItemIds
from crops_jax.records import Record


def record(items, labels, request="r", query="lamp"):
    n = len(items)
    counts = dict.fromkeys(("play_cnt", "like_cnt", "long_view_cnt", "download_cnt"), np.full(n, -1))
    texts = dict.fromkeys(("ocr_cover", "photo_caption", "keyword", "click_query"), [""] * n)
    return Record(
        request, 1, query, 7, np.array(items), np.arange(n), np.array(labels, np.int32), np.ones(n, np.int32),
        np.ones(n, np.int32), **texts, **counts,
    )  # fmt: skip


class Reader:
    def __init__(self, *records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def read(self, numbers):
        return [self.records[n] for n in numbers]


CODES = np.array([[0, 0], [0, 1], [1, 0], [2, 0]], np.int32)
IDS = ItemIds(np.array([10, 11, 12, 13]), CODES, (3, 2), np.array([-5]), np.array([[2]], np.int32))


def examples(*records, texts=(), seed=0, **changed):
    return GradedExamples(Reader(*records), IDS, texts, replace(CONFIG, **changed), seed)


def test_a_positive_s_share_is_its_label_s_weight_beside_the_group_s():
    """Weights 2 and 1 for the labels 5 and 4: 2/5, 1/5, 1/5, 1/5. The label 3 is no positive; a written document is."""
    group = record([11, 10, 12, -5, 13], [5, 4, 4, 4, 3])
    (found,) = examples(group, label_weights=(0, 0, 0, 1, 2), positives=4).read([0])
    shares = dict(zip(found.rows.tolist(), found.share.tolist(), strict=True))
    assert shares == pytest.approx({1: 0.4, 0: 0.2, 2: 0.2, 4: 0.2})
    (flat,) = examples(group, label_weights=(0, 0, 0.5, 1, 1), positives=5).read([0])
    assert dict(zip(flat.rows.tolist(), flat.share.tolist(), strict=True))[3] == pytest.approx(1 / 9)
    (nothing,) = examples(record([10, 13], [2, 3])).read([0])
    assert len(nothing.rows) == 0


def test_of_more_positives_a_seeded_choice_is_taken():
    group = record([10, 11, 12, 13], [4] * 4)
    chosen = {tuple(examples(group, seed=seed).read([0])[0].rows.tolist()) for seed in range(20)}
    assert {len(rows) for rows in chosen} == {2} and {row for rows in chosen for row in rows} == {0, 1, 2, 3}
    again = [tuple(examples(group, seed=3).read([0])[0].rows.tolist()) for _ in range(2)]
    assert again[0] == again[1]
    epochs = examples(group, seed=3).read([0] * 20, range(20))
    assert {row for e in epochs for row in e.rows.tolist()} == {0, 1, 2, 3}, "each epoch draws anew"


def test_the_items_own_texts_come_behind_the_groups_so_often_as_asked():
    made = examples(record([10], [4]), texts=["a", "b", "c", "d"], item_texts=2)
    assert len(made) == 9
    read = made.read([8, 0, 1])
    assert [(e.text, e.rows.tolist(), e.share.tolist()) for e in read] == [
        ("d", [3], [1.0]), ("lamp", [0], [1.0]), ("a", [0], [1.0])
    ]  # fmt: skip
    assert [e.request_id for e in read] == ["item 13", "r", "item 10"]
    assert len(examples(record([10], [4]), texts=["a"] * 4, item_texts=0)) == 1


def test_an_item_without_an_id_and_a_label_without_a_weight_are_named():
    with pytest.raises(InputError, match="request r2: item 99 has no semantic id"):
        examples(record([10], [4]), record([99], [4], "r2")).read([0, 1])
    with pytest.raises(InputError, match=r"has a document of the label 6; suggest\.label_weights has 5 labels"):
        examples(record([10], [6])).read([0])


def test_a_batch_has_the_ids_of_the_positives_and_what_stands_before_each_token():
    class Text:
        config, end = CONFIG, 9
        tokens, length = np.concatenate([IDS.codes + np.array([100, 103]), [[102, 9]]]), np.array([2, 2, 2, 2, 1])

        def sources(self, texts):
            return np.zeros((len(texts), 8), np.int32), np.array([len(text) for text in texts], np.int32)

    groups = record([11, 12], [4, 4]), record([13], [5], query=WORDS[0]), record([-5], [4])
    batch = batch_of(examples(*groups).read([0, 1, 2]), Text())
    first = batch.answers.ids[0].tolist()
    assert sorted(first) == [[100, 104], [101, 103]] and batch.before[0].tolist() == [[9, row[0]] for row in first]
    assert batch.answers.length.tolist() == [[2, 2], [2, 0], [1, 0]] and batch.answers.ids[2, 0, 0] == 102
    assert batch.share.tolist() == [[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]]
    assert batch.source.length.tolist() == [4, len(WORDS[0]), 4] and batch.sizes == (3, 6)
