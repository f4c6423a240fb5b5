"""Where the recipes' negatives come from, and how they are drawn."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops_jax.baselines import nearest
from crops_jax.baselines.draw import Triangle, uniform
from crops_jax.baselines.groups import Clicks, Positives, click_groups, graded_groups
from crops_jax.baselines.nearest import nearest_negatives
from crops_jax.errors import InputError
from crops_jax.labels import LabelsConfig, levels
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.records.candidates import read_groups
from crops_jax.retrieval.ranking import NO_ITEM, top_k


def test_the_nearest_documents_without_the_positives_ties_by_smaller_id(monkeypatch):
    angles = np.deg2rad([0, 10, -10, 40, 90, 180])
    docs = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ids = np.array([3, 5, 8, 9, 11, 20])

    def search(numbers, k):
        return top_k(docs[numbers] @ docs.T, ids, k)[0]

    def same(ids):
        return ids

    found = nearest_negatives(search, [np.array([3]), np.array([3, 8])], 3, same)
    assert [row.tolist() for row in found] == [[5, 8, 9], [5, 9, 11]]
    of_one_text = nearest_negatives(search, [np.array([8])], 3, lambda ids: np.where(ids == 5, 8, ids))
    assert of_one_text[0].tolist() == [3, 9]  # 5 is a copy of what is liked
    known_by_its_copy = nearest_negatives(search, [np.array([5])], 3, lambda ids: np.where(ids == 5, 3, ids))
    assert known_by_its_copy[0].tolist() == [8, 9]  # 3 has the text of what is liked
    everything = nearest_negatives(search, [np.array([3, 8, 20])], 99, same)
    assert everything[0].tolist() == [5, 9, 11] and NO_ITEM not in everything[0]
    monkeypatch.setattr(nearest, "_QUERIES", 1)
    one_by_one = nearest_negatives(search, [np.array([3]), np.array([3, 8])], 3, same)
    assert [row.tolist() for row in one_by_one] == [row.tolist() for row in found]


def write_candidates(path, rows):
    names = ("query", "request_id", "user_id", "item_id", "source")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    columns |= {"theta": [None] * len(rows), "evidence": [None] * len(rows), "position": [None] * len(rows)}
    pq.write_table(pa.table({n: list(columns[n]) for n in CANDIDATES_SCHEMA.names}, schema=CANDIDATES_SCHEMA), path)
    return path


def test_a_search_makes_a_group_of_one_of_its_clicks_and_its_negatives(tmp_path):
    rows = [("a", None, None, 1, "P1"), ("a", "r1", 7, 1, "P0"), ("a", "r1", 7, 2, "P0"), ("a", "r2", None, 3, "P0"),
            ("a", "r2", None, 9, "X3"), ("b", "r3", 7, 4, "P0")]  # fmt: skip
    clicks = Clicks.read(write_candidates(tmp_path / "c.parquet", rows))
    assert clicks.queries == ["a", "b"] and [k.tolist() for k in clicks.known] == [[1, 2, 3], [4]]

    def draw(query, positive, rng):
        return np.array([30, 20]) + query

    made = list(click_groups(clicks, draw, 0, levels()))
    assert [(g.request_id, g.user_id, g.query) for g in made] == [("r1", 7, "a"), ("r2", -1, "a"), ("r3", 7, "b")]
    assert made[1].item_id.tolist() == [3, 20, 30] and made[2].item_id.tolist() == [4, 21, 31]
    assert made[0].label.tolist() == [4, 1, 1]
    assert next(click_groups(clicks, draw, 0, levels(P0=5, N1=2))).label.tolist() == [5, 2, 2]
    few = [[g.request_id for g in click_groups(clicks, draw, seed, levels(), most=2)] for seed in range(20)]
    assert {len(ids) for ids in few} == {2} and {i for ids in few for i in ids} == {"r1", "r2", "r3"}
    taken = {next(click_groups(clicks, draw, seed, levels())).item_id[0] for seed in range(20)}
    assert taken == {1, 2}  # each click has its turn
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, part, said in (("0.parquet", rows[:5], [None, "A", "A", None, None]), ("1.parquet", rows[5:], None)):
        table = pq.read_table(write_candidates(folder / name, part))
        pq.write_table(table if said is None else table.append_column("typed", pa.array(said)), folder / name)
    spelt = Clicks.read(folder)
    assert [g.query for g in click_groups(spelt, draw, 0, levels())] == ["A", "a", "b"], (
        "as typed, which not all files say"
    )
    assert spelt.queries == ["a", "b"]
    with pytest.raises(InputError, match="nobody clicked"):
        Clicks.read(write_candidates(tmp_path / "d.parquet", rows[:1]))


def test_graded_groups_take_negatives_in_that_no_miner_found_for_the_query(tmp_path):
    rows = [("a", None, None, 6, "P1"), ("a", "r1", 7, 1, "P0"), ("a", "r1", 7, 9, "X3"), ("a", "r2", 8, 3, "P0"),
            ("b", "r3", 7, 4, "P0"), ("b", "r3", 7, 5, "F1")]  # fmt: skip
    path, labels = write_candidates(tmp_path / "c.parquet", rows), LabelsConfig()
    positives = Positives.read(path, labels)
    assert positives.queries == ["a", "b"] and [k.tolist() for k in positives.known] == [[1, 3, 6], [4]]
    log = Positives.read(path, LabelsConfig(sources=("P0", "X3")))
    assert [k.tolist() for k in log.known] == [[1, 3], [4]]  # P1 takes no part there
    asked = []

    def draw(query, positive, rng):
        asked.append((query, positive))
        return np.array([30, 9, 20]) + query

    def keys(ids):
        return np.where(ids == 31, 5, ids)

    made = list(graded_groups(read_groups(path, labels), positives, draw, 0, keys, 1))
    assert asked == [(0, 6), (0, 6), (1, 4)]  # the best document of each group
    assert made[0].item_id.tolist() == [6, 1, 9, 20, 30] and made[0].label.tolist() == [5, 4, 3, 1, 1]  # 9 is X3 here
    assert made[1].item_id.tolist() == [6, 3, 9, 20, 30] and made[1].label.tolist() == [5, 4, 1, 1, 1]
    assert made[2].item_id.tolist() == [4, 5, 10, 21] and made[2].label.tolist() == [4, 1, 1, 1]  # 31 is a copy of 5
    assert made[2].source.tolist() == [1, 64, 128, 128]


def test_uniform_draws_without_replacement():
    rng = np.random.default_rng(0)
    drawn = np.array([uniform(2, 4, rng) for _ in range(4000)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=4) / 8000, 0.25, atol=0.02)
    assert sorted(uniform(9, 3, rng)) == [0, 1, 2]


def test_the_triangle_by_hand():
    """s+ = 8, s = [9, 7.5, 6, 3, 7], t = [10, 9, 5, 2, 7.5] as logits."""
    triangle, tau = Triangle(tau=0.05, shortlist=5), 0.05
    s, t = np.array([9, 7.5, 6, 3, 7]) * tau, np.array([10, 9, 5, 2, 7.5]) * tau
    np.testing.assert_allclose(
        triangle.first(8 * tau, s), [0.271660, 0.327684, 0.128323, 0.000673, 0.271660], atol=1e-6
    )
    p2 = triangle.second(s, t)
    np.testing.assert_allclose(p2 / p2.sum(), [1 / 3, 1 / 2, 0, 0, 1 / 6], atol=1e-6)
    allowed = triangle.allowed(0.40, np.array([0.98, 0.40, -0.60]))  # 54.94, 0 and 60.45 degrees
    assert allowed.tolist() == [True, True, False]


def test_p1_tells_documents_apart_however_small_tau_is():
    """Worst case: the temperature's floor, and all candidates far below the positive."""
    p1 = Triangle(0.01).first(0.95, np.array([0.3, 0.295, -0.9]))
    np.testing.assert_allclose(p1, [1, np.exp(-((65.5**2 - 65**2) / 4)), 0] / (1 + np.exp(-(65.5**2 - 65**2) / 4)))


