"""Record groups -> batches: a true global shuffle, any step at once, every batch full and of one shape.

Epoch e reads all groups in the order of a permutation keyed by (seed, e); the epochs follow each other without a
gap, and batch `step` is positions step*B .. step*B + B-1 of that endless sequence. So a batch may straddle two
epochs, none is ever partial, and the position of a run is the step number alone: resuming costs nothing and does
not depend on how many hosts read.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np

from crops_jax.batch import Batch, IdFeatures, Tokens
from crops_jax.errors import InputError
from crops_jax.id_features import IdHasher, IdRows
from crops_jax.records import Record, RecordsReader
from crops_jax.schema import TEXT_FIELDS
from crops_jax.stable_hash import mix
from crops_jax.text import Tokenizer, TokenRows, document_text

_ROUNDS = 8


@dataclass(frozen=True)
class InputConfig:
    """Batch shape, order and read-ahead."""

    batch_queries: int = 64
    """B: query groups in a global batch, over all hosts."""
    docs_per_query: int = 16
    """K: document slots of a group; smaller groups are padded. At least the largest group of the records."""
    seed: int = 0
    """Seed of the order in which groups are read."""
    prefetch: int = 4
    """Batches made ahead by the reading thread."""

    def __post_init__(self):
        names = ("batch_queries", "docs_per_query", "prefetch")
        problems = [f"{name}: {getattr(self, name)} is below 1" for name in names if getattr(self, name) < 1]
        if problems:
            raise InputError("input config", problems)


def permuted(positions: np.ndarray, size: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """int64[n]: where `positions` go under the permutation of range(size) keyed by (seed, epoch).

    A Feistel network on the smallest even number of bits that covers `size`, walked until the value falls inside:
    one position costs the same whatever `size` is, and no table is kept. `epoch` may differ by position.

    >>> sorted(permuted(np.arange(5), 5, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4]
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    key = mix(np.array([seed], np.int64).astype(np.uint64), np.asarray(epoch, np.int64).astype(np.uint64))
    keys = [np.broadcast_to(mix(key, np.array([r], np.uint64)), np.shape(positions)) for r in range(_ROUNDS)]
    value = np.array(positions, np.uint64)
    outside = np.ones(len(value), bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right, round_key[outside]) & mask)
        value[outside] = left << half | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)


def collate(
    records: Sequence[Record], encoder: Tokenizer | IdHasher, docs_per_query: int, first_query: int = 0
) -> Batch:
    """The batch of these groups, in numpy: `Tokens` from a tokeniser, `IdFeatures` from a hasher.

    Document rows are contiguous by group and padded at its end: label 0, doc_key -1, valid False, no tokens.

    Args:
      docs_per_query: K, slots a group.
      first_query: row of the first group in the global batch, to which `owner` counts (several hosts).

    Raises:
      InputError: a group holds more than K documents.
    """
    b, k = len(records), docs_per_query
    large = [f"group {r.request_id} holds {len(r)} documents" for r in records if len(r) > k]
    if large:
        raise InputError(f"docs_per_query {k}", large)
    slot = np.concatenate([np.arange(len(r)) + row * k for row, r in enumerate(records)])
    valid = np.zeros(b * k, bool)
    valid[slot] = True
    docs = _spread(_encode_documents(records, encoder), slot, b * k, encoder)
    return Batch(
        query=_as_leaf(encoder.encode_queries([r.query for r in records])),
        docs=_as_leaf(docs),
        query_key=np.array([r.query_key for r in records], np.int32),
        doc_key=_column(records, "doc_key", slot, b * k, -1),
        owner=np.repeat(np.arange(first_query, first_query + b, dtype=np.int32), k),
        label=_column(records, "label", slot, b * k, 0),
        valid=valid,
        source=_column(records, "source", slot, b * k, 0),
    )


def _column(records: Sequence[Record], name: str, slot: np.ndarray, n: int, padding: int) -> np.ndarray:
    column = np.full(n, padding, np.int32)
    column[slot] = np.concatenate([getattr(r, name) for r in records])
    return column


def _encode_documents(records: Sequence[Record], encoder: Tokenizer | IdHasher) -> TokenRows | IdRows:
    order = encoder.config.field_order if isinstance(encoder, Tokenizer) else TEXT_FIELDS
    fields = [[text for r in records for text in getattr(r, name)] for name in TEXT_FIELDS]
    texts = [document_text(*row, order=order) for row in zip(*fields, strict=True)]
    match encoder:
        case Tokenizer():
            return encoder.encode_documents(texts)
        case IdHasher():
            ids = np.concatenate([r.item_id for r in records]).tolist()
            return encoder.encode_documents(ids, fields[TEXT_FIELDS.index("keyword")], texts)


