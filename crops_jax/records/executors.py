"""Mined candidates -> shards where the engine runs: on a cluster by its executors. The bytes are those of `workers`.

First the parts are made, a task a part, and then the shards: a task a shard, which reads from all parts the records
that are dealt to it. To this process come counts, checksums, and sketches of distinct keys (`tally.Distinct`).
Executors write into the folders of the command, which they see under the same paths.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from crops_jax.artifacts.folders import Folder, write_folder
from crops_jax.artifacts.manifest import FileFacts, read_manifest
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.progress import stage
from crops_jax.records.parts import FinishedPart, Job, PartCounts, make_part
from crops_jax.records.shards import Held, ShardFile, Split, dealt_to, shard_name, splits_of
from crops_jax.records.write import Framed, RecordsConfig

KIND = "records shard"
_COUNTED = 64  # parts, by one task
Dealt = Sequence[tuple[FinishedPart, int]]  # all parts in their order, and how many records of a split each has


def are_made(jobs: Sequence[Job], engine: EngineConfig) -> list[bool]:
    """`Job.is_made` of each."""
    with open_engine(engine, []) as opened:
        return opened.each(Job.is_made, jobs)


def write_shards(
    jobs: Sequence[Job], missing: Collection[int], out: Folder, config: RecordsConfig, seed: int,
    engine: EngineConfig, scratch: Path,
) -> tuple[dict[Split, list[Held]], PartCounts]:  # fmt: skip
    """Makes the missing parts, and of all parts the shards in `out`; returns what these hold, and what was counted.

    Args:
      scratch: a folder of its own, on the disk of `out`.

    Raises:
      InputError: candidates or documents are damaged.
    """
    parts = [FinishedPart(job.folder) for job in jobs]
    chunks = [parts[start : start + _COUNTED] for start in range(0, len(parts), _COUNTED)]
    lengths: list[dict[Split, int]] = []
    counts, held = PartCounts(), {}
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed, maybe with another seed
    with open_engine(engine, []) as opened:
        with stage("groups of all parts"):
            opened.each(make_part, [job for job in jobs if job.number in missing])
        for of_parts, counted in opened.each(_counted, chunks):
            lengths += of_parts
            counts.add(counted)
        for split, shards in splits_of(config.shards, config.validation_share > 0).items():
            dealt = [(part, length[split]) for part, length in zip(parts, lengths, strict=True)]
            folders = [scratch / f"{split}-{shard:05d}" for shard in range(shards)]
            with stage(f"shards of {split}"):
                make = partial(_make_shard, dealt, split, seed, folders)
                held[split] = opened.each(make, range(shards))
            for folder in folders:
                _take(out, folder)
    return held, counts


def _counted(parts: Sequence[FinishedPart]) -> tuple[list[dict[Split, int]], PartCounts]:
    """(records of each part, the counts of all)."""
    whole = PartCounts()
    for part in parts:
        whole.add(part.counts())
    return [part.lengths() for part in parts], whole


def _make_shard(dealt: Dealt, split: Split, seed: int, folders: Sequence[Path], shard: int) -> Held:
    """Writes one shard into a folder of its own: two executors that think that it is theirs do not meet in a file."""
    with write_folder(folders[shard], kind=KIND, shared=True) as out:
        name = shard_name(split, shard, len(folders))
        with ShardFile(out / name) as file:
            for _, framed, found in _records(dealt, split, dealt_to(shard, len(folders), seed)):
                file.write(framed, found)
    return file.held


def _records(dealt: Dealt, split: Split, wanted: Iterator[int]) -> Iterator[Framed]:
    """The records with these numbers, which count through all parts."""
    first, number = 0, next(wanted)
    for part, length in dealt:
        here = []
        while number < first + length:
            here.append(number - first)
            number = next(wanted)
        yield from part.records(split, here)
        first += length


def _take(out: Folder, folder: Path) -> None:
    """Moves the files of a shard into `out`. Its executor has hashed them already."""
    for entry in read_manifest(folder, KIND)["files"]:
        os.replace(folder / entry["path"], out / entry["path"])
        out.facts.append(FileFacts(**entry))
