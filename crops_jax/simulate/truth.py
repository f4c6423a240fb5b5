"""What only a simulation knows: relevance truth, the events' intents, and a simulated annotation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from crops_jax.simulate.platform import Pools
from crops_jax.simulate.world import Lookup, World, generator

RELEVANCE = pa.schema(
    [
        pa.field("query", pa.string(), False),
        pa.field("item_id", pa.int64(), False),
        pa.field("grade", pa.float64(), False),
    ]
)
EVENTS = pa.schema(
    [
        pa.field("request_id", pa.string(), False),
        pa.field("intent_id", pa.int64(), False),
        pa.field("intent", pa.string(), False),
        pa.field("session_id", pa.int64(), False),
        pa.field("step", pa.int64(), False),
        pa.field("switched", pa.bool_(), False),
    ]
)
EXPRESSIONS = pa.schema(
    [
        pa.field("query", pa.string(), False),
        pa.field("intent_id", pa.int64(), False),
        pa.field("intent", pa.string(), False),
        pa.field("probability", pa.float64(), False),  # P(intent | the query is typed first)
    ]
)


@dataclass(frozen=True)
class AnnotationConfig:
    """The simulated annotation of a complete world; a judged world brings its own judgments."""

    queries: int = 500
    """Queries that are annotated, drawn by how often they are typed first."""
    pooled: int = 20
    """Documents judged for each query: some relevant ones, the rest what production ranks first and random ones."""


def relevance_table(world: World) -> pa.Table:
    """Every known (query, item, grade)."""
    coo = world.relevance.tocoo()
    return graded_table(world, coo.row, coo.col, coo.data)


def graded_table(world: World, query: np.ndarray, item: np.ndarray, grade: np.ndarray) -> pa.Table:
    """A table of schema RELEVANCE from query rows, item rows and grades, in their order."""
    texts, ids = pa.array(world.queries, pa.string()), world.items["item_id"].to_numpy()
    return pa.Table.from_arrays([texts.take(pa.array(query)), pa.array(ids[item]), pa.array(grade)], schema=RELEVANCE)


def expression_table(world: World) -> pa.Table:
    """Which intents a first query expresses, and how probably."""
    joint = sp.csc_matrix(sp.diags(world.popularity) @ world.first).tocoo()
    order = np.lexsort((joint.row, joint.col))
    query, intent, weight = joint.col[order], joint.row[order], joint.data[order]
    total = np.bincount(query, weight, minlength=len(world.queries))
    names, texts = pa.array(world.intents, pa.string()), pa.array(world.queries, pa.string())
    return pa.Table.from_arrays(
        [texts.take(pa.array(query)), pa.array(intent, pa.int64()), names.take(pa.array(intent)),
         pa.array(weight / total[query])], schema=EXPRESSIONS)  # fmt: skip


def simulated_annotation(world: World, pools: Pools, config: AnnotationConfig, seed: int) -> pa.Table:
    """True grades, 0 included, of a pool of documents for some queries; schema RELEVANCE."""
    rng = generator(seed, "annotation")
    share = world.popularity @ world.first
    n = min(config.queries, int((share > 0).sum()))
    query = np.sort(rng.choice(len(world.queries), size=n, replace=False, p=share / share.sum()))
    rows, items = [], []
    for q in query:
        own = world.relevance[q].indices
        pool = pools.item[q][np.argsort(-pools.rank[q], kind="stable")]
        picks = np.concatenate([
            rng.permutation(own)[: config.pooled // 2],
            pool[pool >= 0][: config.pooled // 4],
            rng.integers(world.items.num_rows, size=config.pooled),
        ])  # fmt: skip
        _, place = np.unique(picks, return_index=True)
        chosen = np.sort(picks[np.sort(place)][: config.pooled])
        rows.append(np.full(len(chosen), q))
        items.append(chosen)
    row, item = np.concatenate(rows), np.concatenate(items)
    return graded_table(world, row, item, Lookup(world.relevance)(row, item).astype(np.float64))


def bubble_facts(world: World, exposed: sp.csr_matrix, searched: np.ndarray) -> dict[str, float | int]:
    """How much of what is relevant to the searched queries was never exposed for them.

    Args:
      exposed: [Q, C] counts of exposures for a query.
      searched: rows of the queries that were typed.
    """
    coo = world.relevance[searched].tocoo()
    good = coo.data >= world.relevant_grade
    row, col = searched[coo.row[good]], coo.col[good]
    seen = Lookup(exposed)(row, col) > 0
    return {
        "relevant (query, item) pairs of searched queries": len(row),
        "share of them never exposed": round(float(1 - seen.mean()), 4) if len(row) else 0.0,
    }
