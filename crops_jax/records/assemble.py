"""Hierarchical label assignment: mined candidates to graded groups (paper Table 1).

There is one group for each search event. A document's label for a query is the highest that any enabled source gives
it, over all events of the query. So augmentation corrects false negatives: P1 and U2 together make 5. Documents with
equal text are one document here, whatever their ids. A group holds the event's own documents and a seeded sample of
the query's P1, P2 and P3 documents; each source has a cap. The groups of a query depend on its candidates and the
config alone: parts that hold whole queries can be worked on anywhere, in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.errors import InputError
from crops_jax.labels import LETTERS, SOURCES, Group, LabelsConfig, label_tables, source_bits
from crops_jax.logs.sorted_rows import begins
from crops_jax.records.coverage import Coverage
from crops_jax.stable_hash import hash_texts, mix

POSITION = "position"
TYPED = "typed"  # a column that is there only where some queries were typed in several spellings
Keys = Callable[[np.ndarray], np.ndarray]  # int64[n] item ids -> int64[n], a key of each one's text


def assemble(
    candidates: pa.Table,
    config: LabelsConfig,
    counts: Counter[str] | None = None,
    keys: Keys | None = None,
    coverage: Coverage | None = None,
) -> list[Group]:
    """Groups of one query, or of several, each with all of its candidates.

    A document's cap is that of the source that gives its label (of sources with equal labels, the first of SOURCES).
    Within a cap the event's own documents come first, in a seeded order, then the sampled ones.

    Args:
      candidates: rows of `mining.candidates.CANDIDATES_SCHEMA`, in any order.
      counts: receives `groups`, `documents`, `no_positive` (events without a label of `min_positive`), `no_document`
        (events without a document of an enabled source) and `over_cap_<source>` (documents that a cap left out); and
        where there are any, `rows_of_copies`.
      keys: the key of each document's text. Documents with one key are one document: it has the label and the sources
        of all, is once in a group, and under the id of the event's own. None: no two are one.
      coverage: receives what the sources say of these queries.
    """
    counts = Counter() if counts is None else counts
    rows = _Rows.of(candidates, config, keys)
    if rows.copies:
        counts["rows_of_copies"] += rows.copies
    if coverage is not None:
        coverage.count(rows.pair_query, rows.every_bit, config)
    found = _event_documents(rows, config)
    found = found.take(_within_caps(rows, config, counts, found))
    found = found.take(np.lexsort((found.item, -rows.label[found.pair], found.event)))
    event, item = found.event, found.item
    label, bits, own = rows.label[found.pair], rows.bits[found.pair], found.own
    edges = np.searchsorted(event, np.arange(len(rows.event_id) + 1)).tolist()
    made = []
    for e, (a, b) in enumerate(pairwise(edges)):
        if a == b:
            counts["no_document"] += 1
        elif label[a] < config.min_positive:
            counts["no_positive"] += 1
        else:
            ids = rows.event_id[e], int(rows.event_user[e]), rows.event_text[e]
            made.append(Group(*ids, item[a:b], label[a:b], bits[a:b], own[a:b]))
    counts.update(groups=len(made), documents=sum(len(g.item_id) for g in made))
    return made


@dataclass(frozen=True)
class _Documents:
    """Documents of events, one an entry."""

    event: np.ndarray  # int64[n]
    pair: np.ndarray  # int64[n]
    item: np.ndarray  # int64[n]: the id under which the document stands in the event
    own: np.ndarray  # bool[n]: the event's own, not one of its query's pool
    rank: np.ndarray  # int64[n]: its position in the event, 0 where it has none

    def take(self, chosen: np.ndarray) -> _Documents:
        """These entries, in this order."""
        return _Documents(*[column[chosen] for column in vars(self).values()])


@dataclass(frozen=True)
class _Rows:
    """Candidates as integers. Events (E) and pairs (P: a query and an item) are numbered."""

    event_id: list[str]  # [E]
    event_text: list[str]  # [E]: the query as typed
    event_user: np.ndarray  # int64[E]
    event_query: np.ndarray  # int64[E]
    event_hash: np.ndarray  # uint64[E]: a hash of the request id and the seed
    own_event: np.ndarray  # the rows of P0, X3, U2 and F1: event ...
    own_pair: np.ndarray  # ... and pair
    own_item: np.ndarray  # ... and item ...
    own_rank: np.ndarray  # ... and position, 0 where there is none
    pair_query: np.ndarray  # int64[P]
    item: np.ndarray  # int64[P]: of the ids of one document the smallest, the platform's before a language model's
    every_bit: np.ndarray  # int32[P]: all sources
    bits: np.ndarray  # int32[P]: the enabled ones
    label: np.ndarray  # int32[P]: the highest label of these, 0 for none
    label_source: np.ndarray  # int64[P]: index of the source that gives it
    copies: int  # rows whose document has a smaller id under the query

    @staticmethod
    def of(table: pa.Table, config: LabelsConfig, keys: Keys | None) -> _Rows:
        """The rows of a candidates table under a config."""
        query, _ = _codes(table["query"])
        event, event_first, event_names = _events(table, query)
        item = table["item_id"].to_numpy()
        pair, first, copies = _number_pairs(query, item if keys is None else keys(item), item)
        every_bit = np.zeros(len(first), np.int32)
        np.bitwise_or.at(every_bit, pair, (1 << _source_index(table["source"])).astype(np.int32))
        bits = every_bit & source_bits(*config.sources)
        label_of, source_of = label_tables(config)
        own = np.flatnonzero(event >= 0)
        return _Rows(
            event_id=event_names,
            event_text=typed(table).take(pa.array(event_first)).to_pylist(),
            event_user=table["user_id"].fill_null(-1).to_numpy()[event_first],
            event_query=query[event_first],
            event_hash=hash_texts(event_names, config.seed),
            own_event=event[own],
            own_pair=pair[own],
            own_item=item[own],
            own_rank=_ranks(table, config)[own],
            pair_query=query[first],
            item=item[first],
            every_bit=every_bit,
            bits=bits,
            label=label_of[bits],
            label_source=source_of[bits],
            copies=copies,
        )


def _event_documents(rows: _Rows, config: LabelsConfig) -> _Documents:
    """The documents that compete for places: the event's own, and a sample of its query's pool.

    The sample of each event and label-giving source is `cap` neighbours on the query's pool laid out on a ring in a
    seeded order, from a place that the request's hash gives: every document is as likely as any other, and the work
    does not grow with the pool, which for a frequent query has thousands of documents.
    """
    parts = [(rows.own_event, rows.own_pair, rows.own_item, np.ones(len(rows.own_event), bool), rows.own_rank)]
    pooled = (rows.bits & source_bits(*[s.letter for s in SOURCES if s.pool])) != 0
    item_hash = mix(rows.item, np.asarray(config.seed, np.int64))
    for number, source in enumerate(LETTERS):
        pool = np.flatnonzero(pooled & (rows.label_source == number))
        pool = pool[np.lexsort((rows.item[pool], item_hash[pool], rows.pair_query[pool]))]
        start = np.searchsorted(rows.pair_query[pool], rows.event_query)
        size = np.searchsorted(rows.pair_query[pool], rows.event_query, side="right") - start
        first = mix(rows.event_hash, np.asarray(number, np.int64)) % np.maximum(size, 1).astype(np.uint64)
        for step in range(min(config.caps[source], int(size.max(initial=0)))):
            events = np.flatnonzero(size > step)
            place = start[events] + (first[events].astype(np.int64) + step) % size[events]
            none = np.zeros(len(events), np.int64)
            parts.append((events, pool[place], rows.item[pool[place]], none.astype(bool), none))
    all_of = _Documents(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    found = all_of.take(np.lexsort((all_of.item, ~all_of.own, all_of.pair, all_of.event)))
    # A document once; as the event's own, if it is.
    new = begins(found.event, found.pair)
    return found.take(np.flatnonzero(new & (rows.label[found.pair] > 0)))


def _within_caps(rows: _Rows, config: LabelsConfig, counts: Counter[str], found: _Documents) -> np.ndarray:
    """Indices of the documents that stay: of each event and label-giving source the first `cap`, own ones first.

    Where the source has bands, of each band.
    """
    label_source = rows.label_source[found.pair]
    slot, caps = _slots(label_source, found.rank, config)
    draw = mix(rows.event_hash[found.event], rows.item[found.pair])
    order = np.lexsort((found.pair, draw, ~found.own, slot, found.event))
    bucket = found.event[order] * len(caps) + slot[order]
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    place = np.arange(len(bucket)) - np.repeat(starts, np.diff(starts, append=len(bucket)))
    stays = place < caps[slot[order]]
    for source, over in enumerate(np.bincount(label_source[order[~stays]], minlength=len(SOURCES)).tolist()):
        if over:
            counts[f"over_cap_{LETTERS[source]}"] += over
    return order[stays]


def _slots(label_source: np.ndarray, rank: np.ndarray, config: LabelsConfig) -> tuple[np.ndarray, np.ndarray]:
    """(the number of what each document's cap is of, a source or a band; int64 caps by that number).

    What is in no band of a source that has some has a cap of 0.
    """
    banded = {band.source for band in config.bands}
    caps = [0 if source in banded else config.caps[source] for source in LETTERS]
    slot = label_source.copy()
    for band in config.bands:
        inside = (label_source == LETTERS.index(band.source)) & (rank >= band.first) & (rank <= band.last)
        slot[inside] = len(caps)
        caps.append(band.cap)
    return slot, np.array(caps)


def _ranks(table: pa.Table, config: LabelsConfig) -> np.ndarray:
    """int64[rows]: the position of each candidate in its search, 0 where it has none."""
    if POSITION in table.column_names:
        return table[POSITION].fill_null(0).to_numpy().astype(np.int64)
    if config.bands:
        raise InputError("candidates", f"have no column {POSITION}, which labels.bands asks for: mine them again")
    return np.zeros(len(table), np.int64)


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    coded = column.combine_chunks().dictionary_encode()
    return coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), coded.dictionary.to_pylist()


def typed(table: pa.Table) -> pa.ChunkedArray:
    """The query of each row as its user typed it: `query` but for the rows that say another spelling."""
    return pc.coalesce(table[TYPED], table["query"]) if TYPED in table.column_names else table["query"]


def _source_index(column: pa.ChunkedArray) -> np.ndarray:
    codes, names = _codes(column)
    if unknown := sorted(set(names) - set(LETTERS)):
        raise InputError("candidates", f"unknown sources {unknown}; they must be of {', '.join(LETTERS)}")
    return np.array([LETTERS.index(name) for name in names], np.int64)[codes]


def _events(table: pa.Table, query: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(event of each row or -1, first row of each event, request ids); events are numbered by first appearance."""
    codes, names = _codes(table["request_id"])
    seen = np.flatnonzero(codes >= 0)
    _, first = np.unique(codes[seen], return_index=True)
    first = seen[first]
    if np.any(query[seen] != query[first][codes[seen]]):
        raise InputError("candidates", "a request_id occurs under two queries")
    return codes, first, names


def _number_pairs(query: np.ndarray, key: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(number of each row's (query, document) pair, first row of each pair, rows that name it by another id)."""
    order = np.lexsort((item, item < 0, key, query))
    new = begins(query[order], key[order])
    pair = np.empty(len(order), np.int64)
    pair[order] = np.cumsum(new) - 1
    first = order[new]
    return pair, first, int((item[first][pair] != item).sum())
