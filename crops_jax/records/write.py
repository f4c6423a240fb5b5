"""Groups -> TFRecord shards, their indexes and the metadata by which tensorflow-datasets reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crops_jax.artifacts import Folder
from crops_jax.errors import InputError
from crops_jax.labels import MIN_POSITIVE, Group
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.normal_text import has_text, normal_form
from crops_jax.progress import progress
from crops_jax.records import tokens
from crops_jax.records.features import Record, encode_example, record_features
from crops_jax.records.items import Items
from crops_jax.records.tfrecord import TFRecordWriter
from crops_jax.stable_hash import hash_texts
from crops_jax.text.tokenizer import Tokenizer

DATASET = "crops"
REJECTS = ("unknown_item", "item_without_text", "query_without_text", "group_without_positive")
Split = Literal["train", "validation"]
_TOKENISED_AT_ONCE = 512  # records


@dataclass(frozen=True)
class RecordsConfig:
    """How groups are cut into shards."""

    shards: int = 4
    """Number of shard files for training; the validation split is one more."""
    validation_share: float = 0.02
    """Share of the queries whose groups are held out as the split "validation", which is never trained on; 0 for none.
    It is drawn by the query's text alone: the same queries in every arm and for every seed."""
    tokenize: bool = False
    """Store token ids beside the texts, for a training run that waits for its data (data_wait_share above 0.02). They
    belong to one tokeniser and one text config, which such shards insist on."""

    def __post_init__(self):
        problems = []
        if not 1 <= self.shards <= 99999:
            problems.append(f"shards: {self.shards} is not within 1..99999")
        if not 0 <= self.validation_share < 1:
            problems.append(f"validation_share: {self.validation_share} is not within 0..1")
        if problems:
            raise InputError("records config", problems)


def shard_name(split: Split, shard: int, shards: int) -> str:
    """`crops-train.tfrecord-00000-of-00004`, the name that tensorflow-datasets expects."""
    return f"{DATASET}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def held_out(query: str, share: float) -> bool:
    """Whether a query belongs to the validation split; queries that are one (`normal_text`) go together."""
    return int(hash_texts([normal_form(query)])[0]) < share * 2**64


def write_records(
    groups: Iterable[Group],
    items: Items,
    out: Folder,
    config: RecordsConfig,
    seed: int,
    tokenizer: Tokenizer | None = None,
    fields: tuple[str, ...] = TEXT_FIELDS,
) -> dict[str, Any]:
    """Writes the groups as shards into `out`, notes the counts in `out.counts` and returns them.

    Query and document keys are dense over both splits, in order of first appearance; queries that are one
    (`normal_text`), and documents of one text, have one key. The same groups and seed give the same bytes.

    Rejects are counted by reason (`REJECTS`): documents whose id no table holds or that have no text at all, empty
    queries, and groups left without a positive; and where there are any, documents whose text stands in the group
    under another id, with a label as high ("copy_in_group").

    Args:
      tokenizer: stores its token ids too.
      fields: those that the model reads (`TextConfig.field_order`).

    Raises:
      InputError: no group is left to train on.
    """
    maker, draw = _RecordMaker(items, fields), np.random.default_rng(seed)
    share = config.validation_share
    splits: dict[Split, int] = {"train": config.shards} | ({"validation": 1} if share else {})
    with ExitStack() as stack:
        written = {split: stack.enter_context(_Shards(out, split, n, draw)) for split, n in splits.items()}
        records = maker.records(progress(groups, "writing records", unit="group"))
        while part := list(islice(records, _TOKENISED_AT_ONCE)):
            for record in part if tokenizer is None else tokens.add_tokens(part, tokenizer):
                written["validation" if held_out(record.query, share) else "train"].write(record)
    counts = maker.counts() | {
        "splits": {split: shards.counts() for split, shards in written.items()},
        "token_ids": None if tokenizer is None else tokens.made_by(tokenizer),
    }
    if counts["splits"]["train"]["groups"] == 0:
        raise InputError("records", f"no group is left to train on; counts: {counts}")
    _write_metadata(out.path, list(written.values()), record_features(tokenizer is not None))
    out.counts.update(counts)
    return counts


class _Shards:
    """The shard files of one split. A context manager.

    Records are dealt to them in blocks, one to each in an order drawn from `draw`, so that shards differ in length by
    at most one and a reader of one shard sees a sample of the whole.
    """

    def __init__(self, out: Folder, split: Split, shards: int, draw: np.random.Generator):
        self.split = split
        self.writers = [TFRecordWriter(out / shard_name(split, shard, shards)) for shard in range(shards)]
        self._draw = draw
        self._order: list[int] = []
        self._documents = 0

    def write(self, record: Record) -> None:
        self._order = self._order or self._draw.permutation(len(self.writers)).tolist()
        self.writers[self._order.pop()].write(encode_example(record))
        self._documents += len(record)

    def counts(self) -> dict[str, Any]:
        lengths = [writer.count for writer in self.writers]
        return {"groups": sum(lengths), "documents": self._documents, "shard_lengths": lengths}

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in self.writers:
            writer.__exit__(*error)


