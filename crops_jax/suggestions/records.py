"""Shards of examples: TFRecord files that tensorflow-datasets reads, written in order and read in any."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax.artifacts.folders import Folder
from crops_jax.artifacts.manifest import verify
from crops_jax.errors import InputError
from crops_jax.records.features import protos
from crops_jax.records.shards import write_metadata
from crops_jax.records.shards_reader import ShardsReader
from crops_jax.records.tfrecord import TFRecordWriter
from crops_jax.suggestions.examples import Example, decode_example, encode_example, example_features

DATASET = "suggestions"
KIND = "records"
_DESCRIPTION = "Suggestions that were taken, beside those that were not (OneSug)."


def _name(shard: int, shards: int) -> str:
    return f"{DATASET}-train.tfrecord-{shard:05d}-of-{shards:05d}"


def write_examples(examples: Iterable[Example], out: Folder, shards: int, seed: int) -> dict[str, Any]:
    """Deals examples to shards, one to each in an order that `seed` draws anew, and returns the counts.

    What a shard holds depends on the order of the examples and on `seed` alone.

    Raises:
      InputError: there is no example.
    """
    draw, order, losers, referenced = np.random.default_rng(seed), [], [], 0
    with ExitStack() as stack:
        paths = [out / _name(shard, shards) for shard in range(shards)]
        files = [stack.enter_context(TFRecordWriter(path)) for path in paths]
        for example in examples:
            order = order or draw.permutation(shards).tolist()
            files[order.pop()].write(encode_example(example))
            losers.append(len(example.rejected))
            referenced += len(example.reference) > 0
    if not losers:
        raise InputError("records of suggestions", "there is no example: nobody took a suggestion")
    write_metadata(
        out.path, DATASET, _DESCRIPTION, example_features(), {"train": [(f.count, f.num_bytes) for f in files]}
    )
    counts = {
        "suggestions": len(losers),
        "shard_lengths": [file.count for file in files],
        "without_losers": losers.count(0),
        "pairs": sum(losers),
        "referenced": referenced,
    }
    out.counts.update(counts)
    return counts


class ExamplesReader:
    """Random access to the examples of a folder. Safe to use from several threads."""

    def __init__(self, folder: str | Path):
        """Opens every shard after checking names and sizes against the manifest.

        Raises:
          InputError: the folder is no complete folder of records, or holds others than of suggestions; a file is
            missing or cut.
        """
        self.folder = Path(folder)
        manifest = verify(self.folder, KIND, deep=False)
        self.counts: dict[str, Any] = manifest["counts"]
        if "suggestions" not in self.counts:
            raise InputError(str(self.folder), "holds records of searches, not of suggestions; give another --name")
        lengths = self.counts["shard_lengths"]
        names = [_name(shard, len(lengths)) for shard in range(len(lengths))]
        self._shards = ShardsReader(self.folder, manifest, names, lengths)
        protos()  # here, and not in a thread: see `records.read`

    def __len__(self) -> int:
        return len(self._shards)

    def fingerprint(self) -> str:
        """Equal for equal examples in equal shards."""
        return self._shards.fingerprint(f"{DATASET}-")

    def read(self, numbers: Iterable[int], epochs: Iterable[int] = ()) -> list[Example]:
        """The examples with these numbers, in this order; the same in every epoch.

        Raises:
          IndexError: there is no such number.
          InputError: a damaged record; names file and byte offset.
        """
        return [decode_example(data, place) for data, place in self._shards.read(numbers)]

    def close(self) -> None:
        """Closes every file."""
        self._shards.close()
