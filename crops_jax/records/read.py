"""One split of a folder of record shards as one list of query groups, readable in any order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax.artifacts.manifest import file_facts, verify
from crops_jax.errors import InputError
from crops_jax.records.features import FORMAT, Record, decode_example, protos
from crops_jax.records.provenance import SourceFilter, provenance_path
from crops_jax.records.shards import DATASET, Split, shard_name
from crops_jax.records.shards_reader import ShardsReader


class RecordsReader:
    """Random access to the groups of a split; both checksums are verified on every read.

    Group numbers run through the shards in order. Safe to use from several threads.
    """

    def __init__(self, folder: str | Path, split: Split = "train", sources: Sequence[str] = ()):
        """Opens every shard after checking names and sizes against the manifest.

        Args:
          sources: read the groups as if these alone had taken part (`provenance.SourceFilter`); empty: as written.

        Raises:
          InputError: not a complete records folder, or one without this split; a file is missing or cut; an index does
            not fit; the number of records is not what the manifest says; a source is none of the records', or the
            bytes that tell of the sources have changed.
        """
        self.folder = Path(folder)
        manifest = verify(self.folder, "records", deep=False)
        self._counts = manifest["counts"]
        lengths = self._shard_lengths(split)
        names = [shard_name(split, shard, len(lengths)) for shard in range(len(lengths))]
        self._shards = ShardsReader(self.folder, manifest, names, lengths)
        self._filter = self._kept = None
        if sources:
            self._filter = SourceFilter.of(self.labels, sources, str(self.folder))
            self._kept = self._numbers_kept(self._filter, manifest["files"])
        # Not by the first read, in whatever thread: while tensorflow-datasets is imported, `__import__` is another one
        # for all threads, and fails on relative imports.
        protos()

    def _shard_lengths(self, split: Split) -> list[int]:
        if self._counts.get("format") != FORMAT:
            mend = "python -m crops_jax.write_records --config FILE"
            raise InputError(str(self.folder), f"was written by another version; write the shards again: {mend}")
        splits = self._counts["splits"]
        if split not in splits:
            mend = "write the shards again with --records.validation_share above 0"
            raise InputError(str(self.folder), f"has no split {split!r}; {mend}")
        return splits[split]["shard_lengths"]

    def _numbers_kept(self, chosen: SourceFilter, sealed: Sequence[dict[str, Any]]) -> np.ndarray:
        """int64: the groups in which a positive is left. What says so has no checksum but that of the manifest."""
        paths, told = [provenance_path(shard.path) for shard in self._shards.shards], {e["path"]: e for e in sealed}
        if changed := [p.name for p in paths if vars(file_facts(p, self.folder)) != told.get(p.name)]:
            said = "its bytes have changed since it was written: copy it again or write the records again"
            raise InputError(str(self.folder), [f"{name}: {said}" for name in changed])
        found = [chosen.kept(np.load(path)) for path in paths]
        return np.concatenate([of_shard + first for of_shard, first in zip(found, self._shards.first, strict=False)])

    def __len__(self) -> int:
        return len(self._shards) if self._kept is None else len(self._kept)

    @property
    def max_docs_per_query(self) -> int:
        """Documents of the largest group of any split, as written."""
        return self._counts["max_docs_per_query"]

    @property
    def token_ids(self) -> dict[str, Any] | None:
        """What made the token ids of these records (`tokens.made_by`); None where they hold texts alone."""
        return self._counts["token_ids"]

    @property
    def labels(self) -> dict[str, Any] | None:
        """What labelled these records (`provenance.labels_json`); None where they were not made of mined candidates."""
        return self._counts["labels"]

    def fingerprint(self) -> str:
        """sha256 over the checksums of both splits' files: equal groups in equal shards, whatever they came from."""
        return self._shards.fingerprint(f"{DATASET}-")

    def read(self, numbers: Iterable[int]) -> list[Record]:
        """The groups with these numbers, in this order.

        Raises:
          IndexError: a number is outside 0..len-1.
          InputError: a damaged record; names file and byte offset.
        """
        wanted = np.fromiter(numbers, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"{self.folder}: group numbers run from 0 to {len(self) - 1}")
        if self._kept is not None:
            wanted = self._kept[wanted]
        records = [decode_example(data, place) for data, place in self._shards.read(wanted)]
        return records if self._filter is None else [self._filter.record(record) for record in records]

    def close(self) -> None:
        """Closes every shard."""
        self._shards.close()
