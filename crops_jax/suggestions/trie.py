"""A dictionary of texts as a trie of their tokens, in arrays that lie on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np

from crops_jax.errors import InputError


@partial(jax.tree_util.register_dataclass, data_fields=["first", "count", "token", "child"], meta_fields=["width"])
@dataclass(frozen=True)
class Trie:
    """Node 0 is the root; the edges of a node lie side by side, by rising token."""

    first: jax.Array | np.ndarray  # int32[nodes]: the first edge of a node
    count: jax.Array | np.ndarray  # int32[nodes]: how many it has; 0 after a text's last token
    token: jax.Array | np.ndarray  # int32[edges]
    child: jax.Array | np.ndarray  # int32[edges]: the node that an edge leads to
    width: int = field(default=0)  # most edges of a node


def trie_of(texts: Sequence[Sequence[int]]) -> Trie:
    """The trie of token rows, each with the token that ends it.

    Raises:
      InputError: there are no texts, one is empty, or one goes on where another has ended: their last token is missing.
    """
    if not texts or not all(len(text) for text in texts):
        raise InputError(
            "trie", f"{len(texts)} texts, {sum(not len(t) for t in texts)} of them empty: nothing to choose from"
        )
    children: list[dict[int, int]] = [{}]
    ends, through = set(), set()
    for text in texts:
        node = 0
        for token in text:
            through.add(node)
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
        ends.add(node)
    if both := ends & through:
        raise InputError(
            "trie", f"{len(both)} texts are the beginning of others: each has to end with the token that ends it"
        )
    count = np.array([len(own) for own in children], np.int32)
    edges = [(token, child) for own in children for token, child in sorted(own.items())]
    token, child = np.array(edges, np.int32).T
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int32)
    return Trie(first, count, np.ascontiguousarray(token), np.ascontiguousarray(child), int(count.max()))


def trie_of_rows(rows: np.ndarray) -> Trie:
    """The trie of int[n, T] different rows in rising order, without a loop over them; its last n nodes are the rows.

    Nodes are numbered level by level, so that the edge to node i + 1 is edge i.
    """
    changes = np.ones(len(rows), bool)  # where a prefix begins that the row before has not
    changes[1:] = False
    levels, token, many = [np.zeros(len(rows), np.int64)], [], []
    for column in rows.T:
        changes[1:] |= column[1:] != column[:-1]
        begins = np.flatnonzero(changes)
        token.append(column[begins])
        many.append(np.bincount(levels[-1][begins]))  # children of each node above
        levels.append(np.cumsum(changes) - 1)
    count = np.concatenate([*many, np.zeros(len(rows), np.int64)]).astype(np.int32)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int32)
    edges = np.concatenate(token).astype(np.int32)
    return Trie(first, count, edges, np.arange(1, len(edges) + 1, dtype=np.int32), int(count.max()))
