"""The cascade: what its ranker learns from holds nothing later, what it learns, and how it answers."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hand_logs import DAY, T0, candidate, feed, item, search, suggested, typed, write, write_day
from hand_logs import write_suggestions as suggestions

from crops_jax.artifacts.folders import write_folder
from crops_jax.engines import files
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError
from crops_jax.suggestions.cascade import Cascade, NothingToRankBy, _chosen, learn_ranker, train_cascade
from crops_jax.suggestions.co_occurrence import PREFIX_QUERY
from crops_jax.suggestions.completion import PopularCompletions
from crops_jax.suggestions.config import CascadeConfig, SuggestMiningConfig
from crops_jax.suggestions.nearest import nearest_queries
from crops_jax.suggestions.ranking_examples import ranking_examples
from crops_jax.suggestions.recall import FEATURES, Recall
from crops_jax.suggestions.searched import SEARCHED, dictionary, read_searched
from crops_jax.suggestions.suggester import Asked

MINING = SuggestMiningConfig(engine=EngineConfig(memory_limit="500MB"))
CONFIG = CascadeConfig(kept_apart=0.5, trees=20, history=2)
USERS = range(1, 61)  # who type
OTHERS = range(101, 141)  # who search, and type nothing
SECOND, MINUTE = 1_000, 60_000


def encode(texts):
    """Vectors of letters."""
    found = np.array([[text.lower().count(c) + 0.01 for c in "ablmnop"] for text in texts], np.float32)
    return found.reshape(len(texts), 7)


def own(user):
    return ("lamp", "land")[user % 2]


def log(logs, late=0, test_query="lamp"):
    """A user searches "lamp" or "land", types "la" twice and takes the same again. Others search "ladder".

    Args:
      late: searches of user 1 at the end of the day.
    """
    searches, prefixes, offered = [], [], []
    for user in USERS:
        at = T0 + user * SECOND
        searches += [search(f"a{user}", user, own(user), at), search(f"b{user}", user, "rope", at + MINUTE)]
        for n in range(2):
            ts = at + (10 + n) * MINUTE
            prefixes.append(typed(f"t{user}_{n}", user, "la", ts))
            offered += suggested(f"t{user}_{n}", ["ladder", "lamp", "land"], 9, own(user))
            searches.append(search(f"c{user}_{n}", user, own(user), ts + SECOND))
    searches += [search(f"d{user}_{n}", user, "ladder", T0 + n) for user in OTHERS for n in range(5)]
    searches += [search(f"e{n}", 1, "late", T0 + DAY // 2 + n) for n in range(late)]
    write(logs / "items.parquet", "items", [item(0, "a")])
    write_day(logs, "train", searches, [candidate("a1", 0)], [feed(1, 0, T0)])
    suggestions(logs, "train", prefixes, offered, [])
    after = T0 + 2 * DAY
    write_day(logs, "test", [search("z", 1, test_query, after)], [candidate("z", 0)], [feed(1, 0, after)])
    return logs


def examples(logs, **config):
    return ranking_examples(logs, MINING, dataclasses.replace(CONFIG, **config))


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return log(tmp_path_factory.mktemp("cascade") / "logs")


@pytest.fixture(scope="module")
def found(logs):
    return examples(logs)


@pytest.fixture(scope="module")
def mined(logs):
    """What mining finds: three searches of everybody's own, five of "ladder" by each of the others."""
    own_times, n = [(own(user), user, 3) for user in USERS], len(USERS) // 2
    searched = own_times + [("rope", user, 1) for user in USERS] + [("ladder", user, 5) for user in OTHERS]
    tables = {"searched": (SEARCHED, sorted((query, user, times, T0) for query, user, times in searched)),
              "prefix_query": (
                  PREFIX_QUERY, [("la", query, n, 0.5**0.5, n, None) for query in ("lamp", "land")])}  # fmt: skip
    with write_folder(logs.parent / "mined", kind="mined_suggestions") as out:
        for name, (schema, rows) in tables.items():
            table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)
            files.write(table.to_batches(), out / f"{name}/part-0.parquet", schema)
    return logs.parent / "mined"


@pytest.fixture(scope="module")
def cascade(logs, mined):
    known = nearest_queries(dictionary(read_searched(mined)), encode)
    return train_cascade(logs, mined, MINING, dataclasses.replace(CONFIG, max_requests=50), known, encode)


def recall_of(found):
    known = nearest_queries(dictionary(found.searched), encode)
    return Recall(found.searched, found.prefix_query, known, encode, CONFIG)


