"""A world over any judged collection: real items, real queries, human grades; unjudged pairs stay unknown.

Every judged query with a relevant item is an intent. A user with that intent may first type a sibling query: one that
shares an item relevant to both and is similar in wording or in what it asks for (a shared item alone does not prove a
shared intent), and later types the query itself. An item counts as relevant to the user by the human grade of
(the intent's own query, item) alone. A seeded share of the relevant items is held out of the corpus as the outside
world's, from which the simulated language model writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from crops_jax.artifacts.manifest import digest_of_tables, verify
from crops_jax.engines.table_rows import take_rows
from crops_jax.errors import InputError, impossible_numbers
from crops_jax.logs.schema import COUNTERS, MAX_GRADE
from crops_jax.logs.tables import read_table
from crops_jax.normal_text import has_text
from crops_jax.simulate.world import HIDDEN, World, at_least, generator, sorted_csr

COLLECTION = "collection"  # in the counts of the logs: `collection_identity`


@dataclass(frozen=True)
class JudgedWorldConfig:
    """Which judged collection, and how its judgments become intents."""

    collection: str
    """Folder with items.parquet and judgments.parquet, as a recipe in data/ writes it."""
    relevant_grade: float
    """A grade at or above it counts as relevant."""
    seed: int = 0
    """Chooses the held-out items and the popularity of intents."""
    hidden_share: float = 0.05
    """Share of the relevant items that leave the corpus and become the outside world's."""
    min_similarity: float = 0.2
    """Siblings must reach this cosine of character 3-4-gram TF-IDF between the query strings ..."""
    min_shared: int = 3
    """... or share this many relevant items."""
    first_sibling_share: float = 0.5
    """Chance that a user whose intent has siblings types one of them first, not the intent's own query."""
    popularity_zipf: float = 0.7
    """Zipf exponent of the popularity over intents, in seeded random order."""


def collection_identity(config: JudgedWorldConfig) -> str:
    """sha256 of what is read of the collection: the same where it is made again with the same bytes."""
    return digest_of_tables(config.collection, ("items.parquet", "judgments.parquet"))


def judged_world(config: JudgedWorldConfig) -> World:
    """Builds the world of a judged collection.

    Raises:
      InputError: a setting cannot be, the folder is damaged or breaks the contract, a judgment names an unknown item or
        repeats a pair, or nothing is relevant, or nothing that stays in the corpus.
    """
    _check_settings(config)
    root = Path(config.collection)
    verify(root)
    items, judged = read_table(root / "items.parquet", "items"), read_table(root / "judgments.parquet", "judgments")
    items = items.sort_by("item_id")  # the world is one, in whatever order its documents were written
    _check(items, judged, config, root)
    hidden_ids = _hold_out(judged, config)
    is_hidden = np.isin(items["item_id"].to_numpy(), hidden_ids)
    corpus = items.filter(pa.array(~is_hidden))
    queries = np.array(sorted(set(judged["query"].to_pylist())), object)
    everything = _grades(judged, queries, items["item_id"].to_numpy())
    inside, outside = everything[:, ~is_hidden], everything[:, is_hidden]
    keep = np.flatnonzero(np.asarray(at_least(inside, config.relevant_grade).sum(1)).ravel() > 0)
    inside, outside = sp.csr_matrix(inside[keep]), sp.csr_matrix(outside[keep])
    names = [str(q) for q in queries[keep]]
    if not any(has_text(name) for name in names):
        taken = f"world.hidden_share = {config.hidden_share:g} takes {len(hidden_ids)} relevant items out: lower it"
        raise InputError(str(root), f"no query with text keeps a relevant item in the corpus; {taken}")
    siblings, facts = _siblings(at_least(inside, config.relevant_grade), names, config)
    first, refined = _expression(siblings, config)
    return World(
        name="judged", complete=False, items=_with_counters(corpus, inside, config), queries=tuple(names),
        hidden=_hidden_table(items.filter(pa.array(is_hidden)), outside, names, config),
        intents=tuple(names), popularity=_popularity(len(names), config), wanted=inside, first=first, refined=refined,
        relevance=inside, judgments=_kept_judgments(judged, names, hidden_ids), relevant_grade=config.relevant_grade,
        counts={
            "items": corpus.num_rows, "queries": len(names), "intents": len(names),
            "items held out": int(is_hidden.sum()),
            "queries dropped: no relevant item left in the corpus": len(queries) - len(names), **facts,
        },
    )  # fmt: skip


def _check_settings(config: JudgedWorldConfig) -> None:
    problems = impossible_numbers(config, ("min_similarity",))
    if config.hidden_share == 1:
        problems.append("hidden_share = 1: no relevant item would be left")
    if config.relevant_grade == 0:
        problems.append("relevant_grade = 0: a pair that nobody judged would be relevant")
    if problems:
        raise InputError("JudgedWorldConfig", problems)


def _check(items: pa.Table, judged: pa.Table, config: JudgedWorldConfig, root: Path) -> None:
    ids, problems = items["item_id"].to_numpy(), []
    if len(np.unique(ids)) != len(ids) or (ids < 0).any():
        problems.append("items.parquet: item_id must be unique and not negative")
    unknown = judged["item_id"].to_numpy()[~np.isin(judged["item_id"].to_numpy(), ids)]
    if len(unknown):
        problems.append(f"judgments.parquet: {len(unknown)} rows name unknown items, such as {unknown[:3].tolist()}")
    pairs = judged.group_by(["query", "item_id"]).aggregate([]).num_rows
    if pairs != judged.num_rows:
        problems.append(f"judgments.parquet: {judged.num_rows - pairs} (query, item) pairs are judged twice")
    grade = judged["grade"].to_numpy()
    if not np.isfinite(grade).all():
        problems.append(f"judgments.parquet: {(~np.isfinite(grade)).sum()} grades are not finite numbers")
    elif ((grade < 0) | (grade > MAX_GRADE)).any():
        off = grade[(grade < 0) | (grade > MAX_GRADE)]
        problems.append(f"judgments.parquet: {len(off)} grades lie outside 0 to {MAX_GRADE:g}, such as {off[0]:g}")
    elif not (grade >= config.relevant_grade).any():
        problems.append(f"no grade reaches relevant_grade = {config.relevant_grade}: nothing is relevant")
    if problems:
        raise InputError(str(root), problems)


