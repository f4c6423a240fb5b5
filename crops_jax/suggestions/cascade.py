"""The cascade that stands in many production systems: candidates are recalled in three ways, and a model ranks them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from crops_jax.errors import InputError
from crops_jax.normal_text import normal_form
from crops_jax.progress import progress
from crops_jax.suggestions.config import CascadeConfig, SuggestMiningConfig
from crops_jax.suggestions.nearest import Dictionary, Encode
from crops_jax.suggestions.prefix_queries import read_prefix_queries
from crops_jax.suggestions.ranking_examples import RankingExamples, ranking_examples
from crops_jax.suggestions.recall import Candidates, Recall
from crops_jax.suggestions.searched import read_searched
from crops_jax.suggestions.suggester import SHOWN, Asked

_AT_ONCE = 1_024  # requests


class Ranker(Protocol):
    """What ranks candidates: a classifier of scikit-learn."""

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """float[C, 2] of float32[C, F]: how likely a candidate is not taken, and taken."""
        ...


@dataclass(frozen=True)
class LearnedFrom:
    """What a ranker was trained on."""

    requests: int
    """In which a suggestion was taken."""
    not_recalled: int
    """Of these: what was taken was not among the candidates, so that there was nothing to learn."""
    taken: int
    """Candidates that were taken."""
    left: int
    """Candidates that were not."""


class NothingToRankBy(InputError):
    """The requests that the ranker would learn from say nothing of what is taken."""


@dataclass(frozen=True)
class Cascade:
    """Recall, then rank (`Suggester`). It is trained where it is needed, in memory; nothing is kept on disk."""

    recall: Recall
    ranker: Ranker
    learned_from: LearnedFrom

    def suggest(self, asked: Asked, count: int = SHOWN) -> list[list[str]]:
        """See `Suggester`. A request costs what `Recall` does, and the ranker's trees for its candidates."""
        return [found for part in _parts(asked) for found in self._suggest(part, count)]

    def _suggest(self, asked: Asked, count: int) -> Iterator[list[str]]:
        found = self.recall.candidates(asked)
        score = self.ranker.predict_proba(found.features)[:, 1] if len(found.queries) else np.zeros(0)
        order = np.lexsort((-score, found.request))  # stable: of equal scores the one that was recalled first
        starts = np.searchsorted(found.request, np.arange(len(asked.prefixes)))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            yield [found.queries[n] for n in order[start:end][:count].tolist()]


def train_cascade(
    logs_dir: str | Path,
    mined: str | Path,
    mining: SuggestMiningConfig,
    config: CascadeConfig,
    dictionary: Dictionary,
    encode_prefix: Encode,
) -> Cascade:
    """A cascade that knows the train day of a log folder, and nothing later.

    Args:
      mined: the folder of `mined_day.mine_suggestions` of that day; the cascade answers with what it holds.
      mining: the config that it was mined with.
      dictionary: the day's queries (`searched.dictionary`) with their vectors; the nearest ones are looked up there.
      encode_prefix: gives prefixes vectors in the room of the dictionary's.

    Raises:
      InputError: as `ranking_examples`, `read_searched` and `learn_ranker`.
    """
    examples = ranking_examples(logs_dir, mining, config)
    recall = Recall(examples.searched, examples.prefix_query, dictionary, encode_prefix, config)
    ranker, learned_from = learn_ranker(recall, examples, config)
    serving = Recall(read_searched(mined), read_prefix_queries(mined), dictionary, encode_prefix, config)
    return Cascade(serving, ranker, learned_from)


def learn_ranker(recall: Recall, examples: RankingExamples, config: CascadeConfig) -> tuple[Ranker, LearnedFrom]:
    """Trains a gradient-boosted classifier: what was taken against the other candidates of the same requests.

    Of n candidates in all it costs O(n F) for each level of each tree. The same examples give the same model.

    Args:
      recall: over what the examples' other users show.

    Raises:
      NothingToRankBy: among the candidates there is none that was taken, or none that was not.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    draw = np.random.default_rng(config.seed)
    features, labels, not_recalled, first = [], [], 0, 0
    for part in progress(list(_parts(examples.asked)), "recalling candidates to rank", unit="part"):
        found = recall.candidates(part)
        taken = _are_taken(found, examples.taken[first : first + len(part.prefixes)])
        first += len(part.prefixes)
        kept, missed = _chosen(found.request, taken, len(part.prefixes), config.negatives, draw)
        features.append(found.features[kept])
        labels.append(taken[kept])
        not_recalled += missed
    rows, label = np.concatenate(features), np.concatenate(labels)
    told = LearnedFrom(first, not_recalled, int(label.sum()), int((~label).sum()))
    if not told.taken or not told.left:
        said = f"of the candidates of {told.requests} requests {told.taken} were taken and {told.left} were not"
        raise NothingToRankBy("cascade", f"there is nothing to learn to rank by: {said}; it takes some of both")
    ranker = HistGradientBoostingClassifier(
        max_iter=config.trees, max_leaf_nodes=config.leaves, learning_rate=config.learning_rate, early_stopping=False,
        random_state=config.seed,
    )  # fmt: skip
    return ranker.fit(rows, label), told


def _are_taken(found: Candidates, taken: Sequence[Sequence[str]]) -> np.ndarray:
    """bool[C]"""
    forms = [{normal_form(query) for query in of_request} for of_request in taken]
    rows = zip(found.request.tolist(), found.queries, strict=True)
    return np.array([normal_form(query) in forms[request] for request, query in rows], bool)


def _chosen(
    request: np.ndarray, taken: np.ndarray, requests: int, negatives: int, draw: np.random.Generator
) -> tuple[np.ndarray, int]:
    """(int64 rows: those taken and some of the others of each request, how many requests have none that was taken)."""
    learned = np.bincount(request[taken], minlength=requests) > 0
    order = np.lexsort((draw.random(len(request)), taken, request))  # of a request, first those that were not taken
    starts = np.searchsorted(request, request)  # requests rise, so an order within each keeps their bounds
    kept = (taken[order] | (np.arange(len(order)) - starts < negatives)) & learned[request[order]]
    return np.sort(order[kept]), int((~learned).sum())


def _parts(asked: Asked) -> Iterator[Asked]:
    for start in range(0, len(asked.prefixes), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        yield Asked(asked.prefixes[part], asked.users[part], asked.recent[part])
