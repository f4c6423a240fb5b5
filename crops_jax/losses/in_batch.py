"""In-batch negatives: a query contrasts with the documents of all other queries in the global batch.

Queries and documents are split alike by their first axis, each group whole on one device. This is where they meet:
each form of the product runs on every device's own queries, and either gathers the documents or lets them go round.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
from jax import Array, P

from crops_jax.losses.lse import masked_lse
from crops_jax.losses.pairs import Documents, Queries, pairs
from crops_jax.losses.streaming import streamed_lse
from crops_jax.parallel.collectives import MeshAxes, gather_rows

Form = Literal["factored", "streaming", "ring"]


def in_batch_lse(
    queries: Queries, docs: Documents, mask_duplicate_ids: bool, form: Form = "factored", tile: int = 512
) -> tuple[Array, Array]:
    """(A float[B], dropped int32[B, 2]): the LSE of each query's in-batch negatives, and the counts of `pairs`.

    factored: from logits [B, N]. streaming: from tiles of the gathered documents. ring: from tiles of the documents
    of one device after the other. Equal in value and gradient. A is -1e30 for a query without in-batch negatives.
    """

    def on_device(queries: Queries, docs: Documents, axes: MeshAxes) -> tuple[Array, Array]:
        match form:
            case "factored":
                logits, negative, dropped = pairs(queries, _all_gather(docs, axes), mask_duplicate_ids)
                return masked_lse(logits, negative), dropped
            case "streaming":
                return streamed_lse(queries, _all_gather(docs, axes), (), tile, mask_duplicate_ids)
            case "ring":
                return streamed_lse(queries, docs, axes, tile, mask_duplicate_ids)

    return _on_each_device(on_device, queries, docs)


def in_batch_pairs(queries: Queries, docs: Documents, mask_duplicate_ids: bool) -> tuple[Array, Array, Array]:
    """`pairs` over the global batch: (logits float[B, N], negative bool[B, N], dropped int32[B, 2])."""

    def on_device(queries: Queries, docs: Documents, axes: MeshAxes) -> tuple[Array, Array, Array]:
        return pairs(queries, _all_gather(docs, axes), mask_duplicate_ids)

    return _on_each_device(on_device, queries, docs)


def _all_gather(docs: Documents, axes: MeshAxes) -> Documents:
    """Every document of the global batch."""
    return jax.tree.map(lambda x: gather_rows(x, axes), docs) if axes else docs


def _on_each_device(f: Callable[[Queries, Documents, MeshAxes], Any], queries: Queries, docs: Documents) -> Any:
    """`f(queries, docs, axes)` on every device's rows, `axes` being what splits them; () without a mesh."""
    split = jax.typeof(queries.vector).sharding.spec[0]
    axes = (split,) if isinstance(split, str) else tuple(split or ())
    run = partial(f, axes=axes)
    return (jax.shard_map(run, in_specs=P(axes), out_specs=P(axes)) if axes else run)(queries, docs)
