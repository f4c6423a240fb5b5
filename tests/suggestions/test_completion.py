"""Popular completions and one's own: by hand, against a look at every query, and what may not be expected."""

import numpy as np
import pyarrow as pa
import pytest

from crops_jax.errors import InputError
from crops_jax.normal_text import normal_form
from crops_jax.suggestions.completion import Completions, PersonalCompletions, PopularCompletions
from crops_jax.suggestions.searched import SEARCHED
from crops_jax.suggestions.suggester import Asked

ROWS = [  # query, user, times, last
    ("lamp", 1, 1, 10), ("lamp", 2, 4, 20), ("Lava lamp", 1, 3, 5), ("lava rock", 1, 3, 8), ("ladder", 3, 9, 30),
    ("land", 4, 3, 1), ("灯具", 2, 2, 7), ("灯泡", 3, 2, 7), ("ωμέγα", 3, 1, 7), ("Straße", 2, 1, 7),
    ("Zebra", None, 2, 7),
]  # fmt: skip


def searched(rows=ROWS):
    return pa.Table.from_pylist([dict(zip(SEARCHED.names, row, strict=True)) for row in rows], SEARCHED)


def asked(*rows):
    """(prefix, user, recent) each."""
    return Asked(*zip(*rows, strict=True))


def popular(*prefixes, count=16):
    return PopularCompletions(searched()).suggest(asked(*((p, None, []) for p in prefixes)), count)


def test_popular_completions_by_hand():
    assert popular("la") == [["ladder", "lamp", "Lava lamp", "land", "lava rock"]], "ties by text, capitals first"
    assert popular(" LA", "la", count=2) == [["ladder", "lamp"]] * 2
    assert popular("lamp", "lamps") == [["lamp"], []], "a whole query completes itself"


def test_short_prefixes_and_other_scripts():
    assert popular("", count=3) == popular(" \u3000", count=3) == [["ladder", "lamp", "Lava lamp"]]
    assert popular("灯", "ΩΜ", "STRASS", "y", "\U0010ffff") == [["灯具", "灯泡"], ["ωμέγα"], ["Straße"], [], []]
    assert popular("z") == [["Zebra"]], "searched by somebody whom nobody knows"


def test_ones_own_come_first():
    found = PersonalCompletions(searched()).suggest(
        asked(("la", 1, []), ("la", 1, ["Lamp", "bulb", "LARGE lamp", "lamp"]), ("la", 77, []), ("la", None, []),
              ("", 2, ["\u3000", "bulb"]), ("灯", 2, []), ("x", 1, ["x-ray"])), 4,
    )  # fmt: skip
    assert found == [
        ["lava rock", "Lava lamp", "lamp", "ladder"],  # three times each, the latest first; then the popular
        ["Lamp", "LARGE lamp", "lava rock", "Lava lamp"],  # the latest searches first, and none in two spellings
        ["ladder", "lamp", "Lava lamp", "land"],  # a stranger is answered as everybody
        ["ladder", "lamp", "Lava lamp", "land"],
        ["bulb", "lamp", "灯具", "Straße"],  # nothing typed yet
        ["灯具", "灯泡"],
        ["x-ray"],
    ]


def test_completions_are_those_that_a_look_at_every_query_finds():
    rng = np.random.default_rng(0)
    letters = np.array(list("abAB é灯ß\U0001f600"))
    texts = {"".join(rng.choice(letters, rng.integers(1, 6))) for _ in range(2_000)}
    one = {normal_form(text): text for text in sorted(texts) if normal_form(text)}
    queries = sorted(one.values())
    times = rng.integers(1, 9, len(queries)).tolist()
    known = Completions(queries, times)
    order = sorted(range(len(queries)), key=lambda n: (-times[n], queries[n]))
    for prefix in ["", *(normal_form(q)[:n] for q in queries[::7] for n in (1, 2, 3, 9)), "zz"]:
        wanted = [queries[n] for n in order if normal_form(queries[n]).startswith(prefix)]
        assert [known.queries[n] for n in known.best(prefix)] == wanted
    assert len(queries) > 500


def test_nothing_was_searched_and_one_query_in_two_spellings():
    for kind in (PopularCompletions, PersonalCompletions):
        assert kind(searched([])).suggest(asked(("", 1, []), ("a", None, []))) == [[], []]
        assert kind(searched([])).suggest(Asked([], [], [])) == []
    assert PersonalCompletions(searched([])).suggest(asked(("a", 1, ["abc"]))) == [["abc"]]
    with pytest.raises(InputError, match="1 queries are there in two spellings"):
        PopularCompletions(searched([("lamp", 1, 1, 1), ("Lamp ", 1, 1, 1)]))