def _spread(rows: TokenRows | IdRows, slot: np.ndarray, n: int, encoder: Tokenizer | IdHasher) -> TokenRows | IdRows:
    """Rows of documents put into their slots among `n`; the slots between are padding."""
    padding = encoder.pad_id if isinstance(encoder, Tokenizer) else 0
    first = np.full((n, *rows[0].shape[1:]), padding, np.int32)
    second = np.zeros((n, *rows[1].shape[1:]), np.int32)
    first[slot], second[slot] = rows
    return type(rows)(first, second)


def _as_leaf(rows: TokenRows | IdRows) -> Tokens | IdFeatures:
    match rows:
        case TokenRows(ids, length):
            return Tokens(ids, length)
        case IdRows(ids, bags):
            return IdFeatures(ids, bags)


class TrainBatches:
    """The batches of a run: `batch_at(step)` is a pure function of the records, the config and the step.

    Also a sequence of whole batches, so `grain.MapDataset.source(batches)` reads a batch an element.
    """

    def __init__(self, reader: RecordsReader, encoder: Tokenizer | IdHasher, config: InputConfig, n_steps: int,
                 process_index: int = 0, process_count: int = 1):  # fmt: skip
        """Args:
          n_steps: batches in the run; `len(self)`.
          process_index: which host this is, of `process_count`; each reads a contiguous slice of every batch.

        Raises:
          InputError: no groups, groups larger than K, or hosts that do not divide the batch; all are listed.
        """
        problems = []
        if len(reader) == 0:
            problems.append(f"{reader.folder} holds no groups")
        if reader.max_docs_per_query > config.docs_per_query:
            problems.append(f"docs_per_query is {config.docs_per_query}, but {reader.folder} holds a group of "
                            f"{reader.max_docs_per_query} documents")  # fmt: skip
        if config.batch_queries % process_count:
            problems.append(f"batch_queries {config.batch_queries} cannot be split over {process_count} processes")
        if problems:
            raise InputError("input", problems)
        self.reader, self.encoder, self.config = reader, encoder, config
        self._n_steps = n_steps
        self._rows = config.batch_queries // process_count
        self._first = process_index * self._rows

    def __len__(self) -> int:
        return self._n_steps

    def __getitem__(self, step: int) -> Batch:
        return self.batch_at(step)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every group is read once; rarely a whole number."""
        return len(self.reader) / self.config.batch_queries

    def groups_at(self, step: int) -> np.ndarray:
        """int64[rows]: numbers of the groups this host reads for batch `step`.

        Raises:
          IndexError: `step` is outside 0..n_steps-1.
        """
        if not 0 <= step < self._n_steps:
            raise IndexError(f"step {step} of {self._n_steps}")
        position = step * self.config.batch_queries + self._first + np.arange(self._rows, dtype=np.int64)
        epoch, within = np.divmod(position, len(self.reader))
        return permuted(within, len(self.reader), self.config.seed, epoch)

    def records_at(self, step: int) -> list[Record]:
        """The groups behind batch `step`, for messages that must name their requests."""
        return self.reader.read(self.groups_at(step))

    def batch_at(self, step: int) -> Batch:
        """This host's rows of batch `step`, in numpy; `owner` counts rows of the global batch."""
        return collate(self.records_at(step), self.encoder, self.config.docs_per_query, self._first)

    def from_step(self, start: int) -> Prefetcher:
        """Iterates over (step, batch) from `start` to the end, made ahead in a thread. Use as a context manager."""
        return Prefetcher(self, start)


class Prefetcher:
    """Makes batches in a thread and hands them over in order; `waited_s` is the time the consumer stood still."""

    def __init__(self, batches: TrainBatches, start: int):
        self.waited_s = 0.0
        self._queue: queue.Queue[tuple[int, Batch] | BaseException | None] = queue.Queue(batches.config.prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches, start), daemon=True, name="input-pipeline")
        self._thread.start()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> tuple[int, Batch]:
        started = monotonic()
        made = self._queue.get()
        self.waited_s += monotonic() - started
        if made is None or isinstance(made, BaseException):
            self._queue.put(made)  # so that asking again answers the same instead of waiting for ever
            raise StopIteration if made is None else made
        return made

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the thread and waits for it."""
        self._stop.set()
        while self._thread.is_alive():
            try:  # the thread may stand before a full queue
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _fill(self, batches: TrainBatches, start: int) -> None:
        try:
            for step in range(start, len(batches)):
                if self._stop.is_set():
                    return
                self._queue.put((step, batches.batch_at(step)))
            self._queue.put(None)
        except BaseException as error:  # raised again where the batch is asked for
            self._queue.put(error)
