"""The simulated platform's production search: a hybrid funnel whose exposure is biased on purpose.

Recall unites three channels: lexical (BM25 over a short view of the item), an older dense model (latent semantic
analysis of character n-grams) and a click memory (what earlier users of the query clicked; it favours the dominant
intent). Pre-rank orders the union cheaply and cuts it; rank orders the rest with every signal; the top is shown.
Each event adds its own noise. None of the models that are compared later takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from crops_jax.errors import InputError
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.normal_text import UNSPACED, marks
from crops_jax.progress import bar, quiet
from crops_jax.simulate.world import World, at_least, generator, rows_to_one

_CHUNK = 256  # queries scored against the whole corpus at a time: 256 x 54 k float32 is 55 MB
_ROUND = 4096  # scores are kept to 12 bits, so that the last bit of a BLAS library does not reorder a log


@dataclass(frozen=True)
class PlatformConfig:
    """Sizes of the funnel and weights of its signals."""

    lexical_fields: tuple[str, ...] = ("ocr_cover",)
    """Fields that the lexical channel indexes."""
    lexical_words: int = 6
    """The lexical channel reads only the first words of these fields (a short view, weaker than a full BM25)."""
    dense_width: int = 48
    """Width of the older dense model."""
    dense_features: int = 20000
    """Most frequent character n-grams that the older dense model reads."""
    recall_each: int = 50
    """Items that the lexical and the dense channel recall for each query."""
    memory_recall: int = 25
    """Items that the click memory recalls at most for each query."""
    memory_share: float = 0.6
    """Share of the (query, item) pairs that the click memory knows, for items that all users of the query want."""
    memory_skew: float = 1.5
    """How much faster the memory fades for minority intents: the share is multiplied by P(intent | query)**skew."""
    memory_drift: float = 0.5
    """Share of the click memory that is drawn anew between the train day and the test day."""
    ranked: int = 40
    """Candidates that pass from pre-rank to rank."""
    exposed: int = 10
    """Items shown."""
    weight_lexical: float = 0.6
    """Rank weight of the lexical score (relative to the query's best)."""
    weight_dense: float = 1.4
    """Rank weight of the dense score (relative to the query's best)."""
    weight_memory: float = 1.2
    """Rank weight of the click memory."""
    weight_popularity: float = 0.4
    """Rank weight of the item's popularity, log play counts scaled to 0..1."""
    noise: float = 0.15
    """Standard deviation of the noise that each event adds to each candidate's score."""


@dataclass(frozen=True)
class Pools:
    """For each query its recalled candidates, padded: item -1 with scores -inf."""

    item: np.ndarray  # int32[Q, M]
    prerank: np.ndarray  # float32[Q, M]
    rank: np.ndarray  # float32[Q, M]


@dataclass(frozen=True)
class Results:
    """What the funnel did with E events. Columns are in the order of their stage; item -1 is padding."""

    ranked: np.ndarray  # int32[E, ranked]: the ranker's output; the first `exposed` columns were shown
    filtered: np.ndarray  # int32[E, rest]: cut between pre-rank and rank


Channel = Callable[[np.ndarray], np.ndarray]  # rows of queries int64[n] -> scores float32[n, C]


@dataclass(frozen=True)
class Vectors:
    """A dense channel: the cosine of unit vectors."""

    queries: np.ndarray  # float32[Q, D]
    items: np.ndarray  # float32[C, D]; zeros for an item that is never recalled

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """float32[n, C] for the queries at `rows`."""
        return self.queries[rows] @ self.items.T


class Production:
    """The search engine over one world: two content channels that stay, and a click memory that drifts by the day.

    Args:
      dense: takes the place of the platform's own older dense channel (`lsa`).
    """

    def __init__(self, world: World, config: PlatformConfig, seed: int, dense: Channel | None = None):
        if world.items.num_rows < 2:
            raise InputError("world", f"has {world.items.num_rows} items: a search needs two at least")
        self._world, self._config, self._seed = world, config, seed
        self._lexical = _Lexical(world, config)
        self._dense = lsa(world, config, seed) if dense is None else dense
        self._popular = _popularity(world)

    def pools(self, day: str, memory: sp.csr_matrix | None = None) -> Pools:
        """Scores every query against the corpus by chunks and keeps the recalled candidates' scores.

        Args:
          memory: [Q, C], takes the place of the day's seeded click memory.
        """
        config, n = self._config, len(self._world.queries)
        memory = click_memory(self._world, config, self._seed, day) if memory is None else memory
        width = 2 * config.recall_each + config.memory_recall
        item = np.full((n, width), -1, np.int32)
        scores = np.full((2, n, width), -np.inf, np.float32)
        with bar(f"production search of the {day} day", n, "query") as moving:
            for start in range(0, n, _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, n))
                channels = self._lexical(rows), self._dense(rows), memory[rows].toarray().astype(np.float32)
                found, scored = _pool(channels, self._popular, config)  # narrower where the corpus is small
                item[rows, : found.shape[1]], scores[:, rows, : found.shape[1]] = found, scored
                moving.update(len(rows))
        return Pools(item, *scores)


