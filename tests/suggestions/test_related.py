"""Related queries of prefixes: the worked numbers, prefixes that nobody typed, and what is encoded."""

import numpy as np
import pyarrow as pa
import pytest

from crops_jax.errors import InputError
from crops_jax.runs.suggestions import with_related
from crops_jax.suggestions.co_occurrence import PREFIX_QUERY
from crops_jax.suggestions.config import RelatedConfig, RQKMeansConfig
from crops_jax.suggestions.examples import Example
from crops_jax.suggestions.nearest import NearestQueries, highest, nearest_queries
from crops_jax.suggestions.prefix_queries import PrefixQueries, shown_by_one
from crops_jax.suggestions.related import RelatedQueries, index_of_day
from crops_jax.suggestions.searched import SEARCHED, dictionary
from crops_jax.suggestions.semantic_index import build_index

VECTORS = {"lamp": (0.6, 0.8), "lava": (0, 1), "rope": (0, -1), "saw": (1, 0), "la": (1, 0), "zz": (-0.1, -1)}


def encode(texts):
    return np.array([VECTORS[text] for text in texts], np.float32).reshape(len(texts), 2)


def pairs(*rows):
    """(prefix, query, score) each."""
    return pa.Table.from_pylist([{"prefix": p, "query": q, "users": 1, "score": s} for p, q, s in rows], PREFIX_QUERY)


CONFIG = RQKMeansConfig(codes=(2, 2), balanced=False, opq_parts=0)
CO_OCCURRING = pairs(("la", "lava", 0.5), ("la", "lamp", 0.9), ("la", "lantern", 0.9))


def related(k=2, table=CO_OCCURRING, encode_prefix=encode, weight=0.5):
    queries = ["lamp", "lava", "rope", "saw"]
    index = build_index(queries, encode(queries), "e", CONFIG)
    return RelatedQueries(index, encode_prefix, table, RelatedConfig(k, weight))


def test_the_vector_of_a_prefix_is_half_that_of_its_queries():
    found = related()
    np.testing.assert_allclose(found.vectors(["la", "zz"]), [[0.65, 0.45], [-0.1, -1]], atol=1e-7)
    np.testing.assert_allclose(related(weight=0).vectors(["la"]), [[1, 0]])
    # cosines of (.65, .45): lamp .949, saw .822, lava .569, rope -.569; of (1, 0): saw 1, lamp .6, lava and rope 0
    assert related(4).of(["la"]) == [["lamp", "saw", "lava", "rope"]]
    assert related(4, pairs()).of(["la"]) == [["saw", "lamp", "lava", "rope"]]
    assert related(9).of(["zz"])[0] == ["rope", "saw", "lamp", "lava"], "the dictionary has no more"


def test_what_one_request_alone_shows_does_not_count_for_its_own_example():
    """Request r1 alone shows that "la" goes on as "lamp", others show "lava": without lamp's, e* of "la" is
    ((1, 0) + (0, 1)) / 2, whose cosines are .707 with saw, lamp .990, lava .707. Of "zz" nothing is left but its own
    vector, as of a prefix that nobody typed."""
    rows = [("la", "lamp", 1, "r1"), ("la", "lava", 2, None), ("zz", "saw", 1, "r2"), ("zz", "gone", 1, "r2")]
    table = pa.Table.from_pylist([{"prefix": p, "query": q, "users": 1, "score": 0.5, "requests": n, "only_request": r}
                                  for p, q, n, r in rows], PREFIX_QUERY)  # fmt: skip
    alone = shown_by_one(table)
    assert alone == {"r1": {"lamp"}, "r2": {"saw", "gone"}}
    asked = []

    def counting(texts):
        asked.append(list(texts))
        return encode(texts)

    found = related(2, table, encode_prefix=counting)
    vectors = found.vectors(["la", "la", "zz", "zz"], [(), alone["r1"], (), alone["r2"]])
    np.testing.assert_allclose(vectors, [[0.65, 0.45], [0.5, 0.5], [0.45, -0.5], [-0.1, -1]], atol=1e-7)
    assert asked == [["la", "zz"]], "once each, whatever is left out"
    examples = [Example(r, p, [], [], "lamp", [], np.zeros(0), np.zeros(0))
                for r, p in (("r1", "la"), ("r3", "la"), ("r2", "zz"), ("r4", "zz"))]  # fmt: skip
    read = [example.related for example in with_related(examples, found, alone)]
    # r4: cosines of (.45, -.5): rope .743, saw .669; r2: of (-.1, -1): rope .995, saw -.1.
    one = related(1, table)
    assert [r for e in with_related(examples, one, alone) for r in e.related] == ["lamp", "lamp", "rope", "rope"]
    assert read == found.of(["la", "La", "zz", "zz"], [{"lamp"}, (), {"saw"}, ()])
    assert found.of(["la"]) == [read[1]], "serving leaves nothing out"


