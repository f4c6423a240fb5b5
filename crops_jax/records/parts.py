"""Finished parts of a data set: the records of some whole queries, in a sealed folder of their own.

A part is a pure function of its candidates, their documents and `PartSettings`, so any process can make it. A run that
was killed finds the parts that it had finished; only whole ones have a manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import checked_file, is_current, read_manifest, verify
from crops_jax.errors import InputError
from crops_jax.labels import LabelsConfig, one_anchor_groups
from crops_jax.records.assemble import assemble
from crops_jax.records.candidates import Part, read_part
from crops_jax.records.coverage import Coverage
from crops_jax.records.documents import read_documents
from crops_jax.records.features import FORMAT
from crops_jax.records.items import Items
from crops_jax.records.provenance import by_group, labels_json, provenance_path
from crops_jax.records.shards import ShardFile, Split
from crops_jax.records.tally import Distinct, Tally
from crops_jax.records.tfrecord import TFRecordReader, frame, index_path
from crops_jax.records.tokens import made_by
from crops_jax.records.write import Framed, RecordMaker
from crops_jax.text.tokenizer import TextConfig, Tokenizer

KIND = "records part"
_SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class PartSettings:
    """What the records of a part depend on, besides its candidates and their documents."""

    labels: LabelsConfig
    validation_share: float
    fields: tuple[str, ...]  # those that the model reads
    text: TextConfig | None = None  # of the tokeniser whose token ids are stored

    def to_json(self) -> dict[str, Any]:
        """As the manifest of a part has them."""
        text = None if self.text is None else made_by(tokenizer_of(self.text))
        return {
            "format": FORMAT,
            "labels": labels_json(self.labels),
            "validation_share": self.validation_share,
            "fields": list(self.fields),
            "token_ids": text,
        }


@dataclass(frozen=True)
class Job:
    """One part to be made."""

    part: Part
    number: int
    folder: Path
    documents: Path  # of all parts
    settings: PartSettings
    inputs: dict[str, Path]

    def config(self) -> dict[str, Any]:
        """As the manifest of the part has it."""
        rows = [self.part.path.name, self.part.first, self.part.last]
        return {"part": rows, **self.settings.to_json()}

    def is_made(self) -> bool:
        """Whether a run that was killed left this part whole."""
        if not is_current(self.folder, kind=KIND, config=self.config(), inputs=self.inputs):
            return False
        try:
            verify(self.folder)
        except InputError:
            return False
        return True


@cache
def tokenizer_of(text: TextConfig) -> Tokenizer:
    """One tokeniser a process."""
    return Tokenizer(text)


def make_part(job: Job) -> None:
    """Labels, groups and writes one part.

    Raises:
      InputError: candidates or documents are damaged.
    """
    settings, labels = job.settings, job.settings.labels
    items = Items({"documents": read_documents(job.documents, job.number)}, shown=False)
    tokenizer = None if settings.text is None else tokenizer_of(settings.text)
    least = None if labels.one_anchor else labels.min_positive
    maker = RecordMaker(items, settings.validation_share, tokenizer, settings.fields, least)
    assembly: Counter[str] = Counter()
    tally = Tally()
    coverage = Coverage()
    groups = assemble(read_part(job.part), labels, assembly, items.keys(settings.fields), coverage)
    if labels.one_anchor:
        groups = (example for group in groups for example in one_anchor_groups(group, labels.min_anchor))
    with write_folder(job.folder, kind=KIND, config=job.config(), inputs=job.inputs, shared=True) as out:
        with ShardFile(out / "train") as train, ShardFile(out / "validation") as validation:
            files = {"train": train, "validation": validation}
            for split, framed, found in maker.framed(groups, tally):
                files[split].write(framed, found)
        for name, keys in (("queries", tally.queries), ("documents", tally.documents)):
            np.save(out / f"{name}.npy", keys.smallest, allow_pickle=False)
        out.counts |= {"assembly": assembly, "rejects": tally.rejects, "max_docs": tally.max_docs}
        out.counts |= {"coverage": coverage.to_json(), "records": {name: f.held.groups for name, f in files.items()}}


@dataclass
class PartCounts:
    """What became of the groups of parts, what of their candidates (`assemble`), and what their sources say."""

    tally: Tally = field(default_factory=Tally)
    assembly: Counter[str] = field(default_factory=Counter)
    coverage: Coverage = field(default_factory=Coverage)

    def add(self, other: PartCounts) -> None:
        """Takes those of other parts."""
        self.tally.add(other.tally)
        self.assembly.update(other.assembly)
        self.coverage.add(other.coverage)


@dataclass(frozen=True)
class FinishedPart:
    """A part read back."""

    folder: Path

    def counts(self) -> PartCounts:
        """What was counted when it was made."""
        counts = read_manifest(self.folder, KIND)["counts"]
        queries, documents = (Distinct(np.load(self.folder / f"{name}.npy")) for name in ("queries", "documents"))
        tally = Tally(Counter(counts["rejects"]), queries, documents, counts["max_docs"])
        return PartCounts(tally, Counter(counts["assembly"]), Coverage.from_json(counts["coverage"]))

    def lengths(self) -> dict[Split, int]:
        """How many records it has of each split."""
        return read_manifest(self.folder, KIND)["counts"]["records"]

    def framed(self) -> Iterator[Framed]:
        """Its records in their order within each split.

        Raises:
          InputError: its bytes have changed since it was made.
        """
        verify(self.folder)
        for split in _SPLITS:
            path = self.folder / split
            data = memoryview(path.read_bytes())
            found = np.load(provenance_path(path))
            index = np.load(index_path(path))
            ends = [*index[1:, 0].tolist(), len(data)][: len(index)]
            for start, end, of_group in zip(index[:, 0].tolist(), ends, by_group(found), strict=True):
                yield split, data[start:end], of_group

    def records(self, split: Split, numbers: Sequence[int]) -> Iterator[Framed]:
        """Some records of a split, by their numbers; no others are read.

        Raises:
          InputError: the bytes of one of them have changed since it was made.
        """
        if not numbers:
            return
        path = self.folder / split
        found = by_group(np.load(checked_file(self.folder, provenance_path(path).name)))
        reader = TFRecordReader(path)
        for number in numbers:
            yield split, frame(reader.read(number)), found[number]
        reader.close()
