"""A synthetic world: ambiguous words, their senses and facets, and texts about them, with the full truth known.

An intent is one facet of one sense ("common mistakes" with a "power transformer"). The bare head word expresses all
intents of all its senses, a sense's name those of one sense, a specific query one intent. A part of the items are
written in experts' words and share no word with the head query. Lexical search misses them; a trained retriever can
learn to find them. Senses of a head are unequally popular (the first is dominant).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from crops_jax.errors import InputError, impossible_numbers
from crops_jax.logs.schema import COUNTERS, TEXT_FIELDS, arrow_schema
from crops_jax.simulate.wording import Intent, Writer, read_facets, read_senses
from crops_jax.simulate.world import HIDDEN, World, generator, sorted_csr

GRADES = {"wanted": 3.0, "second facet": 2.0, "same sense": 1.0}


@dataclass(frozen=True)
class SyntheticWorldConfig:
    """Size and character of the synthetic world."""

    seed: int = 0
    """Everything in the world follows from it."""
    n_items: int = 5000
    """Items on the platform."""
    n_intents: int = 504
    """Intents: facets of senses, spread evenly; at most 12 for each of the 126 senses."""
    queries_per_intent: int = 4
    """Specific queries written for each intent, duplicates dropped."""
    hidden_per_intent: int = 3
    """Items of the outside world for each intent, which only the simulated language model knows."""
    rare_share: float = 0.45
    """Share of the items written in the words of the few."""
    head_word_share: float = 0.25
    """Chance that an item in the usual words names its sense in full, head word included."""
    bridge_share: float = 0.4
    """Chance that an item in one register carries a word of the other one."""
    click_query_share: float = 0.2
    """Chance that an item in the usual words lists queries that people found it with."""
    second_facet_share: float = 0.3
    """Share of the items that also touch another facet of their sense (grade 2 there)."""
    sense_popularity: tuple[float, ...] = (0.68, 0.22, 0.10)
    """Popularity of a head's senses, the dominant one first."""
    head_zipf: float = 0.6
    """Zipf exponent of the popularity over head words."""
    first_head_query: float = 0.45
    """Chance that a user types the bare head word first; otherwise a sense's name or a specific query."""
    first_sense_query: float = 0.3
    """Chance that a user types the sense's name first."""


def synthetic_world(config: SyntheticWorldConfig) -> World:
    """Builds the world of `config`; equal configs give equal worlds. Raises InputError on impossible sizes."""
    intents = _intents(config)
    writer = Writer(config, generator(config.seed, "wording"))
    popularity = _popularity(intents, config)
    owner, second = _owners(intents, config, generator(config.seed, "owners"))
    queries, levels = writer.queries(intents)
    items = _item_table(writer, intents, owner, second, levels, popularity, generator(config.seed, "counters"))
    wanted = _wanted(intents, owner, second)
    first, refined = _expression(levels, len(queries), config)
    express = sp.csr_matrix((np.ones(first.nnz), first.indices, first.indptr), shape=first.shape)
    return World(
        name="synthetic", complete=True, items=items, queries=tuple(queries),
        hidden=_hidden_table(writer, intents, express, queries, config),
        intents=tuple(i.name for i in intents), popularity=popularity, wanted=wanted, first=first, refined=refined,
        relevance=_best_over_intents(express, wanted), judgments=None, relevant_grade=2.0,
        counts={"items": len(owner), "queries": len(queries), "intents": len(intents)},
    )  # fmt: skip


def _intents(config: SyntheticWorldConfig) -> list[Intent]:
    senses, facets = read_senses(), read_facets()
    problems = impossible_numbers(config, ("first_head_query", "first_sense_query"))
    if not 1 <= config.n_intents <= len(senses) * len(facets):
        problems.append(f"n_intents = {config.n_intents}; possible are 1 to {len(senses) * len(facets)}")
    if config.n_items < config.n_intents:
        problems.append(f"n_items = {config.n_items} is below n_intents = {config.n_intents}: an intent needs an item")
    if config.first_head_query + config.first_sense_query >= 1:
        problems.append("first_head_query + first_sense_query must leave room for specific queries (below 1)")
    if problems:
        raise InputError("SyntheticWorldConfig", problems)
    rng = generator(config.seed, "intents")
    per_sense = [rng.permutation(len(facets)) for _ in senses]
    pairs = [(s, per_sense[s][k]) for k in range(len(facets)) for s in range(len(senses))][: config.n_intents]
    return [Intent(senses[s], facets[f], s) for s, f in sorted(pairs)]


def _popularity(intents: list[Intent], config: SyntheticWorldConfig) -> np.ndarray:
    rng = generator(config.seed, "popularity")
    heads = sorted({i.sense.head for i in intents})
    weight = dict(zip(heads, (1 + rng.permutation(len(heads))) ** -config.head_zipf, strict=True))
    by_rank = config.sense_popularity
    raw = [weight[i.sense.head] * by_rank[min(i.sense.rank, len(by_rank) - 1)] * rng.lognormal(0, 0.5) for i in intents]
    return np.asarray(raw) / np.sum(raw)