def _pool(channels, popular: np.ndarray, config: PlatformConfig):
    """(item int32[n, M], scores float32[2, n, M] of pre-rank and rank): the union of the three recalls."""
    sizes = (config.recall_each, config.recall_each, config.memory_recall)
    lists = [_top(scores, n) for scores, n in zip(channels, sizes, strict=True)]
    item = np.sort(np.concatenate(lists, axis=1), axis=1)
    missing = item < 0
    missing[:, 1:] |= item[:, 1:] == item[:, :-1]
    row, safe = np.arange(len(item))[:, None], np.maximum(item, 0)
    lexical, dense, memory = (_scaled(scores[row, safe]) for scores in channels)
    base = config.weight_lexical * lexical + config.weight_popularity * popular[safe]
    full = base + config.weight_dense * dense + config.weight_memory * memory
    scores = np.stack([base + 0.5 * (dense + memory), full])
    return np.where(missing, -1, item), np.where(missing, -np.inf, np.round(scores * _ROUND) / _ROUND)


def _top(scores: np.ndarray, n: int) -> np.ndarray:
    """Columns of the n largest positive scores of each row, -1 where there are fewer."""
    n = min(n, scores.shape[1])
    found = np.argpartition(-np.round(scores * _ROUND), n - 1, axis=1)[:, :n]
    padded = np.where(np.take_along_axis(scores, found, 1) > 0, found, -1)
    return padded.astype(np.int32)


def _scaled(scores: np.ndarray) -> np.ndarray:
    best = scores.max(axis=1, keepdims=True)
    return np.maximum(scores, 0) / np.where(best > 0, best, 1)


def _words() -> str:
    """The lexical channel's words, of two letters or more with their marks; Chinese and kana have no spaces: each
    character is one, and ends the word before it.
    """
    return rf"(?u)[{UNSPACED}]|[^\W{UNSPACED}](?:[^\W{UNSPACED}]|[{marks()}])+"


class _Lexical:
    """BM25 over the short view: queries in, float32[n, C] out."""

    def __init__(self, world: World, config: PlatformConfig):
        import bm25s

        quiet("bm25s")
        views = [" ".join(text.split()[: config.lexical_words]) for text in texts(world, config.lexical_fields)]
        self._size = len(views)
        words = _words()
        tokens = bm25s.tokenize(views, token_pattern=words, show_progress=False)
        self._index = bm25s.BM25(k1=1.2, b=0.75)
        self._has_words = any(map(len, tokens.ids))  # documents of single letters or stop words alone have none
        if self._has_words:
            self._index.index(tokens, show_progress=False)
        self._tokens = bm25s.tokenize(list(world.queries), token_pattern=words, show_progress=False, return_ids=False)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._scores(self._tokens[r]) for r in rows])

    def _scores(self, tokens: list[str]) -> np.ndarray:
        if not tokens or not self._has_words:  # bm25s cannot score a query of stop words alone
            return np.zeros(self._size, np.float32)
        return self._index.get_scores(tokens).astype(np.float32)