def test_users_to_learn_from_are_not_among_those_who_are_counted(logs, found):
    learned, counted = {*found.asked.users}, {*found.searched["user_id"].to_pylist()}
    assert not learned & counted and {*USERS} <= learned | counted and len(learned) in range(15, 46)
    assert len(found.taken) == 2 * len(learned) and counted & {*USERS} == {*USERS} - learned
    rows = {(row["query"], row["user_id"]): row["times"] for row in found.searched.to_pylist()}
    assert rows == {(q, u): n for u in counted for q, n in
                    ([(own(u), 3), ("rope", 1)] if u in USERS else [("ladder", 5)])}  # fmt: skip
    users = {row["query"]: row["users"] for row in found.prefix_query.to_pylist()}
    assert users["lamp"] + users["land"] == len({*USERS} - learned)
    with pytest.raises(InputError, match="none of the users to learn from took a suggestion"):
        examples(logs, kept_apart=1e-6)


def test_a_user_is_known_as_before_the_request(found, tmp_path):
    for n, (user, recent, taken) in enumerate(zip(found.asked.users, found.asked.recent, found.taken, strict=True)):
        assert taken == [own(user)], "which is searched after the first request, and before the second"
        assert recent == (["rope", own(user)] if n % 2 == 0 else [own(user), "rope"])
    # Neither what comes later on the day, nor the test day, changes anything of the requests.
    later = examples(log(tmp_path / "later", late=3, test_query="another"))
    assert later.asked == found.asked and later.taken == found.taken


def test_it_learns_that_users_take_what_they_searched(cascade, mined):
    """ "ladder" is searched most; who searched "land" before takes that."""
    requests = Asked(["la", "LA ", "la", "", "x"], [1, 2, None, 1, 1], [["land"], ["lamp"], [], [], []])
    answers = cascade.suggest(requests)
    assert answers[0][0] == "land" and answers[1][0] == "lamp"
    assert {*answers[2]} == {"lamp", "land", "ladder"} and {*answers[3]} == {*answers[2], "rope"} and answers[4] == []
    assert PopularCompletions(read_searched(mined)).suggest(requests)[0][0] == "ladder"
    told = cascade.learned_from
    assert (told.requests, told.not_recalled, told.taken, told.left) == (50, 0, 50, 100)


def test_every_request_is_answered_on_its_own(cascade, monkeypatch):
    rows = [("la", user, ["lava", "Lamp"][: user % 3]) for user in USERS]
    rows += [("", None, []), ("zz", 5, []), ("l", 3, [])]
    requests = Asked(*zip(*rows, strict=True))
    answers = cascade.suggest(requests)
    assert answers == [cascade.suggest(Asked(*([v] for v in row)))[0] for row in rows]
    monkeypatch.setattr("crops_jax.suggestions.cascade._AT_ONCE", 7)
    assert cascade.suggest(requests) == answers
    assert cascade.suggest(requests, 1) == [row[:1] for row in answers] and cascade.suggest(Asked([], [], [])) == []


def test_candidates_come_in_the_order_of_the_ranker(cascade):
    class Longest:
        """Ranks by length alone, so that some are equal."""

        def predict_proba(self, features):
            return np.stack([features[:, 0], features[:, FEATURES.index("longer_by")]], axis=1)

    longest = Cascade(cascade.recall, Longest(), cascade.learned_from)
    answers = longest.suggest(Asked(["la", "la"], [None, None], [["lantern", "LAND"], []]))
    assert answers == [["lantern", "ladder", "lamp", "land"], ["ladder", "lamp", "land"]], "then as they are recalled"


def test_the_same_examples_give_the_same_ranker(found):
    recall = recall_of(found)
    rows = recall.candidates(found.asked).features
    one, other = (learn_ranker(recall, found, CONFIG) for _ in range(2))
    np.testing.assert_array_equal(one[0].predict_proba(rows), other[0].predict_proba(rows))
    assert one[1] == other[1]
    strange = dataclasses.replace(found, taken=[["nobody's"]] * len(found.taken))
    with pytest.raises(NothingToRankBy, match=f"of {len(found.taken)} requests 0 were taken and 0 were not"):
        learn_ranker(recall, strange, CONFIG)
    with pytest.raises(InputError, match="kept_apart: 1 is not between"):
        CascadeConfig(kept_apart=1)


def test_which_candidates_are_learned_from():
    """Of four requests two have none that was taken; two of the first's three others are kept."""
    request = np.array([0, 0, 0, 0, 1, 1, 2])
    taken = np.array([0, 0, 1, 0, 0, 0, 1], bool)
    kept, missed = _chosen(request, taken, 4, 2, np.random.default_rng(0))
    assert missed == 2 and {2, 6} < {*kept.tolist()} < {0, 1, 2, 3, 6} and len(kept) == 4
    drawn = {tuple(_chosen(request, taken, 4, 2, np.random.default_rng(n))[0].tolist()) for n in range(20)}
    assert len(drawn) == 3, "all the ways to leave one of three out"
    assert _chosen(request, taken, 4, 9, np.random.default_rng(0))[0].tolist() == [0, 1, 2, 3, 6]
