"""Candidates of the cascade: by hand, for strangers and for prefixes that nobody typed."""

import numpy as np
import pyarrow as pa
import pytest

from crops_jax.errors import InputError
from crops_jax.suggestions.co_occurrence import PREFIX_QUERY
from crops_jax.suggestions.config import CascadeConfig, RQKMeansConfig
from crops_jax.suggestions.nearest import nearest_queries
from crops_jax.suggestions.recall import FEATURES, Recall
from crops_jax.suggestions.searched import SEARCHED, dictionary
from crops_jax.suggestions.semantic_index import build_index
from crops_jax.suggestions.suggester import Asked

ROWS = [  # query, user, times, last
    ("lamp", 1, 1, 10), ("lamp", 2, 4, 20), ("Lava lamp", 1, 3, 5), ("ladder", 3, 9, 30), ("灯具", 2, 2, 7),
]  # fmt: skip
VECTORS = {"lamp": (1, 0), "Lava lamp": (0.6, 0.8), "ladder": (0, 1), "灯具": (0, 2), "la": (0.8, 0.6), "x": (0, 3),
           "灯": (1, 0), "lam": (1, 0)}  # fmt: skip
PAIRS = [("la", "lamp", 0.5), ("la", "rope", 0.9)]


def searched(rows=ROWS):
    return pa.Table.from_pylist([dict(zip(SEARCHED.names, row, strict=True)) for row in rows], SEARCHED)


def pairs(rows=PAIRS):
    return pa.Table.from_pylist([dict(zip(("prefix", "query", "users", "score"), (p, q, 1, s), strict=True))
                                 for p, q, s in rows], PREFIX_QUERY)  # fmt: skip


def encode(texts):
    return np.array([VECTORS[text] for text in texts], np.float32).reshape(-1, 2)


def recall(rows=ROWS, known=None, **config):
    found = nearest_queries(dictionary(searched()), encode) if known is None else known
    return Recall(searched(rows), pairs(), found, encode, CascadeConfig(**config))


def asked(*rows):
    """(prefix, user, recent) each."""
    return Asked(*zip(*rows, strict=True)) if rows else Asked([], [], [])


def recalled(rows, **config):
    """The queries of each request."""
    found = recall(**config).candidates(asked(*rows))
    assert len(found.features) == len(found.queries) == len(found.request)
    return [[q for q, r in zip(found.queries, found.request, strict=True) if r == n] for n in range(len(rows))]


def test_a_request_by_hand():
    """19 searches and 4 queries are 23; of those that begin with "la" 17 and 3 are 20."""
    found = recall().candidates(asked((" LA", 1, ["land", "lamp", "bulb", "LAMP"])))
    assert found.queries == ["ladder", "lamp", "Lava lamp", "land"]
    told = {name: found.features[:, n] for n, name in enumerate(FEATURES)}
    np.testing.assert_allclose(told["log_popularity"], np.log(np.array([10, 6, 4, 1]) / 23), rtol=1e-6)
    np.testing.assert_allclose(told["log_share"], np.log(np.array([10, 6, 4, 1]) / 20), rtol=1e-6)
    np.testing.assert_allclose(told["cosine"], [0.6, 0.8, 0.96, np.nan], rtol=1e-6)
    assert told["longer_by"].tolist() == [4, 2, 7, 2] and told["begins"].tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(told["recent"], [0, 1 / 2, 0, 1])
    assert told["own_times"].tolist() == [0, 2, 3, 1], "the day's times, or those of the list where they are more"
    assert told["co_occurrence"].tolist() == [0, 0.5, 0, 0], "a query that nobody searched is not known"


def test_what_each_stage_recalls():
    rows = [("la", None, []), ("la", 1, []), ("la", 1, ["land", "lake"])]
    only = {"popular": 1, "near": 0, "own": 0}
    assert recalled(rows, **only) == [["ladder"]] * 3
    assert recalled(rows, **only | {"near": 1}) == [["ladder", "Lava lamp"]] * 3, "cosine .96"
    assert recalled(rows, **only | {"near": 1, "near_among": "all"}) == [["ladder", "Lava lamp"]] * 3
    assert recalled(rows, **only | {"own": 2}) == [["ladder"], ["ladder", "Lava lamp", "lamp"],
                                                   ["ladder", "land", "lake"]]  # fmt: skip
    # A search of long ago is counted, and is none of the last ones.
    found = recall(**only | {"own": 2}).candidates(asked(("lam", None, ["x"] * 10 + ["lamp"])))
    assert found.queries == ["lamp"] and found.features[0, FEATURES.index("recent")] == 0
    assert found.features[0, FEATURES.index("own_times")] == 1


def test_unseen_prefixes_and_none():
    rows = [("x", 1, []), ("x", None, ["X-ray"]), ("", 3, []), (" \u3000", None, ["bulb", "\u3000"]), ("灯", 77, [])]
    assert recalled(rows) == [[], ["X-ray"], ["ladder", "lamp", "Lava lamp", "灯具"],
                              ["ladder", "lamp", "Lava lamp", "灯具", "bulb"], ["灯具"]]  # fmt: skip
    near = recalled(rows, near_among="all", near=2)
    assert near[0] == ["ladder", "灯具"], "of one direction, in the order of the dictionary"
    assert near[4] == ["灯具", "lamp", "Lava lamp"]
    assert recall().candidates(asked()).features.shape == (0, len(FEATURES))
    nothing = Recall(searched([]), pairs([]), nearest_queries(["lamp"], encode), encode, CascadeConfig())
    assert nothing.candidates(asked(("la", 1, ["lamp"]), ("la", 1, []))).queries == ["lamp"]


def test_a_query_that_others_did_not_search_is_no_candidate_by_its_vector():
    rows = [row for row in ROWS if row[0] != "Lava lamp"]
    for among in ("begin", "all"):
        found = recall(rows, near_among=among).candidates(asked(("la", None, []), ("la", None, ["lava  lamp"])))
        assert "Lava lamp" not in found.queries and found.queries[-1] == "lava  lamp"
        assert found.features[-1, FEATURES.index("cosine")] == pytest.approx(0.96), "its text is known"


def test_the_nearest_may_be_looked_up_by_semantic_ids():
    queries = dictionary(searched())
    index = build_index(queries, encode(queries), "e", RQKMeansConfig((2,), balanced=False, opq_parts=0))
    found = recall(known=index, near_among="all", near=4, popular=1).candidates(asked(("la", None, [])))
    assert found.queries == ["ladder", "Lava lamp", "lamp", "灯具"]
    with pytest.raises(InputError, match="vectors of prefixes"):
        Recall(searched(), pairs(), index, lambda texts: np.full((1, 2), np.inf), CascadeConfig()).candidates(
            asked(("la", None, [])))  # fmt: skip