def lsa(world: World, config: PlatformConfig, seed: int) -> Vectors:
    """The platform's own dense channel: latent semantic vectors of character n-grams."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from threadpoolctl import threadpool_limits

    grams = TfidfVectorizer(
        analyzer="char_wb",
        ngram_range=(3, 4),
        sublinear_tf=True,
        max_features=config.dense_features,
        dtype=np.float32,
    )
    documents = grams.fit_transform(texts(world, TEXT_FIELDS[:2]))
    width = min(config.dense_width, min(documents.shape) - 1)
    reduce = TruncatedSVD(width, n_iter=3, random_state=seed % (1 << 31))
    # Several threads sum in an order of their own: near ties would fall, and users click, by the number of cores.
    # Documents that are all one text have no variance, by which scikit-learn divides for a figure that nobody reads.
    with threadpool_limits(1), np.errstate(divide="ignore", invalid="ignore"):
        items = _unit(reduce.fit_transform(documents))
    return Vectors(_unit(reduce.transform(grams.transform(world.queries))), items)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def texts(world: World, fields: tuple[str, ...]) -> list[str]:
    """For each item the named fields joined by spaces."""
    columns = [world.items[name].to_pylist() for name in fields]
    return [" ".join(part.replace("|", " ") for part in parts if part) for parts in zip(*columns, strict=True)]


def demand(world: World) -> sp.csr_matrix:
    """[Q, C]: the share of the query's first-time users to whom the item is relevant (where above 0)."""
    joint = (sp.diags(world.popularity) @ world.first).T.tocsr()  # [Q, I]
    matrix = sp.csr_matrix(rows_to_one(joint) @ at_least(world.wanted, world.relevant_grade))
    matrix.sort_indices()
    return matrix


def click_memory(world: World, config: PlatformConfig, seed: int, day: str) -> sp.csr_matrix:
    """[Q, C]: what earlier users' clicks taught production, a seeded part of `demand` that fades for minorities."""
    wanted = demand(world)
    draw = generator(seed, "memory").random(wanted.nnz)
    rng = generator(seed, "memory", day)
    draw = np.where(rng.random(wanted.nnz) < config.memory_drift, rng.random(wanted.nnz), draw)
    known = config.memory_share * wanted.data**config.memory_skew
    matrix = sp.csr_matrix(
        (np.where(draw < known, wanted.data, 0.0), wanted.indices, wanted.indptr), shape=wanted.shape
    )
    matrix.eliminate_zeros()
    return matrix


def memory_of_clicks(clicks: sp.csr_matrix) -> sp.csr_matrix:
    """[Q, C]: the share of the query's logged clicks that went to the item, from their counts.

    It takes the place of `click_memory`, which has the share of the query's users who want the item: a log knows of
    wants only what was shown.
    """
    return sp.csr_matrix(rows_to_one(clicks))


def _popularity(world: World) -> np.ndarray:
    plays = np.log1p(world.items["play_cnt"].fill_null(0).to_numpy().astype(np.float64))
    return (plays / max(plays.max(), 1e-9)).astype(np.float32)


def search(pools: Pools, query: np.ndarray, config: PlatformConfig, rng: np.random.Generator) -> Results:
    """Runs the funnel for E events at once; `query` is int64[E]."""
    item, width = pools.item[query], min(config.ranked, pools.item.shape[1])
    noise = [rng.normal(0, config.noise, item.shape).astype(np.float32) for _ in range(2)]
    order = np.argsort(-(pools.prerank[query] + noise[0]), axis=1, kind="stable")
    passed, cut = order[:, :width], order[:, width:]
    score = np.take_along_axis(pools.rank[query] + noise[1], passed, 1)
    passed = np.take_along_axis(passed, np.argsort(-score, axis=1, kind="stable"), 1)
    return Results(np.take_along_axis(item, passed, 1), np.take_along_axis(item, cut, 1))
