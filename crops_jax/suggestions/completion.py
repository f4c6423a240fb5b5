"""What stands today: the most popular queries that go on as the prefix does, and the user's own before them."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.errors import InputError
from crops_jax.normal_text import normal_form
from crops_jax.suggestions.suggester import SHOWN, Asked


class Completions:
    """A dictionary of queries from which the most popular ones with a prefix come first.

    Queries lie sorted by their normal form, so that those with a prefix are a range, found by binary search. Range
    minima of their popularity are known for all lengths that are powers of two: the best query of a range splits it,
    and the best of both halves come next. So k completions of n queries cost O(log n) comparisons of texts and
    O(k log k) steps, however many queries have the prefix; building costs O(n log n) time, and n log2(n) numbers of 4
    bytes (80 MB for a million queries).
    """

    def __init__(self, queries: Sequence[str], times: Sequence[int]):
        """Takes distinct queries, and how often each was searched.

        Raises:
          InputError: two of the queries are one (`normal_text`).
        """
        order = sorted(range(len(queries)), key=lambda n: (-times[n], queries[n]))
        self.queries = [queries[n] for n in order]  # the most popular first (ties: by text); its index is its place
        self.forms = [normal_form(query) for query in self.queries]
        self.times = np.array([times[n] for n in order], np.int64)
        self.place = {query: place for place, query in enumerate(self.queries)}
        by_form = sorted(range(len(self.forms)), key=self.forms.__getitem__)
        self._sorted = [self.forms[place] for place in by_form]
        same = [a for a, b in zip(self._sorted, self._sorted[1:], strict=False) if a == b]
        if same:
            raise InputError("completions", f"{len(same)} queries are there in two spellings, e.g. {same[0]!r}")
        self._at = np.empty(len(by_form), np.int32)  # where the query of a place lies in the sorted forms
        self._at[by_form] = np.arange(len(by_form), dtype=np.int32)
        self._least = _range_minima(np.array(by_form, np.int32))

    def best(self, form: str) -> Iterator[int]:
        """The places of the queries that begin with a normal form, the most popular first."""
        first, end = self._range(form)
        waiting = [(self._minimum(first, end), first, end)] if first < end else []
        while waiting:
            place, low, high = heapq.heappop(waiting)
            yield place
            at = int(self._at[place])
            for a, b in ((low, at), (at + 1, high)):
                if a < b:
                    heapq.heappush(waiting, (self._minimum(a, b), a, b))

    def all(self, form: str) -> np.ndarray:
        """int32[n]: the places of the queries that begin with a normal form, by their own normal form."""
        return self._least[0][slice(*self._range(form))]

    def begin(self, form: str, places: np.ndarray) -> np.ndarray:
        """bool[n]: which of the queries at int[n] places begin with a normal form."""
        first, end = self._range(form)
        return (self._at[places] >= first) & (self._at[places] < end)

    def _range(self, form: str) -> tuple[int, int]:
        first = bisect_left(self._sorted, form)
        return first, bisect_right(self._sorted, form, lo=first, key=lambda text: text[: len(form)])

    def _minimum(self, low: int, high: int) -> int:
        level = (high - low).bit_length() - 1
        row = self._least[level]
        return int(min(row[low], row[high - (1 << level)]))


def _range_minima(values: np.ndarray) -> list[np.ndarray]:
    """[level][i]: the least of the 2 ** level values from the i-th."""
    rows, step = [values], 1
    while 2 * step <= len(values):
        rows.append(np.minimum(rows[-1][:-step], rows[-1][step:]))
        step *= 2
    return rows


class PopularCompletions:
    """The most popular completion: what most searches of the day were, of the queries that begin with the prefix."""

    def __init__(self, searched: pa.Table):
        """Takes rows of `searched.SEARCHED`. Raises InputError as `Completions`."""
        self.completions = popular_completions(searched)

    def suggest(self, asked: Asked, count: int = SHOWN) -> list[list[str]]:
        """See `Suggester`. An empty prefix is completed by the most popular queries of all."""
        known = self.completions
        return [[known.queries[n] for n in islice(known.best(normal_form(p)), count)] for p in asked.prefixes]


class PersonalCompletions:
    """The user's own completions, and then the most popular ones.

    First what the user searched before the request, the latest first; then what else the user searched on the day, the
    most frequent first (ties: the latest). A request costs as `Completions`, and one pass over the user's own queries.
    """

    def __init__(self, searched: pa.Table):
        """Takes rows of `searched.SEARCHED`. Raises InputError as `Completions`."""
        self.completions = popular_completions(searched)
        self._own = OwnSearches(searched, self.completions)

    def suggest(self, asked: Asked, count: int = SHOWN) -> list[list[str]]:
        """See `Suggester`. A user without any search is answered as by `PopularCompletions`."""
        rows = zip(asked.prefixes, asked.users, asked.recent, strict=True)
        return [self._suggest(normal_form(p), user, recent, count) for p, user, recent in rows]

    def _suggest(self, prefix: str, user: int | None, recent: Sequence[str], count: int) -> list[str]:
        known = self.completions
        latest = ((normal_form(query), query) for query in recent)
        latest = ((form, query) for form, query in latest if form and form.startswith(prefix))
        own = (n for n in self._own.of(user)[0].tolist() if known.forms[n].startswith(prefix))
        others = ((known.forms[n], known.queries[n]) for n in chain(own, known.best(prefix)))
        return list(islice(_distinct(chain(latest, others)), count))


class OwnSearches:
    """What each user searched on the day, the most frequent first (ties: the latest)."""

    def __init__(self, searched: pa.Table, completions: Completions):
        """Takes rows of `searched.SEARCHED`, and the completions that were made of them."""
        searched = searched.filter(pc.is_valid(searched["user_id"]))
        users, times, last = (searched[name].to_numpy() for name in ("user_id", "times", "last_ts"))
        place = np.array([completions.place[q] for q in searched["query"].to_pylist()], np.int32)
        order = np.lexsort((place, -last, -times, users))
        self._users, self._start = np.unique(users[order], return_index=True)
        self._start = np.append(self._start, len(order))
        self._places, self._times = place[order], times[order]

    def of(self, user: int | None) -> tuple[np.ndarray, np.ndarray]:
        """(int32[n] places, int64[n] times) of a user's queries; n is 0 for one who is not known."""
        row = int(np.searchsorted(self._users, user)) if user is not None else len(self._users)
        known = row < len(self._users) and self._users[row] == user
        own = slice(self._start[row], self._start[row + 1]) if known else slice(0)
        return self._places[own], self._times[own]


def popular_completions(searched: pa.Table) -> Completions:
    """The completions of rows of `searched.SEARCHED`. Raises InputError as `Completions`."""
    rows = searched.group_by("query").aggregate([("times", "sum")])
    return Completions(rows["query"].to_pylist(), rows["times_sum"].to_pylist())


def _distinct(named: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The texts of (form, text) whose form was not there before."""
    seen: set[str] = set()
    for form, text in named:
        if form not in seen:
            seen.add(form)
            yield text
