"""Users who type: a query grows letter by letter, production suggests popular completions, the user may take one.

A letter is one character of the query; input methods that write other signs first (pinyin) are not simulated. After
every letter that is no blank, production completes what stands there with the queries that most users type, as far as
it knows them. The user looks at the list from the top, and takes the wanted query where it is, or another one that
says the same; else types on, and searches for what was typed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from crops_jax.normal_text import BLANKS
from crops_jax.simulate.world import Lookup, World, generator, rows_to_one


@dataclass(frozen=True)
class TypingConfig:
    """Whether searches are typed letter by letter, what is suggested meanwhile, and what users do about it."""

    enabled: bool = False
    """Write the tables of suggestions too. Suggestions that are taken change what is searched."""
    considered: int = 20
    """Completions that are logged for each prefix."""
    shown: int = 10
    """So many of them, the first, are shown."""
    known_share: float = 0.9
    """Share of the query strings that production knows and may suggest; the others are always typed in full."""
    popularity_noise: float = 0.5
    """How far production's idea of a query's popularity is off (standard deviation of its logarithm)."""
    take_chance: float = 0.3
    """Chance that a user who sees the query that was meant takes it, anew after every letter."""
    settle_chance: float = 0.05
    """Chance that a user who sees another query for the same need takes that one."""
    letter_ms: int = 300
    """Time that a letter takes."""
    order_chance: float = 0.2
    """Chance that a click on an item of the best grade, behind a suggestion, becomes an order; half of it for the
    least relevant grade."""


@dataclass(frozen=True)
class Completions:
    """What production suggests for P prefixes: all that can stand in the box while one of Q queries is typed."""

    config: TypingConfig
    prefixes: pa.Array  # P strings, as they are typed
    suggested: np.ndarray  # int32[P, considered]: query rows, the most popular first; -1 is padding
    start: np.ndarray  # int64[Q + 1]: the prefixes of query q are stages[start[q]:start[q + 1]], the shortest first
    stages: np.ndarray  # int64[...]: rows of `prefixes`
    says: Lookup  # [I, Q]: above zero where a user with that intent may type that query


def completions(world: World, config: TypingConfig, seed: int) -> Completions:
    """The completions of a world's queries by their popularity; a case-blind match from the first letter on."""
    rng = generator(seed, "completions")
    either = sp.csr_matrix(world.first + world.refined)
    typed = world.popularity @ world.first + world.popularity @ rows_to_one(world.refined)
    popular = (typed + 1e-3 * typed.mean()) * rng.lognormal(0, config.popularity_noise, len(world.queries))
    known = rng.random(len(world.queries)) < config.known_share
    lists: dict[str, list[int]] = {}
    order = np.argsort(-popular, kind="stable")
    for q in order[known[order]].tolist():
        for prefix in _typed_stages(world.queries[q].lower()):
            entry = lists.setdefault(prefix, [])
            if len(entry) < config.considered:
                entry.append(q)
    numbers: dict[str, int] = {}
    stages = [[numbers.setdefault(p, len(numbers)) for p in _typed_stages(text)] for text in world.queries]
    suggested = np.full((len(numbers), config.considered), -1, np.int32)
    for prefix, number in numbers.items():
        entry = lists.get(prefix.lower(), [])
        suggested[number, : len(entry)] = entry
    start = np.concatenate([[0], np.cumsum([len(s) for s in stages])])
    flat = np.array([n for s in stages for n in s], np.int64)
    return Completions(config, pa.array(list(numbers), pa.string()), suggested, start, flat, Lookup(either))


def _typed_stages(text: str) -> list[str]:
    """What stands in the box after each letter; a blank at the end asks for nothing new.

    >>> _typed_stages("a bc")
    ['a', 'a b', 'a bc']
    """
    return [text[:n] for n in range(1, len(text) + 1) if text[n - 1] not in BLANKS]


@dataclass(frozen=True)
class Typed:
    """How E searches came to be, in parallel arrays."""

    query: np.ndarray  # int64[E]: what is searched
    aimed: np.ndarray  # int64[E]: what was being typed
    letters: np.ndarray  # int64[E]: requests for suggestions, one for each of the first prefixes of `aimed`
    taken: np.ndarray  # int64[E]: column of the suggestion taken after the last of them; -1: none
    started: np.ndarray  # int64[E], ms after the day's start


def at_once(query: np.ndarray, ts: np.ndarray) -> Typed:
    """Searches that nobody saw being typed."""
    return Typed(query, query, np.zeros(len(query), np.int64), np.full(len(query), -1), ts)


def type_queries(
    known: Completions, intent: np.ndarray, history: np.ndarray, ts: np.ndarray, since: np.ndarray,
    examination: np.ndarray, rng: np.random.Generator,
) -> Typed:  # fmt: skip
    """Users with an intent type the last query of their `history`.

    Args:
      history: int64[E, typed so far]. The queries before the last are not settled for again.
      ts: int64[E], when they search, ms after the day's start.
      since: int64[E], when they searched before; they start typing after it.
      examination: float64[ranks], chance that a place of a list is looked at.
    """
    aimed, config = history[:, -1], known.config
    n = known.start[aimed + 1] - known.start[aimed]
    letters, taken, query = np.zeros(len(aimed), np.int64), np.full(len(aimed), -1), aimed.copy()
    looked = np.interp(np.arange(config.shown), np.arange(len(examination)), examination)
    typing = np.flatnonzero(n > 0)
    while len(typing):
        seen = known.suggested[known.stages[known.start[aimed[typing]] + letters[typing]]][:, : config.shown]
        letters[typing] += 1
        chance = looked * _wish(known, intent[typing], history[typing], seen)
        takes = rng.random(seen.shape) < chance
        which = np.argmax(takes, axis=1)
        some = takes.any(axis=1)
        taken[typing[some]] = which[some]
        query[typing[some]] = seen[some, which[some]]
        typing = typing[~some]
        typing = typing[letters[typing] < n[typing]]
    started = np.minimum(np.maximum(ts - letters * config.letter_ms, since + 1), ts)
    return Typed(query, aimed, letters, taken, started)


def _wish(known: Completions, intent: np.ndarray, history: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """float64[E, shown]: the chance that a user who looks at a suggestion takes it."""
    meant = seen == history[:, -1:]
    same_need = (seen >= 0) & (known.says(intent[:, None], np.maximum(seen, 0)) > 0)
    for column in history[:, :-1].T:
        same_need &= seen != column[:, None]
    return np.where(meant, known.config.take_chance, np.where(same_need, known.config.settle_chance, 0.0))
