"""One split of a folder of record shards as one list of query groups, readable in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax.artifacts import read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.records.features import Record, decode_example, protos
from crops_jax.records.tfrecord import TFRecordReader
from crops_jax.records.write import Split, shard_name


class RecordsReader:
    """Random access to the groups of a split; both checksums are verified on every read.

    Group numbers run through the shards in order. Safe to use from several threads.
    """

    def __init__(self, folder: str | Path, split: Split = "train"):
        """Opens every shard after checking names and sizes against the manifest.

        Raises:
          InputError: not a complete records folder, or one without this split; a file is missing or cut; an index does
            not fit; the number of records is not what the manifest says.
        """
        self.folder = Path(folder)
        read_manifest(self.folder, kind="records")
        manifest = verify(self.folder, deep=False)
        self._counts = manifest["counts"]
        self._sums = [(entry["path"], entry["sha256"]) for entry in manifest["files"]]
        lengths = self._shard_lengths(split)
        names = [shard_name(split, shard, len(lengths)) for shard in range(len(lengths))]
        self._shards = [TFRecordReader(self.folder / name) for name in names]
        wrong = [f"{name}: its index holds {len(shard)} records, the manifest says {length}"
                 for name, shard, length in zip(names, self._shards, lengths, strict=True)
                 if len(shard) != length]  # fmt: skip
        if wrong:
            raise InputError(str(self.folder), wrong)
        self._first = np.concatenate([[0], np.cumsum(lengths)])
        # Not by the first read, in whatever thread: while tensorflow-datasets is imported, `__import__` is another one
        # for all threads, and fails on relative imports.
        protos()

    def _shard_lengths(self, split: Split) -> list[int]:
        splits = self._counts.get("splits")
        if splits is None:
            mend = "python -m crops_jax.write_records --config FILE"
            raise InputError(str(self.folder), f"was written by an older version; write the shards again: {mend}")
        if split not in splits:
            mend = "write the shards again with --records.validation_share above 0"
            raise InputError(str(self.folder), f"has no split {split!r}; {mend}")
        return splits[split]["shard_lengths"]

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def max_docs_per_query(self) -> int:
        """Documents of the largest group of any split."""
        return self._counts["max_docs_per_query"]

    @property
    def token_ids(self) -> dict[str, Any] | None:
        """What made the token ids of these records (`tokens.made_by`); None where they hold texts alone."""
        return self._counts["token_ids"]

    def fingerprint(self) -> str:
        """sha256 over the checksums of both splits' files: equal groups in equal shards, whatever they came from."""
        return hashlib.sha256(repr(self._sums).encode()).hexdigest()

    def read(self, numbers: Iterable[int]) -> list[Record]:
        """The groups with these numbers, in this order.

        Raises:
          IndexError: a number is outside 0..len-1.
          InputError: a damaged record; names file and byte offset.
        """
        wanted = np.fromiter(numbers, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"{self.folder}: group numbers run from 0 to {len(self) - 1}")
        shards = np.searchsorted(self._first, wanted, side="right") - 1
        records = []
        for shard, number in zip(shards.tolist(), (wanted - self._first[shards]).tolist(), strict=True):
            file = self._shards[shard]
            records.append(decode_example(file.read(number), f"{file.path}, record {number}"))
        return records

    def close(self) -> None:
        """Closes every shard."""
        for shard in self._shards:
            shard.close()
