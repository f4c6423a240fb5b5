"""The shard files of one split as one list of serialised records, readable in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax.errors import InputError
from crops_jax.records.tfrecord import TFRecordReader


class ShardsReader:
    """Random access; both checksums are verified on every read. Numbers run through the shards in order.

    Safe to use from several threads.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], names: Sequence[str], lengths: Sequence[int]):
        """Opens the files.

        Args:
          manifest: the folder's, as `artifacts.manifest.verify` gives it.
          names: of the files, in their order.
          lengths: how many records the manifest says each has.

        Raises:
          InputError: a file cannot be opened; an index does not fit; a file has another number of records.
        """
        self.folder = folder
        self._files = manifest["files"]
        self.shards = [TFRecordReader(folder / name) for name in names]
        wrong = [f"{name}: its index holds {len(shard)} records, the manifest says {length}"
                 for name, shard, length in zip(names, self.shards, lengths, strict=True)
                 if len(shard) != length]  # fmt: skip
        if wrong:
            raise InputError(str(folder), wrong)
        self.first = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def fingerprint(self, prefix: str) -> str:
        """sha256 over the checksums of the folder's files whose names begin so: equal records in equal shards."""
        sums = [(entry["path"], entry["sha256"]) for entry in self._files if entry["path"].startswith(prefix)]
        return hashlib.sha256(repr(sums).encode()).hexdigest()

    def read(self, numbers: Iterable[int]) -> list[tuple[bytes, str]]:
        """The records with these numbers, in this order, each with its place for messages.

        Raises:
          IndexError: a number is outside 0..len-1.
          InputError: a damaged record; names file and byte offset.
        """
        wanted = np.fromiter(numbers, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"{self.folder}: numbers of records run from 0 to {len(self) - 1}")
        shards = np.searchsorted(self.first, wanted, side="right") - 1
        found = []
        for shard, number in zip(shards.tolist(), (wanted - self.first[shards]).tolist(), strict=True):
            file = self.shards[shard]
            found.append((file.read(number), f"{file.path}, record {number}"))
        return found

    def close(self) -> None:
        """Closes every file."""
        for shard in self.shards:
            shard.close()
