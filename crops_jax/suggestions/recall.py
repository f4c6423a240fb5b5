"""The first stages of the cascade: candidates of a request, recalled in three ways, and what is known of each.

Shapes: C candidates of all requests, F features, c candidates of one prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from crops_jax.normal_text import normal_form
from crops_jax.suggestions.completion import OwnSearches, popular_completions
from crops_jax.suggestions.config import CascadeConfig
from crops_jax.suggestions.nearest import Dictionary, Encode, encoded, highest, unit
from crops_jax.suggestions.prefix_queries import PrefixQueries
from crops_jax.suggestions.suggester import Asked

FEATURES = (
    "log_popularity",  # log of the query's share of the day's searches
    "log_share",  # and of its share of the searches that begin with the prefix
    "cosine",  # of the vectors of query and prefix; NaN where one of them has none
    "longer_by",  # characters that the query has and the prefix has not
    "begins",  # 1 where the query begins with the prefix
    "recent",  # 1 / how many searches ago the user searched it; 0: not among the last ten
    "own_times",  # how often the user searched it before the request
    "co_occurrence",  # the score of the pair (`co_occurrence`), 0 for none
)
_PLACE = {name: n for n, name in enumerate(FEATURES)}
_RECENT = 10  # searches


@dataclass(frozen=True)
class Candidates:
    """The different queries that may be suggested for each request, one an entry."""

    request: np.ndarray  # int64[C], rising
    queries: list[str]  # C
    features: np.ndarray  # float32[C, F]


@dataclass(frozen=True)
class _Prefix:
    """What is known of a prefix."""

    form: str
    vector: np.ndarray | None  # float32[D]; None: nothing is typed
    searches: int  # that begin with it
    co_occurring: dict[str, float]  # query -> score


@dataclass(frozen=True)
class _Shared:
    """The candidates that all requests with a prefix have in common."""

    prefix: _Prefix
    places: np.ndarray  # int64[c]
    features: np.ndarray  # float32[c, F]


@dataclass(frozen=True)
class _Own:
    """A query that the user searched."""

    query: str
    back: int  # 1: the last search; 0: not among those that are known one by one
    times: int


class Recall:
    """Recalls the most popular completions, the user's own queries, and those whose vectors are near the prefix's.

    A different prefix costs one text for the encoder, O(k log k) for k popular completions, and the cosines of the
    queries among which the nearest are searched: those that begin with it, or what the dictionary's `lookup` looks at.
    A request costs its own candidates, and one pass over the user's own queries.
    """

    def __init__(
        self, searched: pa.Table, prefix_query: pa.Table, dictionary: Dictionary, encode: Encode, config: CascadeConfig
    ):
        """Takes what is known of a day.

        Args:
          searched: rows of `searched.SEARCHED`; only queries that are searched there are popular or near.
          prefix_query: rows of `co_occurrence.PREFIX_QUERY`.
          dictionary: has vectors for the queries, at least for most.
          encode: gives prefixes, in their normal form, vectors in the same room.

        Raises:
          InputError: as `completion.Completions`.
        """
        self.config, self._encode, self._dictionary = config, encode, dictionary
        self._known = popular_completions(searched)
        self._own, self._co_occurring = OwnSearches(searched, self._known), PrefixQueries(prefix_query)
        self._vectors = unit(dictionary.vectors)
        self._place_of_form = {form: place for place, form in enumerate(self._known.forms)}
        self._row_of_form = {normal_form(query): row for row, query in enumerate(dictionary.queries)}
        self._row = np.array([self._row_of_form.get(form, -1) for form in self._known.forms], np.int64)
        self._place = np.full(len(dictionary.queries), -1, np.int64)
        self._place[self._row[self._row >= 0]] = np.flatnonzero(self._row >= 0)
        self._length = np.array([len(form) for form in self._known.forms], np.int64)
        self._all = max(1, self._known.times.sum() + len(self._known.times))

    def candidates(self, asked: Asked) -> Candidates:
        """The candidates of each request; a request may have none.

        Raises:
          InputError: vectors of prefixes are not finite, or have another width than the dictionary's.
        """
        forms = [normal_form(prefix) for prefix in asked.prefixes]
        shared = {found.prefix.form: found for found in self._shared(list(dict.fromkeys(forms)))}
        amounts, queries, features = [], [], [np.zeros((0, len(FEATURES)), np.float32)]
        for form, user, recent in zip(forms, asked.users, asked.recent, strict=True):
            found, rows = self._with_own(shared[form], self._own_queries(form, user, recent))
            amounts.append(len(found))
            queries += found
            features.append(rows)
        return Candidates(np.repeat(np.arange(len(forms)), amounts), queries, np.concatenate(features))

    def _shared(self, forms: Sequence[str]) -> Iterator[_Shared]:
        typed = [form for form in forms if form]
        vectors = unit(encoded(self._encode, typed, "vectors of prefixes")) if typed else self._vectors[:0]
        among_all = self.config.near_among == "all" and len(typed) > 0
        of_all = self._dictionary.lookup(vectors, self.config.near) if among_all else [None] * len(typed)
        near = dict(zip(typed, zip(vectors, of_all, strict=True), strict=True))
        for form in forms:
            vector, rows = near.get(form, (None, None))
            popular = islice(self._known.best(form), self.config.popular)
            places = np.array(list(dict.fromkeys([*popular, *self._near(form, vector, rows)])), np.int64)
            begin = self._known.times[self._known.all(form)]
            searches = max(1, int(begin.sum()) + len(begin))
            prefix = _Prefix(form, vector, searches, dict(zip(*self._co_occurring.of(form), strict=True)))
            yield _Shared(prefix, places, self._features(prefix, places))

    def _near(self, form: str, vector: np.ndarray | None, rows: np.ndarray | None) -> list[int]:
        """Places of the nearest queries; `rows` of the dictionary, where they were looked up among all."""
        if vector is None:
            return []
        if rows is not None:
            places = self._place[rows[rows >= 0]]
            return places[places >= 0].tolist()
        places = self._known.all(form)
        places = places[self._row[places] >= 0]
        return places[highest(self._vectors[self._row[places]] @ vector, self.config.near)].tolist()

    def _features(self, prefix: _Prefix, places: np.ndarray) -> np.ndarray:
        """float32[c, F] of queries that are known, without what their user did."""
        rows, known = self._row[places], self._known
        found = np.zeros((len(places), len(FEATURES)), np.float32)
        found[:, _PLACE["log_popularity"]] = np.log((known.times[places] + 1) / self._all)
        found[:, _PLACE["log_share"]] = np.log((known.times[places] + 1) / prefix.searches)
        found[:, _PLACE["cosine"]] = np.nan
        if prefix.vector is not None:
            found[rows >= 0, _PLACE["cosine"]] = self._vectors[rows[rows >= 0]] @ prefix.vector
        found[:, _PLACE["longer_by"]] = self._length[places] - len(prefix.form)
        found[:, _PLACE["begins"]] = known.begin(prefix.form, places)
        scores = [prefix.co_occurring.get(known.queries[place], 0) for place in places.tolist()]
        found[:, _PLACE["co_occurrence"]] = scores
        return found

    def _own_queries(self, form: str, user: int | None, recent: Sequence[str]) -> dict[str, _Own]:
        """The user's queries that begin with a prefix, by their normal form: the latest, then the most frequent."""
        found: dict[str, _Own] = {}
        for back, query in enumerate(recent, 1):
            own = normal_form(query)
            if own and own.startswith(form):
                before = found.get(own, _Own(query, back, 0))
                found[own] = _Own(before.query, before.back, before.times + 1)
        for place, times in zip(*map(np.ndarray.tolist, self._own.of(user)), strict=True):
            own = self._known.forms[place]
            if own.startswith(form):
                before = found.get(own, _Own(self._known.queries[place], 0, 0))
                found[own] = _Own(before.query, before.back, max(before.times, times))
        return found

    def _with_own(self, shared: _Shared, own: dict[str, _Own]) -> tuple[list[str], np.ndarray]:
        """The candidates of a request, and their features."""
        places = shared.places.tolist()
        queries = [self._known.queries[place] for place in places]
        if not own:
            return queries, shared.features
        at = {self._known.forms[place]: n for n, place in enumerate(places)}
        new = [form for form in own if form not in at][: self.config.own]
        at |= {form: n for n, form in enumerate(new, len(at))}
        features = np.concatenate([shared.features, self._new(shared.prefix, new)])
        for form, said in own.items():
            if (n := at.get(form)) is not None:
                features[n, _PLACE["recent"]] = 1 / said.back if 0 < said.back <= _RECENT else 0
                features[n, _PLACE["own_times"]] = said.times
        return queries + [own[form].query for form in new], features

    def _new(self, prefix: _Prefix, forms: Sequence[str]) -> np.ndarray:
        """float32[c, F] of a user's own queries that begin with the prefix, known or not."""
        found = np.zeros((len(forms), len(FEATURES)), np.float32)
        for features, form in zip(found, forms, strict=True):
            if (place := self._place_of_form.get(form, -1)) >= 0:
                features[:] = self._features(prefix, np.array([place]))[0]
                continue
            row = self._row_of_form.get(form, -1)
            seen = row >= 0 and prefix.vector is not None
            features[_PLACE["log_popularity"]] = -np.log(self._all)
            features[_PLACE["log_share"]] = -np.log(prefix.searches)
            features[_PLACE["cosine"]] = self._vectors[row] @ prefix.vector if seen else np.nan
            features[_PLACE["longer_by"]] = len(form) - len(prefix.form)
            features[_PLACE["begins"]] = 1
        return found