def test_a_prefix_is_encoded_once_in_any_spelling():
    asked = []

    def counting(texts):
        asked.append(list(texts))
        return encode(texts)

    found = related(1, encode_prefix=counting).of(["zz", "La ", "", "la", " \u3000", "ZZ"])
    assert found == [["rope"], ["lamp"], [], ["lamp"], [], ["rope"]]
    assert asked == [["zz", "la"]]
    assert related(encode_prefix=counting).of([]) == [] and len(asked) == 1
    assert related(encode_prefix=counting).of([" "]) == [[]] and len(asked) == 1


def test_an_index_of_what_was_searched():
    rows = [("saw", 1), ("lamp", 2), ("lamp", 1), ("rope", 1)]
    searched = pa.Table.from_pylist([{"query": q, "user_id": u, "times": 1, "last_ts": 5} for q, u in rows], SEARCHED)
    assert dictionary(searched) == ["lamp", "rope", "saw"]
    index = index_of_day(searched, encode, "e", CONFIG)
    assert index.queries == ("lamp", "rope", "saw") and index.encoder == "e"
    with pytest.raises(InputError, match="every query is needed once"):
        index_of_day(searched[:0], encode, "e", CONFIG)
    with pytest.raises(InputError, match=r"shape \(3,\); 3 texts need a row each"):
        index_of_day(searched, lambda texts: np.ones(len(texts)), "e", CONFIG)
    with pytest.raises(InputError, match="1 are not finite, the first is of 'la'"):
        related(encode_prefix=lambda texts: np.full((len(texts), 2), np.nan)).of(["la"])
    with pytest.raises(InputError, match="not rows of 2 numbers"):
        related(1, pairs(), encode_prefix=lambda texts: np.ones((len(texts), 3))).of(["la"])


def test_co_occurring_queries_are_found_by_their_prefix():
    table = PrefixQueries(pa.concat_tables([pairs(("b", "x", 0.25)), CO_OCCURRING, pairs(("ß", "灯", 1))]))
    queries, scores = table.of("la")
    assert queries == ["lamp", "lantern", "lava"] and scores.tolist() == [0.9, 0.9, 0.5]
    assert table.of("b")[0] == ["x"] and table.of("ß")[0] == ["灯"] and table.of("l")[0] == []
    assert PrefixQueries(pairs()).of("")[0] == []


def test_the_nearest_of_all_are_those_that_sorting_finds():
    rng = np.random.default_rng(0)
    known = rng.integers(-2, 3, (60, 3)).astype(np.float32)  # many equal cosines
    found = nearest_queries([f"q{i}" for i in range(60)], lambda texts: known)
    asked = rng.normal(size=(40, 3)).astype(np.float32)
    cosines = asked @ found.vectors.T
    wanted = np.argsort(-cosines, axis=1, kind="stable")
    near = np.take_along_axis(cosines, found.lookup(asked, 7), axis=1)
    np.testing.assert_allclose(near, np.take_along_axis(cosines, wanted, axis=1)[:, :7], atol=1e-5)
    assert highest(np.array([0.0, 1, 1, 1, 0]), 2).tolist() == [1, 2]
    assert highest(np.array([]), 3).tolist() == [] and highest(np.zeros(2), 3).tolist() == [0, 1]
    few = NearestQueries(("a",), np.ones((1, 1), np.float32))
    assert few.lookup(np.ones((2, 1), np.float32), 3).tolist() == [[0, -1, -1]] * 2
