"""Groups -> records: texts, keys and counters are looked up for many groups at once; what cannot be used is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from crops_jax.labels import Group
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS
from crops_jax.logs.sorted_rows import begins
from crops_jax.normal_text import has_text, normal_form
from crops_jax.records.features import Record
from crops_jax.records.items import Items
from crops_jax.records.tally import Tally
from crops_jax.stable_hash import text_keys


def make_records(
    groups: Sequence[Group], items: Items, fields: tuple[str, ...], min_positive: int | None, tally: Tally
) -> Iterator[Record]:
    """The records of the groups of which something trainable is left, in their order, each made when it is asked for.

    Rejects are counted by reason (`tally.REJECTS`): documents whose id no table holds or that have no text in `fields`,
    empty queries, and groups left without a positive; and where there are any, documents whose text stands in the
    group under another id, with a label as high ("copy_in_group").

    Args:
      fields: those that the model reads, by which texts are told apart.
      min_positive: the lowest label of a positive; None takes of each group the highest, that of its one anchor.
    """
    if not groups:
        return iter(())
    docs = _Documents.of(groups)
    _check(groups, docs)
    needed = np.full(len(groups), min_positive or 0)
    if min_positive is None:
        np.maximum.at(needed, docs.group, docs.label)
    keys = items.keys(fields)(docs.item)
    first = _first_of_each_text(docs, keys)
    if copies := len(docs.item) - len(first):
        tally.rejects["copy_in_group"] += copies
    docs, keys = docs.take(first), keys[first]

    query_key, said = _query_keys(groups)
    asked = np.flatnonzero(said[docs.group])
    docs, keys = docs.take(asked), keys[asked]
    rows = items.rows(docs.item)
    known = rows >= 0
    full = known.copy()
    full[known] = items.have_text(rows[known], fields)
    docs, keys, rows = docs.take(np.flatnonzero(full)), keys[full], rows[full]

    positive = np.bincount(docs.group[docs.label >= needed[docs.group]], minlength=len(groups)) > 0
    kept = np.flatnonzero(positive[docs.group])
    docs, keys, rows = docs.take(kept), keys[kept], rows[kept]
    tally.rejects.update(
        unknown_item=int((~known).sum()),
        item_without_text=int((known & ~full).sum()),
        query_without_text=int((~said).sum()),
        group_without_positive=int((said & ~positive).sum()),
    )
    tally.queries.add(query_key[positive])
    tally.documents.add(keys)
    tally.max_docs = max(tally.max_docs, int(np.bincount(docs.group).max(initial=0)))
    return _records(groups, docs, keys, query_key, rows, items)


@dataclass(frozen=True)
class _Documents:
    """Documents of many groups, in their order."""

    group: np.ndarray  # int64[n]: the number of the group, rising
    item: np.ndarray  # int64[n]
    label: np.ndarray  # int32[n]
    source: np.ndarray  # int32[n]
    own: np.ndarray  # int32[n]

    @staticmethod
    def of(groups: Sequence[Group]) -> _Documents:
        sizes = [len(group.item_id) for group in groups]
        own = [np.ones(n, bool) if g.own is None else g.own for g, n in zip(groups, sizes, strict=True)]
        return _Documents(
            np.repeat(np.arange(len(groups)), sizes),
            np.concatenate([group.item_id for group in groups]).astype(np.int64),
            np.concatenate([group.label for group in groups]).astype(np.int32),
            np.concatenate([group.source for group in groups]).astype(np.int32),
            np.concatenate(own).astype(np.int32),
        )

    def take(self, chosen: np.ndarray) -> _Documents:
        """These documents."""
        return _Documents(*[column[chosen] for column in vars(self).values()])


def _check(groups: Sequence[Group], docs: _Documents) -> None:
    order = np.lexsort((docs.item, docs.group))
    twice = (np.diff(docs.item[order]) == 0) & (np.diff(docs.group[order]) == 0)
    wrong = {int(g) for g in docs.group[order][1:][twice]} | {
        i for i, g in enumerate(groups) if not len(g.item_id) == len(g.label) == len(g.source)
    }
    if wrong:
        name = groups[min(wrong)].request_id
        raise ValueError(f"group {name}: item ids must be distinct and as many as labels and sources")


def _first_of_each_text(docs: _Documents, keys: np.ndarray) -> np.ndarray:
    """Places, rising: of documents of one group with the same text, the one with the highest label (ties: the first).

    A document must not count against its twin.
    """
    order = np.lexsort((np.arange(len(keys)), -docs.label, keys, docs.group))
    return np.sort(order[begins(docs.group[order], keys[order])])


def _query_keys(groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """(int64[groups] keys of the queries, bool[groups] whether they have text); each query is looked at once."""
    numbers: dict[str, int] = {}
    of_group = [numbers.setdefault(group.query, len(numbers)) for group in groups]
    said = np.array([has_text(query) for query in numbers])
    return text_keys(normal_form(query) for query in numbers)[of_group], said[of_group]


def _records(
    groups: Sequence[Group], docs: _Documents, keys: np.ndarray, query_key: np.ndarray, rows: np.ndarray, items: Items
) -> Iterator[Record]:
    distinct, text_of = np.unique(rows, return_inverse=True)
    texts = items.texts(distinct)
    fields = {name: [texts[name][i] for i in text_of.tolist()] for name in TEXT_FIELDS}
    counters = items.counters(rows)
    starts = np.flatnonzero(np.diff(docs.group, prepend=-1))
    for a, b in pairwise([*starts.tolist(), len(rows)]):
        number = int(docs.group[a])
        group = groups[number]
        yield Record(
            request_id=group.request_id,
            user_id=group.user_id,
            query=group.query,
            query_key=int(query_key[number]),
            item_id=docs.item[a:b],
            doc_key=keys[a:b],
            label=docs.label[a:b],
            source=docs.source[a:b],
            own=docs.own[a:b],
            **{name: fields[name][a:b] for name in TEXT_FIELDS},
            **{name: counters[name][a:b] for name in COUNTERS},
        )