class _RecordMaker:
    """Gives groups their texts and dense keys, and counts."""

    def __init__(self, items: Items, fields: tuple[str, ...]):
        self._items, self._originals = items, items.originals(fields)
        self._query_keys: dict[str, int] = {}
        self._doc_keys: dict[int, int] = {}
        self._rejects: Counter[str] = Counter(dict.fromkeys(REJECTS, 0))
        self._max_docs = 0

    def records(self, groups: Iterable[Group]) -> Iterator[Record]:
        """The records of the groups of which something trainable is left."""
        return (record for group in groups if (record := self._record(group)) is not None)

    def _record(self, group: Group) -> Record | None:
        _check_group(group)
        group = self._without_copies(group)
        if not has_text(group.query):
            self._rejects["query_without_text"] += 1
            return None
        kept, rows, texts = self._documents_with_text(group)
        labels = np.asarray(group.label, np.int32)[kept]
        if not (labels >= MIN_POSITIVE).any():
            self._rejects["group_without_positive"] += 1
            return None
        ids = np.asarray(group.item_id, np.int64)[kept]
        originals = self._originals(ids).tolist()
        self._max_docs = max(self._max_docs, len(ids))
        return Record(
            request_id=group.request_id,
            user_id=group.user_id,
            query=group.query,
            query_key=self._query_keys.setdefault(normal_form(group.query), len(self._query_keys)),
            item_id=ids,
            doc_key=np.array([self._doc_keys.setdefault(i, len(self._doc_keys)) for i in originals], np.int32),
            label=labels,
            source=np.asarray(group.source, np.int32)[kept],
            **texts,
            **self._items.counters(rows),
        )

    def _without_copies(self, group: Group) -> Group:
        """Of documents of one text that with the highest label (ties: the first): none may count against its twin."""
        _, text = np.unique(self._originals(np.asarray(group.item_id, np.int64)), return_inverse=True)
        order = np.lexsort((np.arange(len(text)), -np.asarray(group.label), text))
        first = np.sort(order[np.diff(text[order], prepend=-1) != 0])
        if len(first) == len(text):
            return group
        self._rejects["copy_in_group"] += len(text) - len(first)
        return replace(group, item_id=group.item_id[first], label=group.label[first], source=group.source[first])

    def _documents_with_text(self, group: Group) -> tuple[np.ndarray, np.ndarray, dict[str, list[str]]]:
        """(positions in the group, item rows, texts) of the documents that can be trained on."""
        rows = self._items.rows(group.item_id)
        kept = np.flatnonzero(rows >= 0)
        self._rejects["unknown_item"] += len(rows) - len(kept)
        texts = self._items.texts(rows[kept])
        full = np.array([any(has_text(text) for text in fields) for fields in zip(*texts.values(), strict=True)], bool)
        self._rejects["item_without_text"] += len(full) - int(full.sum())
        kept = kept[full]
        texts = {name: [t for t, keep in zip(column, full, strict=True) if keep] for name, column in texts.items()}
        return kept, rows[kept], texts

    def counts(self) -> dict[str, Any]:
        return {
            "distinct_queries": len(self._query_keys),
            "distinct_documents": len(self._doc_keys),
            "max_docs_per_query": self._max_docs,
            "rejects": dict(self._rejects),
        }


def _check_group(group: Group) -> None:
    n = len(group.item_id)
    if len(group.label) != n or len(group.source) != n or len(np.unique(group.item_id)) != n:
        raise ValueError(f"group {group.request_id}: item ids must be distinct and as many as labels and sources")


def _write_metadata(folder: Path, splits: list[_Shards], features: Any) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    def info(shards: _Shards) -> Any:
        template = naming.ShardedFileTemplate(
            data_dir=folder, dataset_name=DATASET, split=shards.split, filetype_suffix="tfrecord",
            template=naming.DEFAULT_FILENAME_TEMPLATE,
        )  # fmt: skip
        return tfds.core.SplitInfo(
            name=shards.split,
            shard_lengths=shards.counts()["shard_lengths"],
            num_bytes=sum(writer.num_bytes for writer in shards.writers),
            filename_template=template,
        )

    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[info(shards) for shards in splits],
        version="1.0.0",
        check_data=False,  # it would read through TensorFlow, which is not a dependency
        description="Search events with graded documents: CroPS query groups (P0, P1, P2, P3, X3, U2, F1).",
    )
