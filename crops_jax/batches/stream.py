"""Record groups -> batches: a true global shuffle, static shapes, and a position from which a run can go on exactly.

Epoch e reads all groups in the order of a permutation keyed by (seed, e); the epochs follow each other without a gap.
Of this endless sequence, shard s of S reads places s, s+S, s+2S, ... and fills its part of every batch from them: a
fixed number of groups or, packed, as many as its token budget holds. So a batch does not depend on how many devices or
processes there are, each process reads its own shards' groups alone, and where a run stands is one small array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from crops_jax.batches.collate import EncodedGroup, PackedShard, encode_groups, packed_batch, padded_batch
from crops_jax.batches.config import InputConfig
from crops_jax.batches.order import numbers_at
from crops_jax.batches.packing import fullest, place
from crops_jax.errors import InputError
from crops_jax.records import RecordsReader
from crops_jax.records.tokens import differences
from crops_jax.text.featurizer import Featurizer
from crops_jax.text.tokenizer import Tokenizer

_Key = tuple[int, int]  # a shard's row in the position, a place in its sequence
Candidate = tuple[int, EncodedGroup]  # a place in a shard's sequence and the group there


def position_shape(config: InputConfig) -> tuple[int, int]:
    """(shards, 1 + lookahead): the shape of a run's position, over all processes."""
    return config.shards, 1 + (0 if config.packing is None else config.packing.lookahead)


@dataclass(frozen=True)
class Loaded:
    """One batch of this process, and where reading goes on."""

    batch: Any  # numpy; the rows of this process's shards
    position: np.ndarray  # int32[shards of this process, 1 + lookahead]; see TrainBatches
    group_numbers: np.ndarray  # int64; of the groups it holds


class Batches(Protocol):
    """The batches of a run, whatever they hold: the batch at a position, and the position after it."""

    config: InputConfig

    def start(self) -> np.ndarray:
        """The position before the first batch, as this process has it."""
        ...

    def load(self, position: np.ndarray) -> Loaded:
        """The batch at `position`: a pure function of records, config and position."""
        ...

    def requests(self, groups: np.ndarray) -> list[str]:
        """The request ids of what batches hold, for messages."""
        ...


