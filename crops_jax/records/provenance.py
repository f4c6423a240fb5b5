"""Where the documents of written groups come from, and a choice among these sources while they are read.

Beside each shard lies `<shard>.sources.npy`, two bytes a document: with it a reader knows which groups are left under
a choice of sources without opening one of them. An ablation is then a field of the training config.

A filtered group is the one that would have been written with these sources, as long as no cap left out a document that
holds one of them: what is not in the shards cannot come back. With caps to spare (`labels.caps`; the manifest counts
`over_cap_<source>`), that holds for every choice; with the default caps some groups hold fewer documents than they
could. The order of the groups is another one, and bands of ranks are not drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crops_jax.errors import InputError
from crops_jax.labels import LETTERS, SOURCES, Band, LabelsConfig, label_tables, source_bits
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.records.features import Record, TokenIds
from crops_jax.stable_hash import hash_texts, mix

SUFFIX = ".sources.npy"
# Fields of labels that decide which documents a group holds, and at which labels; `sources` a reader may choose among.
COMPOSED = ("levels", "min_positive", "caps", "bands", "one_anchor", "min_anchor")
_FIRST, _OWN = 1 << 14, 1 << 15  # beside the bits of the sources
_POOL = source_bits(*[source.letter for source in SOURCES if source.pool])


def provenance(record: Record) -> np.ndarray:
    """uint16[n]: the sources of each document, whether it is the search's own, and which is the group's first."""
    found = (record.source | record.own * _OWN).astype(np.uint16)
    found[0] |= _FIRST
    return found


def by_group(found: np.ndarray) -> list[np.ndarray]:
    """The provenance of many groups, a group an entry."""
    return np.split(found, np.flatnonzero(found & _FIRST)[1:]) if len(found) else []


def provenance_path(shard: Path) -> Path:
    """Where the provenance of a shard lies."""
    return shard.with_name(shard.name + SUFFIX)


def labels_json(labels: LabelsConfig) -> dict[str, Any]:
    """What the manifest says of the labels of its groups."""
    return json.loads(json.dumps(asdict(labels)))


def differing(written: Mapping[str, Any], labels: LabelsConfig, names: Collection[str]) -> list[str]:
    """What groups were `written` with (`labels_json`) and `labels` has otherwise, of the fields `names`, in words. A
    source that the code did not have then is in none of the groups.
    """
    asked = labels_json(labels)
    then = dict(written)
    for name in ("levels", "caps"):
        for of in (then, asked):
            of[name] = {source: n for source, n in of.get(name, {}).items() if source in written["levels"]}
    return [f"labels.{name}: written with {then[name]}, and {asked[name]} is asked for"
            for name in names if name in written and then[name] != asked[name]]  # fmt: skip


@dataclass(frozen=True)
class SourceFilter:
    """Groups as if some of the sources that they were written with had not taken part."""

    labels: LabelsConfig

    @staticmethod
    def of(written: Mapping[str, Any] | None, sources: Collection[str], place: str) -> SourceFilter:
        """A filter of records whose manifest says `written` (`labels_json`).

        Raises:
          InputError: a source is none of theirs, or their groups cannot be filtered.
        """
        mend = "leave input.sources empty, or write the shards again with other --labels.sources"
        if written is None:
            raise InputError(place, f"its groups are not made of mined candidates: there is nothing to choose; {mend}")
        tuples = {"sources": tuple(written["sources"]), "bands": tuple(Band(**band) for band in written["bands"])}
        labels = LabelsConfig(**{**written, **tuples})
        problems = [f"input.sources: {s!r} is none of its sources {', '.join(labels.sources)}; {mend}"
                    for s in sources if s not in labels.sources]  # fmt: skip
        if labels.one_anchor:
            problems.append(f"its groups have one anchor each, chosen before the sources are; {mend}")
        if problems:
            raise InputError(place, problems)
        return SourceFilter(replace(labels, sources=tuple(sources)))

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(label, source that gives it) of every set of sources, and the cap of every source."""
        return *label_tables(self.labels), np.array([self.labels.most(letter) for letter in LETTERS])

    def _graded(self, source: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(sources that are left, label, source that gives it) of documents; label 0 for those that are no more."""
        bits = source & source_bits(*self.labels.sources)
        bits = np.where(own | ((bits & _POOL) != 0), bits, 0)  # only a pool brings a document into another's group
        label_of, source_of, cap_of = self._tables
        label, giver = label_of[bits], source_of[bits]
        return bits, np.where(cap_of[giver] > 0, label, 0), giver

    def kept(self, found: np.ndarray) -> np.ndarray:
        """int64: the numbers of a shard's groups in which a positive is left.

        Args:
          found: uint16[n], the `provenance` of all its documents.
        """
        if not len(found):
            return np.empty(0, np.int64)
        _, label, _ = self._graded((found & (_FIRST - 1)).astype(np.int64), (found & _OWN) != 0)
        starts = np.flatnonzero(found & _FIRST)
        return np.flatnonzero(np.logical_or.reduceat(label >= self.labels.min_positive, starts))

    def record(self, record: Record) -> Record:
        """The group with the documents that are left: labels and caps as these sources give them."""
        bits, label, giver = self._graded(record.source.astype(np.int64), record.own != 0)
        left = np.flatnonzero(label > 0)
        # As in `assemble`: within a cap the search's own documents first, in a seeded order.
        draw = mix(hash_texts([record.request_id], self.labels.seed), record.item_id[left])
        order = left[np.lexsort((draw, record.own[left] == 0, giver[left]))]
        starts = np.searchsorted(giver[order], giver[order])
        order = order[np.arange(len(order)) - starts < self._tables[2][giver[order]]]
        order = order[np.lexsort((record.item_id[order], -label[order]))]
        arrays = {name: value[order] for name, value in vars(record).items() if isinstance(value, np.ndarray)}
        texts = {name: [getattr(record, name)[i] for i in order.tolist()] for name in TEXT_FIELDS}
        arrays |= {"label": label[order].astype(np.int32), "source": bits[order].astype(np.int32)}
        return replace(record, **arrays, **texts, tokens=_tokens_of(record.tokens, order))


def _tokens_of(tokens: TokenIds | None, order: np.ndarray) -> TokenIds | None:
    if tokens is None:
        return None
    parts = np.split(tokens.docs, np.cumsum(tokens.length)[:-1])
    return TokenIds(tokens.query, np.concatenate([parts[i] for i in order]), tokens.length[order])
