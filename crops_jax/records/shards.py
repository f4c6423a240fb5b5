"""The shard files of a data set: records dealt to them, their indexes, and the metadata of tensorflow-datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crops_jax.artifacts.folders import Folder
from crops_jax.errors import InputError
from crops_jax.records.features import FORMAT, record_features
from crops_jax.records.growing import GrowingArray
from crops_jax.records.provenance import provenance_path
from crops_jax.records.tally import Tally
from crops_jax.records.tfrecord import TFRecordWriter

DATASET = "crops"
_DESCRIPTION = "Search events with graded documents: CroPS query groups (P0, P1, P2, P3, X3, U2, F1)."
Split = Literal["train", "validation"]


def shard_name(split: Split, shard: int, shards: int) -> str:
    """`crops-train.tfrecord-00000-of-00004`, the name that tensorflow-datasets expects."""
    return f"{DATASET}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


@dataclass(frozen=True)
class Held:
    """What a shard file holds."""

    groups: int
    documents: int
    num_bytes: int


class ShardFile:
    """One TFRecord file with its index and the provenance of its documents. A context manager."""

    def __init__(self, path: Path):
        self._writer = TFRecordWriter(path)
        self._provenance = GrowingArray(provenance_path(path), "<u2")
        self._documents = 0

    @property
    def held(self) -> Held:
        """What was written so far."""
        return Held(self._writer.count, self._documents, self._writer.num_bytes)

    def write(self, framed: bytes | memoryview, provenance: np.ndarray) -> None:
        """Appends a record as `tfrecord.frame` made it, and what `provenance.provenance` says of it."""
        self._writer.write_frame(framed)
        self._provenance.append(provenance.tobytes())
        self._documents += len(provenance)

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

    def __init__(self, files: list[ShardFile], draw: np.random.Generator):
        self._files, self._draw = files, draw
        self._order: list[int] = []

    def write(self, framed: bytes | memoryview, provenance: np.ndarray) -> None:
        """Deals a record."""
        self._order = self._order or self._draw.permutation(len(self._files)).tolist()
        self._files[self._order.pop()].write(framed, provenance)

    @property
    def held(self) -> list[Held]:
        """What each file holds so far."""
        return [file.held for file in self._files]


def dealt_to(shard: int, shards: int, seed: int) -> Iterator[int]:
    """The numbers of the records that `Shards` deals to one of its files, rising and without an end.

    So a shard can be written without the others, of records that are numbered.

    >>> from itertools import islice
    >>> [list(islice(dealt_to(shard, 2, 0), 3)) for shard in (0, 1)]
    [[1, 3, 5], [0, 2, 4]]
    """
    draw = np.random.default_rng(seed)
    for block in count():
        order = draw.permutation(shards).tolist()
        yield (block + 1) * shards - 1 - order.index(shard)


def splits_of(train: int, validation: bool) -> dict[Split, int]:
    """How many shards each split has."""
    return {"train": train} | ({"validation": 1} if validation else {})


@contextmanager
def open_shards(folder: Path, train: int, validation: bool, seed: int) -> Iterator[dict[Split, Shards]]:
    """The shards of both splits; the validation split has one."""
    with ExitStack() as stack:
        opened = {}
        for split, n in splits_of(train, validation).items():
            paths = [folder / shard_name(split, shard, n) for shard in range(n)]
            files = [stack.enter_context(ShardFile(path)) for path in paths]
            opened[split] = Shards(files, np.random.default_rng(seed))
        yield opened


def finish(
    out: Folder, splits: Mapping[Split, Sequence[Held]], tally: Tally, made_by: dict[str, Any] | None,
    labels: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Writes the metadata of closed shards, notes the counts in `out.counts` and returns them.

    Args:
      splits: what the shards of each hold, in their order.
      made_by: what made the token ids (`tokens.made_by`); None where there are none.
      labels: what gave the labels (`provenance.labels_json`); None where that was no `LabelsConfig`.

    Raises:
      InputError: no group is left to train on.
    """
    counts = tally.counts() | {
        "format": FORMAT,
        "splits": {split: _counts(held) for split, held in splits.items()},
        "token_ids": made_by,
        "labels": labels,
    }
    if counts["splits"]["train"]["groups"] == 0:
        left = ", ".join(f"{n} {reason}" for reason, n in counts["rejects"].items() if n) or "nothing"
        held = sum(split["groups"] for split in counts["splits"].values())
        told = "each needs a positive, such as a click: a document of labels.min_positive or more"
        raise InputError("records", f"no group is left to train on; {told}; rejected beside those without: {left}; "
                         f"held out for validation: {held}")  # fmt: skip
    sizes = {split: [(shard.groups, shard.num_bytes) for shard in held] for split, held in splits.items()}
    write_metadata(out.path, DATASET, _DESCRIPTION, record_features(made_by is not None), sizes)
    out.counts.update(counts)
    return counts


def _counts(held: Sequence[Held]) -> dict[str, Any]:
    lengths = [shard.groups for shard in held]
    return {"groups": sum(lengths), "documents": sum(shard.documents for shard in held), "shard_lengths": lengths}


def write_metadata(
    folder: Path, dataset: str, description: str, features: Any, splits: Mapping[str, Sequence[tuple[int, int]]]
) -> None:
    """Writes what tensorflow-datasets reads the shards by.

    Args:
      splits: (records, bytes) of the shards of each, in their order.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    def info(split: str, shards: Sequence[tuple[int, int]]) -> Any:
        template = naming.ShardedFileTemplate(
            data_dir=folder, dataset_name=dataset, split=split, filetype_suffix="tfrecord",
            template=naming.DEFAULT_FILENAME_TEMPLATE,
        )  # fmt: skip
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[records for records, _ in shards],
            num_bytes=sum(num_bytes for _, num_bytes in shards),
            filename_template=template,
        )

    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[info(split, shards) for split, shards in splits.items()],
        version=f"{FORMAT}.0.0",
        check_data=False,  # it would read through TensorFlow, which is not a dependency
        description=description,
    )
