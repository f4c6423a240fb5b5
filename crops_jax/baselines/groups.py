"""Groups of a click and its negatives: what the recipes before CroPS train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.errors import InputError
from crops_jax.labels import Group, levels, source_bits
from crops_jax.stable_hash import hash_texts

NEAR = "N1"  # the source of mined negatives
# (number of the query, the positive, a generator of the group's own) -> ids of negatives
Draw = Callable[[int, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Clicks:
    """The clicks of the train day, search by search."""

    queries: list[str]  # distinct, sorted
    known: list[np.ndarray]  # of each query: item ids clicked for it in any search, rising
    request_id: list[str]  # of each search with a click, sorted by query, then id
    user_id: np.ndarray  # int64, of each search
    query: np.ndarray  # of each search: the number of its query
    clicked: list[np.ndarray]  # of each search: item ids

    @staticmethod
    def read(candidates: Path) -> Clicks:
        """The rows of P0 in candidates.parquet.

        Raises:
          InputError: there are none.
        """
        table = pq.read_table(candidates, page_checksum_verification=True)
        table = table.filter(pc.equal(table["source"], "P0")).sort_by(
            [("query", "ascending"), ("request_id", "ascending")]
        )
        if not table.num_rows:
            raise InputError(str(candidates), "nobody clicked anything: there are no positives to train on")
        text, request = table["query"].to_numpy(), table["request_id"].to_numpy()
        item, user = table["item_id"].to_numpy(), table["user_id"].to_numpy()
        queries, of_row = np.unique(text, return_inverse=True)
        known = [np.unique(items) for items in np.split(item, np.flatnonzero(np.diff(of_row)) + 1)]
        starts = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
        return Clicks(queries.tolist(), known, request[starts].tolist(), user[starts], of_row[starts],
                      np.split(item, starts[1:]))  # fmt: skip


def click_groups(clicks: Clicks, draw: Draw, seed: int) -> Iterator[Group]:
    """A group a search: one of its clicks, drawn alike, and the negatives that `draw` gives for it.

    Each search has a generator of its own, from its id and `seed`: the groups depend on nothing else.
    """
    label, near = levels(), source_bits(NEAR)
    keys = hash_texts(clicks.request_id, seed)
    for i, key in enumerate(keys):
        rng = np.random.default_rng(key)
        positive = int(rng.choice(clicks.clicked[i]))
        negatives = np.sort(draw(int(clicks.query[i]), positive, rng))
        ones = np.ones(len(negatives), np.int32)
        yield Group(
            request_id=clicks.request_id[i],
            user_id=int(clicks.user_id[i]),
            query=clicks.queries[clicks.query[i]],
            item_id=np.concatenate([[positive], negatives]).astype(np.int64),
            label=np.concatenate([[label["P0"]], label[NEAR] * ones]).astype(np.int32),
            source=np.concatenate([[source_bits("P0")], near * ones]).astype(np.int32),
        )
