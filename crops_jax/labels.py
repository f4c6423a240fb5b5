"""Hierarchical labels (paper Table 1) as data: the sources, the label and the cap of each, and a graded group.

`records.assemble` makes groups of mined candidates by it; `records.provenance` chooses among the sources of written
ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from crops_jax.errors import InputError


@dataclass(frozen=True)
class Source:
    """Where documents of a query come from. A new source is one more row of `SOURCES`, at its end."""

    letter: str
    """Its name in candidates, configs and metrics."""
    meaning: str
    """What its documents are."""
    label: int
    """Their label (paper Table 1). To H-InfoNCE without thresholds or weights only the order matters; to Softmax-CE and
    LambdaRank the value does."""
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
MAX_LEVEL = 100  # 2 ** label, a gain, is still a float of 32 bits
PAPER = ("P0", "P1", "P2", "P3", "X3", "U2", "F1")  # the sources of CroPS
LOG_ONLY = ("P0", "X3", "U2", "F1")  # what the search log alone gives: the paper's baseline


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
class Band:
    """Some ranks of a source's documents, sampled on their own: few of the many that stand low, say."""

    source: str
    first: int
    """First rank, from 1: the candidate's `position` in its search."""
    last: int
    """Last rank, inclusive."""
    cap: int
    """Most documents of these ranks."""


@dataclass(frozen=True)
class LabelsConfig:
    """Which sources take part, at which label, how many documents of each."""

    levels: dict[str, int] = field(default_factory=levels)
    """The label of every source (Table 1; P1 is 4 in the paper's ablation)."""
    caps: dict[str, int] = field(default_factory=caps)
    """Most documents a group, by the source of their label."""
    bands: tuple[Band, ...] = ()
    """Ranks to draw from, each with a cap of its own, for sources of the search funnel (U2 and F1, say). They stand in
    place of the source's cap, and no other rank is drawn; none draws from all alike."""
    sources: tuple[str, ...] = PAPER
    """Sources that take part; ("P0", "X3", "U2", "F1") is the log-only baseline."""
    seed: int = 0
    """Seed of the sample where a source has more documents than its cap."""
    one_anchor: bool = False
    """Cut every group into one a document, that document with its strictly lower-graded ones: the examples of the
    per-positive InfoNCE (paper Table 4), each of which is a training step's query of its own."""
    min_anchor: int = 1
    """The lowest label of such an anchor (1: every graded document is one, as in H-InfoNCE)."""
    min_positive: int = 4
    """The lowest label of a positive (paper: 4), one of `levels`: a group has one, and Recall is of them. Losses that
    part positives from negatives have a label of their own (`loss.min_positive_label`)."""

    def __post_init__(self):
        named = {"sources": self.sources, "levels": self.levels, "caps": self.caps}
        problems = [f"{name}: {letter!r} is none of {', '.join(LETTERS)}"
                    for name, letters in named.items() for letter in letters if letter not in LETTERS]  # fmt: skip
        problems += [f"{name}.{letter}: is missing" for name in ("levels", "caps")
                     for letter in LETTERS if letter not in named[name]]  # fmt: skip
        problems += [f"levels.{s}: {level} is not within 1..{MAX_LEVEL}" for s, level in self.levels.items()
                     if not 1 <= level <= MAX_LEVEL]  # fmt: skip
        problems += [f"sources: {s} is named twice" for s, times in Counter(self.sources).items() if times > 1]
        problems += [] if self.sources else ["sources: none takes part"]
        problems += [f"caps.{s}: {cap} is negative" for s, cap in self.caps.items() if cap < 0]
        if self.min_positive not in self.levels.values():
            found = ", ".join(map(str, sorted({*self.levels.values()})))
            problems.append(f"min_positive: {self.min_positive} is none of the labels of `levels`: {found}")
        if self.min_anchor < 1:
            problems.append(f"min_anchor: {self.min_anchor} is below 1")
        problems += self._wrong_bands()
        if problems:
            raise InputError("labels config", problems)

    def without_groups(self) -> list[str]:
        """Why no group of these sources would be left."""
        highest = max(self.levels[source] for source in self.sources)
        least = {"min_positive": self.min_positive} | ({"min_anchor": self.min_anchor} if self.one_anchor else {})
        return [f"labels.{name}: {label} is above the highest label of labels.sources, {highest}; no group is left"
                for name, label in least.items() if label > highest]  # fmt: skip

    def _wrong_bands(self) -> Iterator[str]:
        ranked = [source.letter for source in SOURCES if not source.pool]
        seen: dict[str, int] = {}  # the last rank so far
        for i, band in enumerate(self.bands):
            if band.source not in ranked:
                yield f"bands[{i}]: {band.source!r} has no ranks; sources that have are {', '.join(ranked)}"
            if not seen.get(band.source, 0) < band.first <= band.last:
                yield f"bands[{i}]: ranks {band.first} to {band.last} do not rise from 1, or not from the band before"
            if band.cap < 1:
                yield f"bands[{i}]: a cap of {band.cap} is below 1"
            seen[band.source] = band.last

    def most(self, source: str) -> int:
        """The most documents of a group that owe their label to a source."""
        bands = [band.cap for band in self.bands if band.source == source]
        return sum(bands) if bands else self.caps[source]

    @property
    def group_size(self) -> int:
        """K: the most documents a group can hold."""
        return sum(self.most(source) for source in self.sources)


@dataclass(frozen=True)
class Group:
    """One search event and its graded documents, by label from the highest, then by item id."""

    request_id: str
    user_id: int
    query: str  # as its user typed it
    item_id: np.ndarray  # int64[k]
    label: np.ndarray  # int32[k], 1..5
    source: np.ndarray  # int32[k], bit set of all enabled sources that hold for (query, item)
    own: np.ndarray | None = None
    """bool[k]: documents of this search; the others were drawn from its query's pool. None: all are its own."""

    def take(self, chosen: np.ndarray) -> Group:
        """The group with these of its documents, in this order."""
        own = None if self.own is None else self.own[chosen]
        return replace(
            self, item_id=self.item_id[chosen], label=self.label[chosen], source=self.source[chosen], own=own
        )


def source_bits(*sources: str) -> int:
    """The bit set of sources.

    >>> source_bits("P0", "P1", "X3")
    19
    """
    return sum(1 << LETTERS.index(source) for source in set(sources))


def one_anchor_groups(group: Group, min_anchor: int = 1) -> Iterator[Group]:
    """A group for every document of `group` from that label up: the document, its anchor, and those graded strictly
    lower."""
    for anchor, label in enumerate(group.label):
        if label < min_anchor:
            continue
        keep = group.label < label
        keep[anchor] = True
        yield group.take(keep)


def label_tables(config: LabelsConfig) -> tuple[np.ndarray, np.ndarray]:
    """(label, index of the source that gives it) for every set of sources; ties go to the first of `SOURCES`.

    Sources that do not take part count like the others: mask them out of the set.
    """
    labels = [config.levels[source] for source in LETTERS]
    sets = range(1 << len(SOURCES))
    held = [[labels[i] if s >> i & 1 else 0 for i in range(len(SOURCES))] for s in sets]
    return np.array([max(h) for h in held], np.int32), np.array([h.index(max(h)) for h in held])