def _owners(intents: list[Intent], config: SyntheticWorldConfig, rng: np.random.Generator):
    """Each item's intent, and the intent of its second facet or -1; every intent gets an item."""
    n = len(intents)
    owner = np.concatenate([np.arange(n), rng.integers(n, size=config.n_items - n)])
    rng.shuffle(owner)
    siblings = _siblings(intents)
    drawn = np.array([int(rng.choice(siblings[i])) if siblings[i] else -1 for i in owner])
    return owner, np.where(rng.random(len(owner)) < config.second_facet_share, drawn, -1)


def _siblings(intents: list[Intent]) -> list[list[int]]:
    by_sense: dict[int, list[int]] = {}
    for number, intent in enumerate(intents):
        by_sense.setdefault(intent.sense_id, []).append(number)
    return [[other for other in by_sense[i.sense_id] if other != n] for n, i in enumerate(intents)]


def _wanted(intents: list[Intent], owner: np.ndarray, second: np.ndarray) -> sp.csr_matrix:
    """[I, C]: 3 for the item's own intent, 2 for its second facet's, 1 for the other intents of its sense."""
    same = _siblings(intents)
    weak = np.array([(other, c) for c, i in enumerate(owner) for other in same[i]] or np.empty((0, 2)), int)
    touched = np.flatnonzero(second >= 0)
    rows = np.concatenate([owner, second[touched], weak[:, 0]])
    cols = np.concatenate([np.arange(len(owner)), touched, weak[:, 1]])
    sizes = (len(owner), len(touched), len(weak))
    return sorted_csr(rows, cols, np.repeat(list(GRADES.values()), sizes), (len(intents), len(owner)))


def _expression(levels: list[dict[str, list[int]]], n_queries: int, config: SyntheticWorldConfig):
    """(first, refined) [I, Q]: first queries are vague more often than not, later ones specific."""
    vague = {"head": config.first_head_query, "sense": config.first_sense_query}
    shares = {**vague, "specific": 1 - sum(vague.values())}, {"head": 0.0, "sense": 0.25, "specific": 0.75}
    out = []
    for share in shares:
        cells = [
            (n, q, share[level] / len(own)) for n, lv in enumerate(levels) for level, own in lv.items() for q in own
        ]
        rows, cols, values = np.array(cells).T
        keep = values > 0
        matrix = sorted_csr(rows[keep].astype(int), cols[keep].astype(int), values[keep], (len(levels), n_queries))
        out.append(sp.csr_matrix(sp.diags(1 / np.asarray(matrix.sum(1)).ravel()) @ matrix))
        out[-1].sort_indices()
    return out


def _best_over_intents(express: sp.csr_matrix, wanted: sp.csr_matrix) -> sp.csr_matrix:
    """[Q, C]: an item is as relevant to a query as to the best served of the intents that the query expresses."""
    pairs = express.T.tocsr().tocoo()
    parts = [wanted[i] for i in range(wanted.shape[0])]
    rows = np.repeat(pairs.row, [parts[i].nnz for i in pairs.col])
    cols = np.concatenate([parts[i].indices for i in pairs.col])
    values = np.concatenate([parts[i].data for i in pairs.col])
    return sorted_csr(rows, cols, values, (express.shape[1], wanted.shape[1]))


def _item_table(writer, intents, owner, second, levels, popularity, rng) -> pa.Table:
    texts = [
        writer.item(intents[i], intents[s] if s >= 0 else None, levels[i]["specific"])
        for i, s in zip(owner, second, strict=True)
    ]
    plays = np.maximum(1, (2e5 * popularity[owner] * rng.lognormal(0, 1.0, len(owner)))).astype(np.int64)
    return items_table(np.arange(len(owner)), texts, counters(plays, rng))


def counters(plays: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The four counters that go with `plays`: likes, long views and downloads are random shares of it."""
    share = [rng.uniform(low, high, len(plays)) for low, high in ((0.01, 0.1), (0.1, 0.5), (0.0, 0.02))]
    return dict(zip(COUNTERS, [plays, *((plays * s).astype(np.int64) for s in share)], strict=True))


def items_table(ids: np.ndarray, texts: list[dict[str, str]], counts: dict[str, np.ndarray]) -> pa.Table:
    """Items in the log contract's schema from four-field texts; an absent or empty field becomes null."""
    columns = {"item_id": pa.array(ids, pa.int64())}
    columns |= {name: pa.array([t.get(name) or None for t in texts], pa.string()) for name in TEXT_FIELDS}
    columns |= {name: pa.array(counts[name], pa.int64()) for name in COUNTERS}
    return pa.Table.from_pydict(columns, schema=arrow_schema("items"))


def _hidden_table(writer, intents, express, queries, config) -> pa.Table:
    owner = np.repeat(np.arange(len(intents)), config.hidden_per_intent)
    texts = [writer.hidden_item(intents[i]) for i in owner]
    base = items_table(config.n_items + np.arange(len(owner)), texts, {n: np.zeros(len(owner), int) for n in COUNTERS})
    spoken = [[queries[q] for q in express[i].indices] for i in owner]
    return pa.Table.from_arrays(
        [*base.columns, pa.array([intents[i].name for i in owner]), pa.array(spoken, pa.list_(pa.string()))],
        schema=HIDDEN,
    )
