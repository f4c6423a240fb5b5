"""Hierarchical label assignment: mined candidates to graded groups (paper Table 1; algorithms.md sections 1 and 9.1).

One group a search event. A document's label for a query is the highest that any enabled source gives it, over all
events of the query: augmentation so corrects false negatives (P1 and U2 make 5). A group holds the event's own
documents and a seeded sample of the query's P1, P2 and P3 documents, each source capped. All of it is a pure
function of the candidates and the config.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.errors import InputError
from crops_jax.stable_hash import hash_texts, mix

SOURCES = ("P0", "P1", "P2", "P3", "X3", "U2", "F1")  # source i is bit i of a document's source set
TABLE1 = {"P1": 5, "P2": 4, "P3": 4, "P0": 4, "X3": 3, "U2": 2, "F1": 1}
LOG_ONLY = ("P0", "X3", "U2", "F1")  # what the search log alone gives: the paper's baseline
POOL = ("P1", "P2", "P3")  # belong to the query, not to one event
MIN_POSITIVE = 4
_COLUMNS = ["query", "request_id", "user_id", "item_id", "source"]
_MAX_ROWS = 1 << 21  # (event, document) pairs held at a time


@dataclass(frozen=True)
class Levels:
    """The label of each source; only the order matters to the loss."""

    P0: int = TABLE1["P0"]
    """Clicked or liked in the ranking stage."""
    P1: int = TABLE1["P1"]
    """Consumed after a reformulation of the query (4 in the paper's ablation)."""
    P2: int = TABLE1["P2"]
    """Consumed in the recommendation feed."""
    P3: int = TABLE1["P3"]
    """Written by a language model."""
    X3: int = TABLE1["X3"]
    """Exposed, not clicked."""
    U2: int = TABLE1["U2"]
    """In the ranker's output, not exposed."""
    F1: int = TABLE1["F1"]
    """Filtered out between pre-rank and rank."""


@dataclass(frozen=True)
class Caps:
    """Most documents of a group that owe their label to each source (the paper gives none)."""

    P0: int = 2
    """Clicked or liked."""
    P1: int = 2
    """Query-level."""
    P2: int = 2
    """System-level."""
    P3: int = 1
    """World knowledge."""
    X3: int = 2
    """Exposed, not clicked."""
    U2: int = 4
    """Not exposed."""
    F1: int = 3
    """Filtered out."""


@dataclass(frozen=True)
class LabelsConfig:
    """Which sources take part, at which label, how many documents of each."""

    levels: Levels = field(default_factory=Levels)
    """Table 1."""
    caps: Caps = field(default_factory=Caps)
    """Documents a group, by the source of their label."""
    sources: tuple[str, ...] = SOURCES
    """Sources that take part; ("P0", "X3", "U2", "F1") is the log-only baseline."""
    seed: int = 0
    """Seed of the sample where a source has more documents than its cap."""

    def __post_init__(self):
        problems = [f"sources: {s!r} is none of {', '.join(SOURCES)}" for s in self.sources if s not in SOURCES]
        problems += [f"levels.{s}: {level} is below 1" for s, level in vars(self.levels).items() if level < 1]
        problems += [f"caps.{s}: {cap} is negative" for s, cap in vars(self.caps).items() if cap < 0]
        if problems:
            raise InputError("labels config", problems)

    @property
    def group_size(self) -> int:
        """K: the most documents a group can hold."""
        return sum(getattr(self.caps, source) for source in self.sources)


@dataclass(frozen=True)
class Group:
    """One search event and its graded documents, by label from the highest, then by item id."""

    request_id: str
    user_id: int
    query: str
    item_id: np.ndarray  # int64[k]
    label: np.ndarray  # int32[k], 1..5
    source: np.ndarray  # int32[k], bit set of all enabled sources that hold for (query, item)


def source_bits(*sources: str) -> int:
    """The bit set of sources.

    >>> source_bits("P0", "P1", "X3")
    19
    """
    return sum(1 << SOURCES.index(source) for source in set(sources))


def groups(candidates: str | Path, config: LabelsConfig, counts: Counter[str] | None = None) -> Iterator[Group]:
    """Groups of a whole candidates.parquet, in its order, in bounded memory.

    Args:
      counts: receives what was made and what was left out, by reason (see `assemble`).

    Raises:
      InputError: the file lacks a column, names an unknown source or is not sorted by query.
    """
    counts = Counter() if counts is None else counts
    for block in _whole_queries(Path(candidates)):
        yield from assemble(block, config, counts)


def assemble(candidates: pa.Table, config: LabelsConfig, counts: Counter[str] | None = None) -> list[Group]:
    """Groups of one query, or of several, each with all of its candidates.

    Args:
      candidates: rows of `mining.candidates.CANDIDATES_SCHEMA`, in any order.
      counts: receives `groups`, `documents`, `no_positive` (events without a label of 4 or more), `no_document`
        (events without a document of an enabled source or one that its cap admits), and `over_cap_<source>`
        (documents that a cap left out).
    """
    counts = Counter() if counts is None else counts
    rows = _Rows.of(candidates)
    made: list[Group] = []
    for first, last in rows.slices():
        made += _slice_groups(rows, config, counts, first, last)
    counts.update(groups=len(made), documents=sum(len(g.item_id) for g in made))
    return made


@dataclass(frozen=True)
class _Rows:
    """Candidates as integers: events and (query, item) pairs are numbered, both in the order of their query."""

    event_id: list[str]  # [E]
    event_user: np.ndarray  # [E]
    event_query: np.ndarray  # [E]
    query: list[str]
    own_event: np.ndarray  # [R] rows of P0, X3, U2, F1, ordered by event
    own_pair: np.ndarray  # [R]
    pair_item: np.ndarray  # [P]
    pair_bits: np.ndarray  # [P], all sources, enabled or not
    pool_pair: np.ndarray  # pairs with a bit of POOL, ordered by query
    pool_start: np.ndarray  # [queries + 1] into pool_pair
    event_lot: np.ndarray  # uint64[E]: hash of the request id

    @staticmethod
    def of(table: pa.Table) -> _Rows:
        """The rows of a candidates table."""
        query, query_names = _codes(table["query"])
        source = _source_index(table["source"])
        item = table["item_id"].to_numpy()
        pair_key = np.stack([query, item])
        order = np.lexsort((item, query))
        pair, first = _runs(pair_key[:, order], order)
        bits = np.zeros(len(first), np.int32)
        np.bitwise_or.at(bits, pair, (1 << source).astype(np.int32))
        pair_query, pair_item = query[first], item[first]
        event, event_first, names = _events(table, query)
        own = np.flatnonzero(event >= 0)
        own = own[np.argsort(event[own], kind="stable")]
        pool = np.flatnonzero(bits & source_bits(*POOL))
        return _Rows(
            event_id=names,
            event_user=table["user_id"].fill_null(-1).to_numpy()[event_first],
            event_query=query[event_first],
            query=query_names,
            own_event=event[own],
            own_pair=pair[own],
            pair_item=pair_item,
            pair_bits=bits,
            pool_pair=pool,
            pool_start=np.searchsorted(pair_query[pool], np.arange(len(query_names) + 1)),
            event_lot=hash_texts(names),
        )

    def slices(self) -> Iterator[tuple[int, int]]:
        """Ranges of events whose own and pooled documents together stay near `_MAX_ROWS`."""
        own = np.bincount(self.own_event, minlength=len(self.event_id))
        size = own + np.diff(self.pool_start)[self.event_query]
        block = np.cumsum(size) // _MAX_ROWS
        edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(size)]
        return ((a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a)


def _slice_groups(rows: _Rows, config: LabelsConfig, counts: Counter[str], first: int, last: int) -> list[Group]:
    """Groups of the events first..last-1: join, label, cap, check, cut into groups."""
    enabled = source_bits(*config.sources)
    event, pair = _event_documents(rows, first, last)
    bits = rows.pair_bits[pair] & enabled
    event, pair, bits = event[bits != 0], pair[bits != 0], bits[bits != 0]
    label_of, giver_of = _tables(config)
    label, giver = label_of[bits], giver_of[bits]
    kept = _within_caps(rows, config, counts, event, pair, giver)
    event, pair, bits, label = event[kept], pair[kept], bits[kept], label[kept]
    order = np.lexsort((rows.pair_item[pair], -label, event))
    event, item, bits, label = event[order], rows.pair_item[pair[order]], bits[order], label[order]
    edges = np.searchsorted(event, np.arange(first, last + 1))
    made = []
    for e, a, b in zip(range(first, last), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if a == b:
            counts["no_document"] += 1
        elif label[a] < MIN_POSITIVE:
            counts["no_positive"] += 1
        else:
            query = rows.query[rows.event_query[e]]
            made.append(Group(rows.event_id[e], int(rows.event_user[e]), query, item[a:b], label[a:b], bits[a:b]))
    return made


def _event_documents(rows: _Rows, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """(event, pair) of every document of the events, each once: their own, and their query's pool."""
    a, b = np.searchsorted(rows.own_event, [first, last])
    events = np.arange(first, last)
    start, stop = rows.pool_start[rows.event_query[events]], rows.pool_start[rows.event_query[events] + 1]
    sizes = stop - start
    place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(start, sizes)
    event = np.concatenate([rows.own_event[a:b], np.repeat(events, sizes)])
    pair = np.concatenate([rows.own_pair[a:b], rows.pool_pair[place]])
    keys = np.unique(event * np.int64(len(rows.pair_item)) + pair)
    return keys // len(rows.pair_item), keys % len(rows.pair_item)


def _within_caps(
    rows: _Rows, config: LabelsConfig, counts: Counter[str], event: np.ndarray, pair: np.ndarray, giver: np.ndarray
) -> np.ndarray:
    """Indices of the documents that stay: of each event and label-giving source, the `cap` with the lowest lots."""
    seeded = mix(rows.event_lot[event], np.asarray(config.seed, np.int64))
    lot = mix(seeded, rows.pair_item[pair])
    order = np.lexsort((pair, lot, giver, event))
    bucket = event[order] * len(SOURCES) + giver[order]
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    rank = np.arange(len(bucket)) - np.repeat(starts, np.diff(starts, append=len(bucket)))
    caps = np.array([getattr(config.caps, source) for source in SOURCES])
    stays = rank < caps[giver[order]]
    for source, over in enumerate(np.bincount(giver[order[~stays]], minlength=len(SOURCES))):
        if over:
            counts[f"over_cap_{SOURCES[source]}"] += int(over)
    return order[stays]


def _tables(config: LabelsConfig) -> tuple[np.ndarray, np.ndarray]:
    """(label, index of the source that gives it) for every source set; ties go to the first in SOURCES."""
    levels = [getattr(config.levels, source) for source in SOURCES]
    sets = range(1 << len(SOURCES))
    held = [[levels[i] if s >> i & 1 else 0 for i in range(len(SOURCES))] for s in sets]
    return np.array([max(h) for h in held], np.int32), np.array([h.index(max(h)) for h in held])


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    coded = column.combine_chunks().dictionary_encode()
    return coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), coded.dictionary.to_pylist()


def _source_index(column: pa.ChunkedArray) -> np.ndarray:
    codes, names = _codes(column)
    if unknown := sorted(set(names) - set(SOURCES)):
        raise InputError("candidates", f"unknown sources {unknown}; they must be of {', '.join(SOURCES)}")
    return np.array([SOURCES.index(name) for name in names], np.int64)[codes]


def _events(table: pa.Table, query: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(event of each row or -1, first row of each event, request ids); events are numbered by first appearance."""
    codes, names = _codes(table["request_id"])
    seen = np.flatnonzero(codes >= 0)
    _, first = np.unique(codes[seen], return_index=True)
    first = seen[first]
    if np.any(query[seen] != query[first][codes[seen]]):
        raise InputError("candidates", "a request_id occurs under two queries")
    return codes, first, names


def _runs(keys: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows in `order`, (number of the run of equal keys of each original row, first original row of each run)."""
    new = np.ones(keys.shape[1], bool)
    new[1:] = (keys[:, 1:] != keys[:, :-1]).any(0)
    run = np.empty(len(order), np.int64)
    run[order] = np.cumsum(new) - 1
    return run, order[new]


def _whole_queries(path: Path) -> Iterator[pa.Table]:
    """Blocks of the file, each with all rows of its queries."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if missing := [name for name in _COLUMNS if name not in file.schema_arrow.names]:
            raise InputError(str(path), [f"column {name} is missing" for name in missing])
        held = file.schema_arrow.empty_table().select(_COLUMNS)
        for batch in file.iter_batches(_MAX_ROWS // 4, columns=_COLUMNS):
            held = pa.concat_tables([held, pa.Table.from_batches([batch])])
            query = held["query"].combine_chunks()
            if not pc.all(pc.greater_equal(query[1:], query[:-1])).as_py():
                raise InputError(str(path), "is not sorted by query; write it again with `python -m crops_jax.mine`")
            cut = pc.index(query, query[-1]).as_py()  # the last query may go on in the next batch
            if cut:
                yield held.slice(0, cut)
                held = held.slice(cut)
        if held.num_rows:
            yield held