class TrainBatches:
    """The batches of a run: `load(position)` is a pure function of records, config and position.

    A position is int32[shards, 1 + lookahead]: for each shard how many groups of its sequence it has taken or put off,
    and the places of those it has put off, oldest first, -1 where there is none.
    """

    def __init__(
        self, reader: RecordsReader, featurizer: Featurizer, config: InputConfig, shards: Sequence[int] | None = None
    ):
        """Args:
          shards: numbers of the shards that this process reads, rising; all by default.

        Raises:
          InputError: no groups, groups larger than K, texts longer than a packed row, token ids of another tokeniser or
            text config; all are listed.
        """
        self.reader, self.featurizer, self.config = reader, featurizer, config
        self.shards = np.arange(config.shards) if shards is None else np.asarray(shards)
        self._group_slots = config.batch_queries // config.shards  # slots of a shard
        self._put_off: dict[_Key, EncodedGroup] = {}  # encoded and not yet in a batch: saves encoding them again
        if problems := list(self._problems()):
            raise InputError("input", problems)

    def _problems(self) -> Iterator[str]:
        config, folder = self.config, self.reader.folder
        if len(self.reader) == 0:
            yield f"{folder} holds no groups"
        if self.reader.max_docs_per_query > config.docs_per_query:
            largest = self.reader.max_docs_per_query
            yield f"docs_per_query is {config.docs_per_query}, but {folder} holds a group of {largest} documents"
        if isinstance(self.featurizer, Tokenizer):
            yield from (f"{folder}: {problem}" for problem in differences(self.reader.token_ids, self.featurizer))
        if config.packing is None:
            return
        if not isinstance(self.featurizer, Tokenizer):
            yield "packing is for texts; the hashed ids of the sparse model have none to save; set input.packing=None"
            return
        text, rows = self.featurizer.config, config.packing
        for kind, slots, longest in (("query", rows.query_row_tokens, text.max_query_tokens),
                                     ("doc", rows.doc_row_tokens, text.max_doc_tokens)):  # fmt: skip
            if slots < longest:
                yield f"packing.{kind}_row_tokens is {slots}, but text.max_{kind}_tokens is {longest}"

    def start(self) -> np.ndarray:
        """The position before the first batch."""
        position = np.full((len(self.shards), position_shape(self.config)[1]), -1, np.int32)
        position[:, 0] = 0
        return position

    def load(self, position: np.ndarray) -> Loaded:
        """The batch at `position`.

        Raises:
          InputError: a damaged record, or a group that fits into no batch.
        """
        candidates = [self._candidates(row) for row in position]
        encoded = self._encode(candidates)
        k = self.config.docs_per_query
        if self.config.packing is None:
            taken = candidates
            shards = [[encoded[s, i] for i in places] for s, places in enumerate(taken)]
            batch = padded_batch(shards, self._group_slots, k, self._pad_id)
        else:
            filled = [self._take_groups([(i, encoded[s, i]) for i in places]) for s, places in enumerate(candidates)]
            taken = [places for places, _ in filled]
            batch = packed_batch([shard for _, shard in filled], self._group_slots, k, self._row_shapes, self._pad_id)
        used = {(s, i) for s, places in enumerate(taken) for i in places}
        self._put_off = {key: group for key, group in encoded.items() if key not in used}
        after = [_after(*each) for each in zip(position, candidates, taken, strict=True)]
        return Loaded(batch, np.stack(after), self._numbers(taken))

    def _candidates(self, row: np.ndarray) -> list[int]:
        """Places that a shard may take from: those put off, then as many of the next as could be looked at."""
        put_off = [int(place) for place in row[1:] if place >= 0]
        new = self._group_slots + len(row) - 1 - len(put_off)
        return put_off + list(range(int(row[0]), int(row[0]) + new))

    def _encode(self, candidates: list[list[int]]) -> dict[_Key, EncodedGroup]:
        """Every candidate as model input; what an earlier batch left over is not encoded again."""
        missing = [
            [place for place in places if (s, place) not in self._put_off] for s, places in enumerate(candidates)
        ]
        keys = [(s, place) for s, places in enumerate(missing) for place in places]
        read = encode_groups(self.reader.read(self._numbers(missing)), self.featurizer) if keys else []
        return self._put_off | dict(zip(keys, read, strict=True))

    def _numbers(self, places: list[list[int]]) -> np.ndarray:
        """int64[n]: the group numbers at these places of every shard's sequence, one shard after the other."""
        shard = np.repeat(self.shards, [len(of_shard) for of_shard in places])
        place = np.array([i for of_shard in places for i in of_shard], np.int64) * self.config.shards + shard
        return numbers_at(place, len(self.reader), self.config.seed)

    def _take_groups(self, candidates: list[Candidate]) -> tuple[list[int], PackedShard]:
        """The places that one shard takes: in order while there is room, then those that fill what is left best."""
        free = prod(self._row_shapes[1])
        taken, left = [], list(candidates)
        while (
            len(taken) < self._group_slots and left[0][1].tokens + max(g.tokens for _, g in self._window(left)) <= free
        ):
            taken.append(left.pop(0))
            free -= taken[-1][1].tokens
        taken = taken or [left.pop(0)]  # the oldest, even where it fits badly: no group waits twice
        while (shard := self._placed(taken)) is None:
            left.insert(0, taken.pop())
            if not taken:
                raise self._too_large(candidates[0][1])
        room = prod(self._row_shapes[1]) - sum(g.tokens for _, g in taken)
        window = self._window(left)[: self._group_slots - len(taken)]
        # Rows cannot always be filled to the last slot: ask for less until the choice fits.
        for wanted in range(room, 0, -max(1, self._row_shapes[1][1] // 16)):
            more = [window[i] for i in fullest([g.tokens for _, g in window], wanted)]
            if (fuller := self._placed([*taken, *more])) is not None:
                return [place for place, _ in [*taken, *more]], fuller
        return [place for place, _ in taken], shard

    def _window(self, left: list[Candidate]) -> list[Candidate]:
        """Those that may be taken next; the others before it are put off."""
        return left[: self.config.packing.lookahead + 1]

    def _too_large(self, group: EncodedGroup) -> InputError:
        rows, slots = self._row_shapes[1]
        return InputError(f"input.packing, {rows} rows of {slots} slots for a shard's documents",
                          f"the group of request {group.record.request_id} has {group.tokens} tokens and does not "
                          "fit; more doc_rows, or fewer input.shards")  # fmt: skip

    def _placed(self, taken: list[Candidate]) -> PackedShard | None:
        """These groups in the shard's rows, if they fit."""
        groups = [group for _, group in taken]
        queries = place([int(n) for g in groups for n in g.query.length], *self._row_shapes[0])
        docs = place([int(n) for g in groups for n in g.docs.length], *self._row_shapes[1])
        return None if queries is None or docs is None else PackedShard(groups, queries, docs)

    @property
    def _row_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, slots) of a shard's queries and of its documents."""
        p, shards = self.config.packing, self.config.shards
        return (p.query_rows // shards, p.query_row_tokens), (p.doc_rows // shards, p.doc_row_tokens)

    @property
    def _pad_id(self) -> int:
        return self.featurizer.pad_id if isinstance(self.featurizer, Tokenizer) else 0

    def requests(self, groups: np.ndarray) -> list[str]:
        """The request ids of these groups, for messages."""
        return [record.request_id for record in self.reader.read(groups)]


def _after(row: np.ndarray, candidates: list[int], taken: list[int]) -> np.ndarray:
    """A shard's row of the position after a batch took these of its candidates."""
    new_start = max([int(row[0]), *[place + 1 for place in taken]])
    put_off = sorted({p for p in candidates if p < new_start} - set(taken))
    after = np.full_like(row, -1)
    after[0], after[1 : 1 + len(put_off)] = new_start, put_off
    return after
