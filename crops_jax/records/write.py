"""Groups -> TFRecord shards, their indexes and the metadata by which tensorflow-datasets reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax.artifacts import Folder
from crops_jax.errors import InputError
from crops_jax.labels import MIN_POSITIVE, Group
from crops_jax.progress import progress
from crops_jax.records.features import Record, encode_example, record_features
from crops_jax.records.items import Items
from crops_jax.records.tfrecord import TFRecordWriter

DATASET = "crops"
REJECTS = ("unknown_item", "item_without_text", "query_without_text", "group_without_positive")


@dataclass(frozen=True)
class RecordsConfig:
    """How groups are cut into shards."""

    shards: int = 4
    """Number of shard files."""
    split: str = "train"
    """Name of the split, as tensorflow-datasets shows it."""

    def __post_init__(self):
        problems = []
        if not 1 <= self.shards <= 99999:
            problems.append(f"shards: {self.shards} is not within 1..99999")
        if not self.split.isidentifier():
            problems.append(f"split: {self.split!r} must be letters, digits and underscores")
        if problems:
            raise InputError("records config", problems)


def shard_name(split: str, shard: int, shards: int) -> str:
    """`crops-train.tfrecord-00000-of-00004`, the name that tensorflow-datasets expects."""
    return f"{DATASET}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def write_records(
    groups: Iterable[Group], items: Items, out: Folder, config: RecordsConfig, seed: int
) -> dict[str, Any]:
    """Writes the groups as shards into `out`, notes the counts in `out.counts` and returns them.

    Records are dealt to the shards in blocks, one to each in an order drawn from `seed`, so that shards differ in
    length by at most one and a reader of one shard sees a sample of the whole. Query and document keys are dense, in
    order of first appearance. The same groups and seed give the same bytes.

    Rejects are counted by reason (`REJECTS`): documents whose id no table holds or that have no text at all, empty
    queries, and groups left without a positive.

    Raises:
      InputError: no group is left to write.
    """
    maker = _RecordMaker(items)
    draw = np.random.default_rng(seed)
    paths = [out / shard_name(config.split, shard, config.shards) for shard in range(config.shards)]
    order: list[int] = []
    with ExitStack() as stack:
        writers = [stack.enter_context(TFRecordWriter(path)) for path in paths]
        for group in progress(groups, "writing records", unit="group"):
            record = maker.record(group)
            if record is None:
                continue
            order = order or draw.permutation(config.shards).tolist()
            writers[order.pop()].write(encode_example(record))
    counts = maker.counts(config, [w.count for w in writers])
    if counts["groups"] == 0:
        raise InputError("records", f"no group is left to write; rejects: {counts['rejects']}")
    _write_metadata(out.path, config.split, [w.count for w in writers], sum(w.num_bytes for w in writers))
    out.counts.update(counts)
    return counts


class _RecordMaker:
    """Gives groups their texts and dense keys, and counts."""

    def __init__(self, items: Items):
        self._items = items
        self._query_keys: dict[str, int] = {}
        self._doc_keys: dict[int, int] = {}
        self._rejects: Counter[str] = Counter(dict.fromkeys(REJECTS, 0))
        self._documents = 0
        self._max_docs = 0

    def record(self, group: Group) -> Record | None:
        """The record of a group, or None when nothing trainable is left of it."""
        _check_group(group)
        if not group.query.strip():
            self._rejects["query_without_text"] += 1
            return None
        kept, rows, texts = self._documents_with_text(group)
        labels = np.asarray(group.label, np.int32)[kept]
        if not (labels >= MIN_POSITIVE).any():
            self._rejects["group_without_positive"] += 1
            return None
        ids = np.asarray(group.item_id, np.int64)[kept]
        self._documents += len(ids)
        self._max_docs = max(self._max_docs, len(ids))
        return Record(
            request_id=group.request_id,
            user_id=group.user_id,
            query=group.query,
            query_key=self._query_keys.setdefault(group.query, len(self._query_keys)),
            item_id=ids,
            doc_key=np.array([self._doc_keys.setdefault(i, len(self._doc_keys)) for i in ids.tolist()], np.int32),
            label=labels,
            source=np.asarray(group.source, np.int32)[kept],
            **texts,
            **self._items.counters(rows),
        )

    def _documents_with_text(self, group: Group) -> tuple[np.ndarray, np.ndarray, dict[str, list[str]]]:
        """(positions in the group, item rows, texts) of the documents that can be trained on."""
        rows = self._items.rows(group.item_id)
        kept = np.flatnonzero(rows >= 0)
        self._rejects["unknown_item"] += len(rows) - len(kept)
        texts = self._items.texts(rows[kept])
        full = np.array([any(text.strip() for text in fields) for fields in zip(*texts.values(), strict=True)], bool)
        self._rejects["item_without_text"] += len(full) - int(full.sum())
        kept = kept[full]
        texts = {name: [t for t, keep in zip(column, full, strict=True) if keep] for name, column in texts.items()}
        return kept, rows[kept], texts

    def counts(self, config: RecordsConfig, shard_lengths: list[int]) -> dict[str, Any]:
        return {
            "split": config.split,
            "groups": sum(shard_lengths),
            "shard_lengths": shard_lengths,
            "documents": self._documents,
            "distinct_queries": len(self._query_keys),
            "distinct_documents": len(self._doc_keys),
            "max_docs_per_query": self._max_docs,
            "rejects": dict(self._rejects),
        }


def _check_group(group: Group) -> None:
    n = len(group.item_id)
    if len(group.label) != n or len(group.source) != n or len(np.unique(group.item_id)) != n:
        raise ValueError(f"group {group.request_id}: item ids must be distinct and as many as labels and sources")


def _write_metadata(folder: Path, split: str, shard_lengths: list[int], num_bytes: int) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=DATASET, split=split, filetype_suffix="tfrecord",
        template=naming.DEFAULT_FILENAME_TEMPLATE,
    )  # fmt: skip
    info = tfds.core.SplitInfo(name=split, shard_lengths=shard_lengths, num_bytes=num_bytes, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=record_features(),
        split_infos=[info],
        version="1.0.0",
        check_data=False,  # it would read through TensorFlow, which is not a dependency
        description="Search events with graded documents: CroPS query groups (P0, P1, P2, P3, X3, U2, F1).",
    )