def _hold_out(judged: pa.Table, config: JudgedWorldConfig) -> np.ndarray:
    """Ids of the relevant items that leave the corpus."""
    relevant = judged.filter(pc.greater_equal(judged["grade"], config.relevant_grade))
    ids = np.unique(relevant["item_id"].to_numpy())
    return ids[generator(config.seed, "hidden").random(len(ids)) < config.hidden_share]


def _grades(judged: pa.Table, queries: np.ndarray, ids: np.ndarray) -> sp.csr_matrix:
    row = {q: n for n, q in enumerate(queries)}
    rows = np.array([row[q] for q in judged["query"].to_pylist()])
    order = np.argsort(ids, kind="stable")
    cols = order[np.searchsorted(ids[order], judged["item_id"].to_numpy())]
    return sorted_csr(rows, cols, judged["grade"].to_numpy(), (len(queries), len(ids)))


def _siblings(relevant: sp.csr_matrix, names: list[str], config: JudgedWorldConfig):
    """([I, I] similarity of query pairs taken to share an intent, counts of the filter); symmetric, no diagonal."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    shared = sp.triu(relevant @ relevant.T, k=1).tocoo()
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True).fit_transform(names)
    cosine = np.asarray(grams[shared.row].multiply(grams[shared.col]).sum(1)).ravel()
    keep = (cosine >= config.min_similarity) | (shared.data >= config.min_shared)
    a, b, weight = shared.row[keep], shared.col[keep], np.maximum(cosine[keep], config.min_similarity)
    matrix = sorted_csr(np.r_[a, b], np.r_[b, a], np.r_[weight, weight], shared.shape)
    facts = {
        "query pairs that share a relevant item": len(keep),
        "query pairs taken as one intent": int(keep.sum()),
        "queries with a sibling": int((np.diff(matrix.indptr) > 0).sum()),
    }
    return matrix, facts


def _expression(siblings: sp.csr_matrix, config: JudgedWorldConfig) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """(first, refined) [I, Q]: siblings first with the configured chance, the query itself preferred afterwards."""
    total = np.asarray(siblings.sum(1)).ravel()
    some = total > 0
    scale = np.divide(config.first_sibling_share, total, out=np.zeros(len(total)), where=some)
    own = sp.diags(np.where(some, 1 - config.first_sibling_share, 1.0))
    first = sp.csr_matrix(sp.diags(scale) @ siblings + own)
    refined = sp.csr_matrix(sp.diags(scale) @ siblings + sp.identity(len(total)))
    first.sort_indices()
    refined.sort_indices()
    return first, refined


def _popularity(n: int, config: JudgedWorldConfig) -> np.ndarray:
    weight = (1.0 + generator(config.seed, "popularity").permutation(n)) ** -config.popularity_zipf
    return weight / weight.sum()


def _with_counters(items: pa.Table, grades: sp.csr_matrix, config: JudgedWorldConfig) -> pa.Table:
    """Where the collection has no counters they are simulated: popular intents' items are played more."""
    if items["play_cnt"].null_count < items.num_rows:
        return items
    rng = generator(config.seed, "counters")
    need = at_least(grades, config.relevant_grade).T @ _popularity(grades.shape[0], config)
    plays = np.maximum(1, 1e5 * (need + need.mean()) / need.max() * rng.lognormal(0, 1.0, len(need))).astype(np.int64)
    columns = {"play_cnt": plays, "like_cnt": plays // 20, "long_view_cnt": plays // 4, "download_cnt": plays // 100}
    for name in COUNTERS:
        items = items.set_column(items.schema.get_field_index(name), items.schema.field(name), pa.array(columns[name]))
    return items


def _hidden_table(items: pa.Table, grades: sp.csr_matrix, names: list[str], config: JudgedWorldConfig) -> pa.Table:
    """The held-out items with the query they answer best as intent, and every query they are relevant to."""
    by_item = at_least(grades, config.relevant_grade).T.tocsr()
    best = np.asarray(grades.argmax(0)).ravel()
    keep = np.flatnonzero(np.diff(by_item.indptr) > 0)
    spoken = [[names[q] for q in by_item[i].indices] for i in keep]
    kept = take_rows(items, keep)
    return pa.Table.from_arrays(
        [*kept.columns, pa.array([names[best[i]] for i in keep], pa.string()), pa.array(spoken, pa.list_(pa.string()))],
        schema=HIDDEN,
    )


def _kept_judgments(judged: pa.Table, names: list[str], hidden_ids: np.ndarray) -> pa.Table:
    """Human judgments of queries and items that are still in the world, sorted by query and item."""
    mask = pc.and_(
        pc.is_in(judged["query"], value_set=pa.array(names, pa.string())),
        pc.invert(pc.is_in(judged["item_id"], value_set=pa.array(hidden_ids, pa.int64()))),
    )
    return judged.filter(mask).sort_by([("query", "ascending"), ("item_id", "ascending")])
