"""The shard files of a data set: records dealt to them, their indexes, and the metadata of tensorflow-datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crops_jax.artifacts import Folder
from crops_jax.errors import InputError
from crops_jax.records.features import FORMAT, record_features
from crops_jax.records.growing import GrowingArray
from crops_jax.records.provenance import provenance_path
from crops_jax.records.tally import Tally
from crops_jax.records.tfrecord import TFRecordWriter

DATASET = "crops"
Split = Literal["train", "validation"]


def shard_name(split: Split, shard: int, shards: int) -> str:
    """`crops-train.tfrecord-00000-of-00004`, the name that tensorflow-datasets expects."""
    return f"{DATASET}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


class ShardFile:
    """One TFRecord file with its index and the provenance of its documents. A context manager."""

    def __init__(self, path: Path):
        self._writer = TFRecordWriter(path)
        self._provenance = GrowingArray(provenance_path(path), "<u2")
        self.documents = 0

    @property
    def count(self) -> int:
        """Records written so far."""
        return self._writer.count

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return self._writer.num_bytes

    def write(self, framed: bytes | memoryview, provenance: np.ndarray) -> None:
        """Appends a record as `tfrecord.frame` made it, and what `provenance.provenance` says of it."""
        self._writer.write_frame(framed)
        self._provenance.append(provenance.tobytes())
        self.documents += len(provenance)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, kind: type | None, *error: Any) -> None:
        self._writer.__exit__(kind, *error)
        if kind is None:
            self._provenance.close()
        else:
            self._provenance.remove()


class Shards:
    """The shard files of one split.

    Records are dealt to them in blocks, one to each in an order drawn from `draw`, so that shards differ in length by
    at most one and a reader of one shard sees a sample of the whole. What a shard holds depends on the order of the
    records alone, and not on who made them.
    """

    def __init__(self, files: list[ShardFile], split: Split, draw: np.random.Generator):
        self.split, self.files = split, files
        self._draw = draw
        self._order: list[int] = []

    def write(self, framed: bytes | memoryview, provenance: np.ndarray) -> None:
        """Deals a record."""
        self._order = self._order or self._draw.permutation(len(self.files)).tolist()
        self.files[self._order.pop()].write(framed, provenance)

    def counts(self) -> dict[str, Any]:
        """As the manifest has them."""
        lengths = [file.count for file in self.files]
        documents = sum(file.documents for file in self.files)
        return {"groups": sum(lengths), "documents": documents, "shard_lengths": lengths}


@contextmanager
def open_shards(folder: Path, train: int, validation: bool, seed: int) -> Iterator[dict[Split, Shards]]:
    """The shards of both splits; the validation split has one."""
    draw = np.random.default_rng(seed)
    wanted: dict[Split, int] = {"train": train} | ({"validation": 1} if validation else {})
    with ExitStack() as stack:
        opened = {}
        for split, n in wanted.items():
            paths = [folder / shard_name(split, shard, n) for shard in range(n)]
            opened[split] = Shards([stack.enter_context(ShardFile(path)) for path in paths], split, draw)
        yield opened


def finish(
    out: Folder, splits: Mapping[Split, Shards], tally: Tally, made_by: dict[str, Any] | None,
    labels: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Writes the metadata of closed shards, notes the counts in `out.counts` and returns them.

    Args:
      made_by: what made the token ids (`tokens.made_by`); None where there are none.
      labels: what gave the labels (`provenance.labels_json`); None where that was no `LabelsConfig`.

    Raises:
      InputError: no group is left to train on.
    """
    counts = tally.counts() | {
        "format": FORMAT,
        "splits": {split: shards.counts() for split, shards in splits.items()},
        "token_ids": made_by,
        "labels": labels,
    }
    if counts["splits"]["train"]["groups"] == 0:
        raise InputError("records", f"no group is left to train on; counts: {counts}")
    _write_metadata(out.path, list(splits.values()), record_features(made_by is not None))
    out.counts.update(counts)
    return counts


def _write_metadata(folder: Path, splits: list[Shards], features: Any) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    def info(shards: Shards) -> Any:
        template = naming.ShardedFileTemplate(
            data_dir=folder, dataset_name=DATASET, split=shards.split, filetype_suffix="tfrecord",
            template=naming.DEFAULT_FILENAME_TEMPLATE,
        )  # fmt: skip
        return tfds.core.SplitInfo(
            name=shards.split,
            shard_lengths=shards.counts()["shard_lengths"],
            num_bytes=sum(file.num_bytes for file in shards.files),
            filename_template=template,
        )

    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[info(shards) for shards in splits],
        version=f"{FORMAT}.0.0",
        check_data=False,  # it would read through TensorFlow, which is not a dependency
        description="Search events with graded documents: CroPS query groups (P0, P1, P2, P3, X3, U2, F1).",
    )
