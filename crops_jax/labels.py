"""Hierarchical label assignment: mined candidates to graded groups (paper Table 1).

There is one group for each search event. A document's label for a query is the highest that any enabled source gives
it, over all events of the query. So augmentation corrects false negatives: P1 and U2 together make 5. Documents with
equal text are one document here, whatever their ids. A group holds the event's own documents and a seeded sample of
the query's P1, P2 and P3 documents; each source has a cap. The groups depend on the candidates and the config alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.errors import InputError
from crops_jax.stable_hash import hash_texts, mix


@dataclass(frozen=True)
class Source:
    """Where documents of a query come from. A new source is one more row of `SOURCES`, at its end."""

    letter: str
    """Its name in candidates, configs and metrics."""
    meaning: str
    """What its documents are."""
    label: int
    """Their label (paper Table 1); only the order matters to the loss."""
    cap: int
    """Most documents of a group that owe their label to it (the paper gives none)."""
    pool: bool = False
    """Its documents belong to the query, not to one search: each group holds a sample of them."""


SOURCES = (  # source i is bit i of a document's source set
    Source("P0", "clicked or liked in the ranking stage", 4, 2),
    Source("P1", "consumed after a reformulation of the query", 5, 2, pool=True),
    Source("P2", "consumed in the recommendation feed", 4, 2, pool=True),
    Source("P3", "written by a language model", 4, 1, pool=True),
    Source("X3", "exposed, not clicked", 3, 2),
    Source("U2", "in the ranker's output, not exposed", 2, 4),
    Source("F1", "filtered out between pre-rank and rank", 1, 3),
    Source("N1", "near the query for a ranker, and no known positive of it", 1, 0),
)
LETTERS = tuple(source.letter for source in SOURCES)
PAPER = ("P0", "P1", "P2", "P3", "X3", "U2", "F1")  # the sources of CroPS
LOG_ONLY = ("P0", "X3", "U2", "F1")  # what the search log alone gives: the paper's baseline
MIN_POSITIVE = 4
_COLUMNS = ["query", "request_id", "user_id", "item_id", "source"]
_TYPED = "typed"  # a column that is there only where some queries were typed in several spellings
_BLOCK = 1 << 19  # rows read at a time
Originals = Callable[[np.ndarray], np.ndarray]  # int64[n] item ids -> int64[n], the id that stands for each one's text


def levels(**changed: int) -> dict[str, int]:
    """The label of every source, with some changed.

    >>> levels(P1=4)["P1"], levels()["P1"]
    (4, 5)
    """
    return {source.letter: source.label for source in SOURCES} | changed


def caps(**changed: int) -> dict[str, int]:
    """The cap of every source, with some changed."""
    return {source.letter: source.cap for source in SOURCES} | changed


@dataclass(frozen=True)
class LabelsConfig:
    """Which sources take part, at which label, how many documents of each."""

    levels: dict[str, int] = field(default_factory=levels)
    """The label of every source (Table 1; P1 is 4 in the paper's ablation)."""
    caps: dict[str, int] = field(default_factory=caps)
    """Most documents a group, by the source of their label."""
    sources: tuple[str, ...] = PAPER
    """Sources that take part; ("P0", "X3", "U2", "F1") is the log-only baseline."""
    seed: int = 0
    """Seed of the sample where a source has more documents than its cap."""
    one_anchor: bool = False
    """Cut every group into one a document, that document with its strictly lower-graded ones: the examples of the
    per-positive InfoNCE (paper Table 4), each of which is a training step's query of its own."""

    def __post_init__(self):
        named = {"sources": self.sources, "levels": self.levels, "caps": self.caps}
        problems = [f"{name}: {letter!r} is none of {', '.join(LETTERS)}"
                    for name, letters in named.items() for letter in letters if letter not in LETTERS]  # fmt: skip
        problems += [f"{name}.{letter}: is missing" for name in ("levels", "caps")
                     for letter in LETTERS if letter not in named[name]]  # fmt: skip
        problems += [f"levels.{s}: {level} is below 1" for s, level in self.levels.items() if level < 1]
        problems += [f"caps.{s}: {cap} is negative" for s, cap in self.caps.items() if cap < 0]
        if problems:
            raise InputError("labels config", problems)

    @property
    def group_size(self) -> int:
        """K: the most documents a group can hold."""
        return sum(self.caps[source] for source in self.sources)


@dataclass(frozen=True)
class Group:
    """One search event and its graded documents, by label from the highest, then by item id."""

    request_id: str
    user_id: int
    query: str  # as its user typed it
    item_id: np.ndarray  # int64[k]
    label: np.ndarray  # int32[k], 1..5
    source: np.ndarray  # int32[k], bit set of all enabled sources that hold for (query, item)


def source_bits(*sources: str) -> int:
    """The bit set of sources.

    >>> source_bits("P0", "P1", "X3")
    19
    """
    return sum(1 << LETTERS.index(source) for source in set(sources))


def read_groups(
    candidates: str | Path,
    config: LabelsConfig,
    counts: Counter[str] | None = None,
    originals: Originals | None = None,
) -> Iterator[Group]:
    """Groups of a whole candidates.parquet, a file or a folder of parts, in its order, in bounded memory.

    Args:
      counts: receives what was made and what was left out, by reason (see `assemble`).
      originals: which documents are one (see `assemble`).

    Raises:
      InputError: the file lacks a column, names an unknown source or is not sorted by query.
    """
    counts = Counter() if counts is None else counts
    for block in (block for part in _parts(Path(candidates)) for block in _whole_queries(part)):
        for group in assemble(block, config, counts, originals):
            yield from one_anchor_groups(group) if config.one_anchor else [group]


def one_anchor_groups(group: Group) -> Iterator[Group]:
    """A group for every document of `group`: the document, its anchor, and those graded strictly lower."""
    for anchor, label in enumerate(group.label):
        keep = group.label < label
        keep[anchor] = True
        yield replace(group, item_id=group.item_id[keep], label=group.label[keep], source=group.source[keep])


def assemble(
    candidates: pa.Table,
    config: LabelsConfig,
    counts: Counter[str] | None = None,
    originals: Originals | None = None,
) -> list[Group]:
    """Groups of one query, or of several, each with all of its candidates.

    A document's cap is that of the source that gives its label (of sources with equal labels, the first of SOURCES).
    Within a cap the event's own documents come first, in a seeded order, then the sampled ones.

    Args:
      candidates: rows of `mining.candidates.CANDIDATES_SCHEMA`, in any order.
      counts: receives `groups`, `documents`, `no_positive` (events without a label of 4 or more), `no_document`
        (events without a document of an enabled source) and `over_cap_<source>` (documents that a cap left out); and
        where there are any, `rows_of_copies`.
      originals: the id that stands for each document's text. Documents with one such id are one document: it has the
        label and the sources of all, is once in a group, and under the id of the event's own. None: no two are one.
    """
    counts = Counter() if counts is None else counts
    rows = _Rows.of(candidates, config, originals)
    if rows.copies:
        counts["rows_of_copies"] += rows.copies
    found = _event_documents(rows, config)
    found = found.take(_within_caps(rows, config, counts, found))
    found = found.take(np.lexsort((found.item, -rows.label[found.pair], found.event)))
    event, item = found.event, found.item
    label, bits = rows.label[found.pair], rows.bits[found.pair]
    edges = np.searchsorted(event, np.arange(len(rows.event_id) + 1)).tolist()
    made = []
    for e, (a, b) in enumerate(pairwise(edges)):
        if a == b:
            counts["no_document"] += 1
        elif label[a] < MIN_POSITIVE:
            counts["no_positive"] += 1
        else:
            ids = rows.event_id[e], int(rows.event_user[e]), rows.event_text[e]
            made.append(Group(*ids, item[a:b], label[a:b], bits[a:b]))
    counts.update(groups=len(made), documents=sum(len(g.item_id) for g in made))
    return made


@dataclass(frozen=True)
class _Documents:
    """Documents of events, one an entry."""

    event: np.ndarray  # int64[n]
    pair: np.ndarray  # int64[n]
    item: np.ndarray  # int64[n]: the id under which the document stands in the event
    own: np.ndarray  # bool[n]: the event's own, not one of its query's pool

    def take(self, chosen: np.ndarray) -> _Documents:
        """These entries, in this order."""
        return _Documents(self.event[chosen], self.pair[chosen], self.item[chosen], self.own[chosen])


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
    own_item: np.ndarray  # ... and item
    pair_query: np.ndarray  # int64[P]
    item: np.ndarray  # int64[P]: of the ids of one document the smallest, the platform's before a language model's
    bits: np.ndarray  # int32[P]: the enabled sources
    label: np.ndarray  # int32[P]: the highest label of these, 0 for none
    label_source: np.ndarray  # int64[P]: index of the source that gives it
    copies: int  # rows whose document stands under another id too

    @staticmethod
    def of(table: pa.Table, config: LabelsConfig, originals: Originals | None) -> _Rows:
        """The rows of a candidates table under a config."""
        query, _ = _codes(table["query"])
        event, event_first, event_names = _events(table, query)
        item = table["item_id"].to_numpy()
        original = item if originals is None else originals(item)
        pair, first = _number_pairs(query, original, item)
        bits = np.zeros(len(first), np.int32)
        np.bitwise_or.at(bits, pair, (1 << _source_index(table["source"])).astype(np.int32))
        bits &= source_bits(*config.sources)
        label_of, source_of = _tables(config)
        own = np.flatnonzero(event >= 0)
        return _Rows(
            event_id=event_names,
            event_text=_typed(table).take(pa.array(event_first)).to_pylist(),
            event_user=table["user_id"].fill_null(-1).to_numpy()[event_first],
            event_query=query[event_first],
            event_hash=hash_texts(event_names, config.seed),
            own_event=event[own],
            own_pair=pair[own],
            own_item=item[own],
            pair_query=query[first],
            item=item[first],
            bits=bits,
            label=label_of[bits],
            label_source=source_of[bits],
            copies=int((original != item).sum()),
        )


def _event_documents(rows: _Rows, config: LabelsConfig) -> _Documents:
    """The documents that compete for places: the event's own, and a sample of its query's pool.

    The sample of each event and label-giving source is `cap` neighbours on the query's pool laid out on a ring in a
    seeded order, from a place that the request's hash gives: every document is as likely as any other, and the work
    does not grow with the pool, which for a frequent query has thousands of documents.
    """
    parts = [(rows.own_event, rows.own_pair, rows.own_item, np.ones(len(rows.own_event), bool))]
    pooled = (rows.bits & source_bits(*[s.letter for s in SOURCES if s.pool])) != 0
    item_hash = mix(rows.item, np.asarray(config.seed, np.int64))
    for number, source in enumerate(LETTERS):
        pool = np.flatnonzero(pooled & (rows.label_source == number))
        pool = pool[np.lexsort((rows.item[pool], item_hash[pool], rows.pair_query[pool]))]
        start = np.searchsorted(rows.pair_query[pool], rows.event_query)
        size = np.searchsorted(rows.pair_query[pool], rows.event_query, side="right") - start
        first = mix(rows.event_hash, np.asarray(number, np.int64)) % np.maximum(size, 1).astype(np.uint64)
        for step in range(config.caps[source]):
            events = np.flatnonzero(size > step)
            place = start[events] + (first[events].astype(np.int64) + step) % size[events]
            parts.append((events, pool[place], rows.item[pool[place]], np.zeros(len(events), bool)))
    all_of = _Documents(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    found = all_of.take(np.lexsort((all_of.item, ~all_of.own, all_of.pair, all_of.event)))
    # A document once; as the event's own, if it is.
    new = (np.diff(found.event, prepend=-1) != 0) | (np.diff(found.pair, prepend=-1) != 0)
    return found.take(np.flatnonzero(new & (rows.label[found.pair] > 0)))


def _within_caps(rows: _Rows, config: LabelsConfig, counts: Counter[str], found: _Documents) -> np.ndarray:
    """Indices of the documents that stay: of each event and label-giving source the first `cap`, own ones first."""
    label_source = rows.label_source[found.pair]
    draw = mix(rows.event_hash[found.event], rows.item[found.pair])
    order = np.lexsort((found.pair, draw, ~found.own, label_source, found.event))
    bucket = found.event[order] * len(SOURCES) + label_source[order]
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    rank = np.arange(len(bucket)) - np.repeat(starts, np.diff(starts, append=len(bucket)))
    caps = np.array([config.caps[source] for source in LETTERS])
    stays = rank < caps[label_source[order]]
    for source, over in enumerate(np.bincount(label_source[order[~stays]], minlength=len(SOURCES)).tolist()):
        if over:
            counts[f"over_cap_{LETTERS[source]}"] += over
    return order[stays]


def _tables(config: LabelsConfig) -> tuple[np.ndarray, np.ndarray]:
    """(label, index of the source that gives it) for every source set; ties go to the first of SOURCES."""
    labels = [config.levels[source] for source in LETTERS]
    sets = range(1 << len(SOURCES))
    held = [[labels[i] if s >> i & 1 else 0 for i in range(len(SOURCES))] for s in sets]
    return np.array([max(h) for h in held], np.int32), np.array([h.index(max(h)) for h in held])


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    coded = column.combine_chunks().dictionary_encode()
    return coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), coded.dictionary.to_pylist()


def _typed(table: pa.Table) -> pa.ChunkedArray:
    """The query of each row as its user typed it: `query` but for the rows that say another spelling."""
    return pc.coalesce(table[_TYPED], table["query"]) if _TYPED in table.column_names else table["query"]


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


def _number_pairs(query: np.ndarray, original: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of each row's (query, document) pair, first row of each pair), numbered in the order of both."""
    order = np.lexsort((item, item < 0, original, query))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(query[order]) != 0) | (np.diff(original[order]) != 0)
    pair = np.empty(len(order), np.int64)
    pair[order] = np.cumsum(new) - 1
    return pair, order[new]


def _parts(path: Path) -> list[Path]:
    """The files of candidates, each with whole queries."""
    return [path] if path.is_file() else sorted(path.glob("part-*.parquet"))


def _whole_queries(path: Path) -> Iterator[pa.Table]:
    """Blocks of the file, each with all rows of its queries."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if missing := [name for name in _COLUMNS if name not in file.schema_arrow.names]:
            raise InputError(str(path), [f"column {name} is missing" for name in missing])
        columns = _COLUMNS + [name for name in file.schema_arrow.names if name == _TYPED]
        held = file.schema_arrow.empty_table().select(columns)
        for batch in file.iter_batches(_BLOCK, columns=columns):
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
