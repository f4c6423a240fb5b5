"""Groups with mined negatives: of a click, what the recipes before CroPS train on, or of graded documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.engines.table_rows import sort_rows, take_rows
from crops_jax.errors import InputError
from crops_jax.labels import Group, LabelsConfig, source_bits
from crops_jax.logs.parts import parts as files_of
from crops_jax.logs.tables import read_table
from crops_jax.normal_text import normal_form
from crops_jax.records.assemble import Keys, typed
from crops_jax.stable_hash import hash_texts

NEAR = "N1"  # the source of mined negatives
# (number of the query, the positive, a generator of the group's own) -> ids of negatives
Draw = Callable[[int, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Positives:
    """The queries of the train day, and what must not be a negative of theirs."""

    queries: list[str]  # distinct, sorted
    known: list[np.ndarray]  # of each query: item ids of its positives in any search, rising

    @staticmethod
    def read(candidates: Path, labels: LabelsConfig) -> Positives:
        """Those in candidates.parquet (`positive_pairs`)."""
        table = sort_rows(positive_pairs(candidates, labels), "query")
        return Positives(*_by_query(table["query"].to_numpy(), table["item_id"].to_numpy()))


def positive_pairs(candidates: Path, labels: LabelsConfig) -> pa.Table:
    """query, item_id of the rows of candidates.parquet whose source `labels` takes for positive."""
    letters = [letter for letter in labels.sources if labels.levels[letter] >= labels.min_positive]
    table = read_table(candidates, columns=["query", "item_id", "source"])
    return table.filter(pc.is_in(table["source"], pa.array(letters))).drop_columns("source")


def _by_query(text: np.ndarray, item: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """Distinct texts, and the items of each; rows are sorted by text."""
    queries, of_row = np.unique(text, return_inverse=True)
    return queries.tolist(), [np.unique(items) for items in np.split(item, np.flatnonzero(np.diff(of_row)) + 1)]


@dataclass(frozen=True)
class Clicks(Positives):
    """The clicks of the train day, search by search; `known` is what was clicked for a query."""

    request_id: list[str]  # of each search with a click, sorted by query, then id
    user_id: np.ndarray  # int64, of each search; -1 for nobody
    query: np.ndarray  # of each search: the number of its query
    typed: list[str]  # of each search: the query as its user typed it
    clicked: list[np.ndarray]  # of each search: item ids

    @staticmethod
    def read(candidates: Path) -> Clicks:
        """The rows of P0 in candidates.parquet.

        Raises:
          InputError: there are none.
        """
        files = [read_table(path) for path in files_of(candidates)]
        table = pa.concat_tables(
            [file.filter(pc.equal(file["source"], "P0")) for file in files], promote_options="default"
        )  # not all files say what was typed
        table = sort_rows(table, [("query", "ascending"), ("request_id", "ascending")])
        if not table.num_rows:
            raise InputError(str(candidates), "nobody clicked anything: there are no positives to train on")
        text, request = table["query"].to_numpy(), table["request_id"].to_numpy()
        item, user = table["item_id"].to_numpy(), table["user_id"].fill_null(-1).to_numpy()  # a null is nobody
        queries, known = _by_query(text, item)
        starts = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
        of_search = np.searchsorted(np.array(queries, object), text[starts])
        return Clicks(queries, known, request[starts].tolist(), user[starts], of_search,
                      take_rows(pa.table({"typed": typed(table)}), starts)["typed"].to_pylist(),
                      np.split(item, starts[1:]))  # fmt: skip


def click_groups(
    clicks: Clicks, draw: Draw, seed: int, levels: Mapping[str, int], most: int | None = None
) -> Iterator[Group]:
    """A group a search: one of its clicks, drawn alike, and the negatives that `draw` gives for it, at their `levels`.

    Each search has a generator of its own, from its id and `seed`: the groups depend on nothing else. With `most` they
    are those of a seeded sample of so many searches.
    """
    near = source_bits(NEAR)
    keys = hash_texts(clicks.request_id, seed)
    for i in np.sort(np.argsort(keys, kind="stable")[:most]):
        rng = np.random.default_rng(keys[i])
        positive = int(rng.choice(clicks.clicked[i]))
        negatives = np.sort(draw(int(clicks.query[i]), positive, rng))
        ones = np.ones(len(negatives), np.int32)
        yield Group(
            request_id=clicks.request_id[i],
            user_id=int(clicks.user_id[i]),
            query=clicks.typed[i],
            item_id=np.concatenate([[positive], negatives]).astype(np.int64),
            label=np.concatenate([[levels["P0"]], levels[NEAR] * ones]).astype(np.int32),
            source=np.concatenate([[source_bits("P0")], near * ones]).astype(np.int32),
        )


def graded_groups(
    groups: Iterable[Group], positives: Positives, draw: Draw, seed: int, keys: Keys, label: int
) -> Iterator[Group]:
    """Every group with the negatives that `draw` gives for its query and its best document, at `label`.

    A drawn document of a text that the group holds is left out. As in `click_groups` each search has a generator of its
    own.
    """
    near = source_bits(NEAR)
    number = {normal_form(query): i for i, query in enumerate(positives.queries)}
    for group in groups:
        rng = np.random.default_rng(hash_texts([group.request_id], seed)[0])
        drawn = np.sort(draw(number[normal_form(group.query)], int(group.item_id[0]), rng))
        drawn = drawn[~np.isin(keys(drawn), keys(group.item_id))]
        item_id = np.concatenate([group.item_id, drawn]).astype(np.int64)
        grade = np.concatenate([group.label, np.full(len(drawn), label)]).astype(np.int32)
        source = np.concatenate([group.source, np.full(len(drawn), near)]).astype(np.int32)
        own = None if group.own is None else np.concatenate([group.own, np.ones(len(drawn), bool)])
        yield replace(group, item_id=item_id, label=grade, source=source, own=own).take(np.lexsort((item_id, -grade)))