def test_the_triangle_draws_by_p2_within_its_shortlist_and_fills_up_by_rank():
    tau, rng = 0.05, np.random.default_rng(0)
    s, t = np.array([9, 7.5, 6, 3, 7]) * tau, np.array([10, 9, 5, 2, 7.5]) * tau
    drawn = [Triangle(tau, 5).draw(1, 8 * tau, s, t, rng)[0] for _ in range(6000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 6000, [1 / 3, 1 / 2, 0, 0, 1 / 6], atol=0.02)
    alone = [Triangle(tau, 1).draw(1, 8 * tau, s, t, rng)[0] for _ in range(6000)]  # a shortlist of one: p1 decides
    p1 = [0.271660, 0.327684, 0.128323, 0.000673, 0.271660]
    np.testing.assert_allclose(np.bincount(alone, minlength=5) / 6000, p1, atol=0.02)
    flat = Triangle(tau, 2).draw(4, 8 * tau, s, s - 1, rng)  # p2 is zero for all
    assert len(set(flat.tolist())) == 4  # the shortlist's two, by p1, and the nearest of the others
    far = Triangle(tau, 5).draw(2, 0.40, np.array([-0.60, -0.70]), np.zeros(2), rng)
    assert far.tolist() == [0, 1]  # none within 60 degrees: by rank
