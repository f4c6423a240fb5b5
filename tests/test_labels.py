"""Hierarchical labels: Table 1, conflicts, caps, seeds, streaming."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops_jax.errors import InputError
from crops_jax.labels import LETTERS, LOG_ONLY, PAPER, Band, LabelsConfig, caps, levels, one_anchor_groups, source_bits
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.records import candidates
from crops_jax.records.assemble import assemble
from crops_jax.records.candidates import cut, read_part, read_parts


def table(*rows) -> pa.Table:
    """Rows (query, request or None, item, source), sorted as mining writes them."""
    ordered = sorted(rows, key=lambda r: (r[0], r[1] is not None, r[1] or "", r[3], r[2]))
    return pa.Table.from_pylist(
        [{"query": q, "request_id": r, "user_id": r and 7, "item_id": i, "source": s} for q, r, i, s in ordered],
        schema=CANDIDATES_SCHEMA,
    )


def as_dicts(made):
    return {g.request_id: dict(zip(g.item_id.tolist(), g.label.tolist(), strict=True)) for g in made}


def test_table_1():
    assert {letter: levels()[letter] for letter in PAPER} == {
        "P1": 5,
        "P2": 4,
        "P3": 4,
        "P0": 4,
        "X3": 3,
        "U2": 2,
        "F1": 1,
    }
    assert LabelsConfig().group_size == 16
    rows = [("q", "r", i, s) for i, s in enumerate(PAPER) if s not in ("P1", "P2", "P3")]
    rows += [("q", None, 1, "P1"), ("q", None, 2, "P2"), ("q", None, -3, "P3")]
    (group,) = assemble(table(*rows), LabelsConfig())
    assert (group.request_id, group.user_id, group.query) == ("r", 7, "q")
    assert group.item_id.tolist() == [1, -3, 0, 2, 4, 5, 6]  # by label, then by id
    assert group.label.tolist() == [5, 4, 4, 4, 3, 2, 1]
    assert (group.item_id.dtype, group.label.dtype, group.source.dtype) == (np.int64, np.int32, np.int32)


def test_a_document_in_p1_and_u2_appears_once_with_label_5():
    (group,) = assemble(table(("q", "r", 3, "U2"), ("q", None, 3, "P1"), ("q", None, 3, "P2")), LabelsConfig())
    assert (group.item_id.tolist(), group.label.tolist()) == ([3], [5])
    assert group.source.tolist() == [source_bits("P1", "P2", "U2")]


def test_the_highest_label_over_all_events_of_the_query_holds_in_each():
    rows = [("q", "a", 1, "P0"), ("q", "b", 1, "U2"), ("p", "c", 1, "U2"), ("p", "c", 2, "P0")]
    assert as_dicts(assemble(table(*rows), LabelsConfig())) == {"a": {1: 4}, "b": {1: 4}, "c": {1: 2, 2: 4}}


def test_events_share_the_querys_pool_but_not_each_others_documents():
    rows = [("q", "a", 1, "P0"), ("q", "b", 2, "X3"), ("q", None, 9, "P1")]
    assert as_dicts(assemble(table(*rows), LabelsConfig())) == {"a": {9: 5, 1: 4}, "b": {9: 5, 2: 3}}


def test_log_only_ignores_the_other_sources_and_events_without_a_positive_are_counted():
    rows = [("q", "a", 1, "P0"), ("q", "a", 3, "U2"), ("q", "b", 2, "X3"), ("q", None, 3, "P1"), ("q", None, -5, "P3")]
    counts = Counter()
    made = assemble(table(*rows), LabelsConfig(sources=LOG_ONLY), counts)
    assert as_dicts(made) == {"a": {1: 4, 3: 2}}
    assert all(s & source_bits("P1", "P2", "P3") == 0 for g in made for s in g.source.tolist())
    assert counts == {"groups": 1, "documents": 2, "no_positive": 1}
    counts = Counter()
    assert assemble(table(("q", "a", 1, "X3")), LabelsConfig(sources=("P0", "U2")), counts) == []
    assert counts["no_document"] == 1


def test_the_ablation_label_4_for_p1():
    rows = [("q", "a", 1, "P0"), ("q", None, 3, "P1")]
    (group,) = assemble(table(*rows), LabelsConfig(levels=levels(P1=4)))
    assert group.label.tolist() == [4, 4]


def test_caps_hold_per_label_giving_source():
    rows = [("q", "r", i + 10 * j, s) for j, s in enumerate(("P0", "X3", "U2", "F1")) for i in range(10)]
    rows += [("q", None, 100 + i, "P1") for i in range(10)] + [("q", None, 200 + i, "P2") for i in range(10)]
    rows += [("q", None, -1 - i, "P3") for i in range(10)]
    counts = Counter()
    (group,) = assemble(table(*rows), LabelsConfig(), counts)
    given = Counter(LETTERS[int(s).bit_length() - 1] for s in group.source)
    assert given == {"P0": 2, "P1": 2, "P2": 2, "P3": 1, "X3": 2, "U2": 4, "F1": 3}
    assert len(set(group.item_id.tolist())) == 16 == LabelsConfig().group_size
    assert (counts["over_cap_P0"], counts["over_cap_F1"]) == (8, 7)
    assert assemble(table(*rows), LabelsConfig(caps=caps(P0=0, P1=0, P2=0, P3=0))) == []


def many(events=200, pool=12):
    """Two queries; every event has own documents beyond each cap."""
    rows = [("q", None, 10**6 + i, "P1") for i in range(pool)] + [("p", None, -1 - i, "P3") for i in range(pool)]
    for e in range(events):
        query = "q" if e % 2 else "p"
        rows += [(query, f"{query}{e:04d}", e * 10 + i, s) for i, s in enumerate(["P0", *["U2"] * 6])]
    return table(*rows)


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x.request_id, x.user_id, x.query) == (y.request_id, y.user_id, y.query)
        for name in ("item_id", "label", "source", "own"):
            assert np.array_equal(getattr(x, name), getattr(y, name))


def test_groups_of_one_anchor_hold_the_anchor_and_what_is_graded_lower():
    """Labels 5 4 4 1: the examples hold 4, 2, 2 and 1 documents, where the whole group holds 4 (section "Analysis of
    Loss Function": this is what makes the per-positive InfoNCE slow)."""
    rows = [("q", "r", i, s) for i, s in ((1, "P0"), (2, "F1"))] + [("q", None, 3, "P1"), ("q", None, -4, "P3")]
    (whole,) = assemble(table(*rows), LabelsConfig())
    made = list(one_anchor_groups(whole))
    assert [g.label.tolist() for g in made] == [[5, 4, 4, 1], [4, 1], [4, 1], [1]]
    assert [g.item_id.tolist() for g in made] == [[3, -4, 1, 2], [-4, 2], [1, 2], [2]]
    assert [g.own.tolist() for g in made] == [[False, False, True, True], [False, True], [True, True], [True]]
    assert {g.request_id for g in made} == {"r"}
    assert [g.label.tolist() for g in one_anchor_groups(whole, 4)] == [[5, 4, 4, 1], [4, 1], [4, 1]]


def test_the_sample_depends_on_seed_and_request_alone():
    rows = many()
    made = assemble(rows, LabelsConfig())
    same(made, assemble(rows, LabelsConfig()))
    shuffled = assemble(rows.take(np.random.default_rng(0).permutation(rows.num_rows)), LabelsConfig())
    same(made, sorted(shuffled, key=lambda g: (g.query, g.request_id)))
    fewer = rows.filter(pa.compute.is_in(rows["request_id"], pa.array([None, "q0001", "p0000"])))
    same([g for g in made if g.request_id in ("q0001", "p0000")], assemble(fewer, LabelsConfig()))
    other = assemble(rows, LabelsConfig(seed=1))
    assert sum(not np.array_equal(a.item_id, b.item_id) for a, b in zip(made, other, strict=True)) > 150


def test_the_seed_lays_out_the_ring_and_draws_the_events_own_documents():
    def drawn(seed):
        groups = [g for g in assemble(many(), LabelsConfig(seed=seed)) if g.query == "q"]
        neighbours = {tuple(i for i in g.item_id.tolist() if i >= 10**6) for g in groups}
        return neighbours, [[i for i in g.item_id.tolist() if i < 10**6] for g in groups]

    (ring, own), (other_ring, other_own) = drawn(0), drawn(1)
    assert len(ring) == len(other_ring) == 12 and ring != other_ring  # twelve documents, two neighbours a group
    assert sum(a != b for a, b in zip(own, other_own, strict=True)) > 50


def test_pooled_documents_are_drawn_evenly():
    drawn = Counter(i for g in assemble(many(2400), LabelsConfig()) for i in g.item_id.tolist() if i < 0)
    p3 = np.array(list(drawn.values()))
    assert len(p3) == 12 and p3.sum() == 1200  # one a group
    assert np.all(np.abs(p3 - 100) < 45)  # 4.7 standard deviations of a binomial with mean 100


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(candidates, "_ROWS", 50)


@pytest.mark.parametrize("rows_of_a_group", [1, 7, 37, 5000])
def test_parts_of_a_file_hold_whole_queries_wherever_it_is_cut(tmp_path, small_parts, rows_of_a_group):
    """Two large queries, and one that begins and ends within a row group."""
    rows = pa.concat_tables([many(), table(("r", "r1", 1, "P0"), ("r", "r2", 2, "P0")), table(("s", "s1", 3, "P0"))])
    rows = rows.take(pa.compute.sort_indices(rows, [("query", "ascending")]))
    path = tmp_path / "candidates.parquet"
    pq.write_table(rows, path, row_group_size=rows_of_a_group)
    parts = [read_part(part) for part in cut(path)]
    assert len(parts) == (
        1 if rows_of_a_group == 5000 else -(-len(rows) // (-(-50 // rows_of_a_group) * rows_of_a_group))
    )
    assert pa.concat_tables(parts).equals(rows.select(parts[0].column_names))
    queries = [set(part["query"].to_pylist()) for part in parts]
    assert sum(map(len, queries)) == 4
    same([g for part in read_parts(path) for g in assemble(part, LabelsConfig())], assemble(rows, LabelsConfig()))


def test_a_folder_of_candidates_is_read_as_its_files(tmp_path, small_parts):
    rows = many()
    (tmp_path / "candidates.parquet").mkdir()
    for query, name in (("q", "part-0"), ("p", "part-1")):  # in no order
        part = rows.filter(pa.compute.equal(rows["query"], query))
        pq.write_table(part, tmp_path / f"candidates.parquet/{name}.parquet", row_group_size=100)
    (tmp_path / "candidates.parquet/_SUCCESS").touch()
    made = [g for part in read_parts(tmp_path / "candidates.parquet") for g in assemble(part, LabelsConfig())]
    same(sorted(made, key=lambda g: (g.query, g.request_id)), assemble(rows, LabelsConfig()))


def test_an_empty_table_gives_no_groups(tmp_path):
    pq.write_table(CANDIDATES_SCHEMA.empty_table(), tmp_path / "candidates.parquet")
    assert list(read_parts(tmp_path / "candidates.parquet")) == []
    assert assemble(CANDIDATES_SCHEMA.empty_table(), LabelsConfig()) == []


def test_only_pool_rows_give_no_groups():
    assert assemble(table(("q", None, 1, "P1")), LabelsConfig()) == []


def test_bad_candidates_and_configs_are_named(tmp_path):
    path = tmp_path / "candidates.parquet"
    unsorted = pa.concat_tables([table(("q", "a", 1, "P0")), table(("p", "b", 1, "P0"))])
    pq.write_table(unsorted, path)
    with pytest.raises(InputError, match="is not sorted by query"):
        list(read_parts(path))
    pq.write_table(unsorted, path, row_group_size=1)
    with pytest.raises(InputError, match="is not sorted by query"):
        list(read_parts(path))
    pq.write_table(unsorted.drop_columns(["source", "item_id"]), path)
    with pytest.raises(InputError, match=r"column item_id is missing[\s\S]*column source is missing"):
        cut(path)
    with pytest.raises(InputError, match=r"unknown sources \['Z9'\]"):
        assemble(table(("q", "a", 1, "Z9")), LabelsConfig())
    with pytest.raises(InputError, match="under two queries"):
        assemble(table(("q", "a", 1, "P0"), ("p", "a", 1, "P0")), LabelsConfig())
    with pytest.raises(InputError) as error:
        replace(LabelsConfig(), sources=("P0", "P9"), caps=caps(U2=-1), levels=levels(F1=0))
    assert len(error.value.problems) == 3


def ranked(positions):
    """One event with a click and a U2 document at each of these positions (item = 100 + position)."""
    rows = table(("q", "r", 1, "P0"), *[("q", "r", 100 + p, "U2") for p in positions])
    places = [
        None if s == "P0" else i - 100
        for i, s in zip(*(rows[n].to_pylist() for n in ("item_id", "source")), strict=True)
    ]
    return rows.set_column(rows.column_names.index("position"), "position", pa.array(places, pa.int32()))


def test_bands_of_ranks_are_drawn_each_on_its_own():
    bands = (Band("U2", 1, 10, 3), Band("U2", 11, 100, 2))
    config, counts = LabelsConfig(bands=bands), Counter()
    assert config.group_size == LabelsConfig().group_size + 1
    (group,) = assemble(ranked(range(1, 121)), config, counts)
    places = [i - 100 for i in group.item_id.tolist() if i > 1]
    assert sum(p <= 10 for p in places) == 3 and sum(10 < p <= 100 for p in places) == 2 and len(places) == 5
    assert counts["over_cap_U2"] == 115
    (few,) = assemble(ranked([5, 12, 130]), config)
    assert few.item_id.tolist() == [1, 105, 112]  # 130 is in no band
    drawn = Counter(
        p for seed in range(60) for p in assemble(ranked(range(1, 11)), replace(config, seed=seed))[0].item_id
    )
    assert all(drawn[100 + p] > 5 for p in range(1, 11)), "each of ten ranks 18 times of 60"


def test_bands_that_cannot_be_are_named():
    rows = ranked([1]).drop_columns(["position"])
    with pytest.raises(InputError, match=r"no column position, which labels\.bands asks for: mine them again"):
        assemble(rows, LabelsConfig(bands=(Band("U2", 1, 2, 1),)))
    assert len(assemble(rows, LabelsConfig())) == 1
    with pytest.raises(InputError) as error:
        LabelsConfig(bands=(Band("P1", 1, 2, 1), Band("U2", 1, 5, 1), Band("U2", 5, 9, 0), Band("F1", 3, 2, 1)))
    assert [p.split(":")[0] for p in error.value.problems] == ["bands[0]", "bands[2]", "bands[2]", "bands[3]"]


def test_only_the_order_of_the_labels_matters_to_the_groups():
    """Levels that rise alike give the same documents under the same caps; positives begin at the same source."""
    rows = many(60)
    wide = {letter: {5: 90, 4: 40}.get(label, label) for letter, label in levels().items()}
    with pytest.raises(InputError, match="min_positive: 4 is none of the labels of `levels`: 1, 2, 3, 40, 90"):
        LabelsConfig(levels=wide)
    wide = LabelsConfig(levels=wide, min_positive=40)
    for a, b in zip(assemble(rows, LabelsConfig()), assemble(rows, wide), strict=True):
        assert set(a.item_id.tolist()) == set(b.item_id.tolist()) and a.source.tolist() == b.source.tolist()
        assert [{5: 90, 4: 40}.get(label, label) for label in a.label.tolist()] == b.label.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_groups_against_a_plain_loop_over_the_rules(seed):
    """Random candidates, levels, caps and sources: each label-giving source fills its cap, own documents first."""
    draw = np.random.default_rng(seed)
    letters = tuple(s for s in PAPER if draw.random() < 0.8)
    given = {s: int(draw.integers(1, 6)) for s in PAPER}
    most, least = {s: int(draw.integers(0, 4)) for s in PAPER}, int(draw.choice([*given.values()]))
    config = LabelsConfig(levels(**given), caps(**most), (), letters, seed, min_positive=least)
    rows = {(f"q{e % 3}", f"r{e:02d}", int(i), s) for e in range(30) for s in ("P0", "X3", "U2", "F1")
            for i in draw.integers(0, 14, draw.integers(0, 4))}  # fmt: skip
    rows |= {(f"q{q}", None, int(i), s) for q in range(3) for s in ("P1", "P2", "P3") for i in draw.integers(0, 14, 4)}
    made = {g.request_id: g for g in assemble(table(*rows), config)}
    sources_of = {}
    for query, _, item, source in rows:
        if source in letters:
            sources_of.setdefault((query, item), set()).add(source)
    for event in {(q, r) for q, r, _, _ in rows if r}:
        own = {i for q, r, i, _ in rows if (q, r) == event}
        pool = {i for (q, i), found in sources_of.items() if q == event[0] and found & {"P1", "P2", "P3"}}
        wanted, label = {}, {}
        for item in own | pool:
            if found := sources_of.get((event[0], item)):
                label[item] = max(given[s] for s in found)
                giver = next(s for s in LETTERS if s in found and given[s] == label[item])
                wanted.setdefault(giver, ([], []))[item not in own].append(item)
        places = {s: (min(len(mine), config.caps[s]), min(len(mine + others), config.caps[s]))
                  for s, (mine, others) in wanted.items()}  # fmt: skip
        group = made.get(event[1])
        if group is None:
            assert not any(n and given[s] >= least for s, (_, n) in places.items())
            continue
        kept = group.item_id.tolist()
        assert group.label.tolist() == [label[i] for i in kept] and group.own.tolist() == [i in own for i in kept]
        assert places == {
            s: (len({*mine} & {*kept}), len({*mine, *others} & {*kept})) for s, (mine, others) in wanted.items()
        }
        assert group.source.tolist() == [source_bits(*sources_of[event[0], i]) for i in kept]
