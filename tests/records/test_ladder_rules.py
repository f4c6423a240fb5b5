"""The ladder of candidates that hypothesis invents, against its rules as they are written down, in plain Python.

A document's label is the highest that any source gives it, over all searches of the query; the first of equal sources
gives it. A search has its own documents, and of each source's pool so many neighbours on a ring as the cap says. Within
a cap or a band the search's own come first, in a seeded order.
"""

import hashlib
from collections import Counter, defaultdict

import hypothesis
import pyarrow as pa
from hypothesis import strategies as st

from crops_jax.labels import LETTERS, SOURCES, Band, LabelsConfig, caps, levels
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.records.assemble import assemble

POOL = [source.letter for source in SOURCES if source.pool]
OWN = ["P0", "X3", "U2", "F1"]
BITS = 2**64 - 1
QUERIES, SEARCHES, ITEMS = st.integers(0, 2), st.integers(0, 7), st.integers(-3, 9)
FUNNEL = st.lists(st.tuples(SEARCHES, ITEMS, st.sampled_from(OWN), st.integers(1, 9)), max_size=40,
                  unique_by=lambda row: row[:2])  # fmt: skip
MINED = st.lists(st.tuples(QUERIES, ITEMS, st.sampled_from(POOL)), max_size=40, unique=True)
CONFIGS = st.builds(
    lambda sources, most, other, bands, seed, least: LabelsConfig(
        sources=tuple(sources), caps=caps(**dict(zip(LETTERS, most, strict=True))), levels=levels(**other),
        bands=bands, seed=seed, min_positive=levels(**other)[least],
    ),
    st.lists(st.sampled_from(LETTERS), min_size=1, unique=True),
    st.lists(st.integers(0, 4), min_size=len(LETTERS), max_size=len(LETTERS)),
    st.dictionaries(st.sampled_from(LETTERS), st.integers(1, 5), max_size=3),
    st.sampled_from([(), (Band("U2", 1, 3, 1), Band("U2", 5, 8, 2)), (Band("X3", 2, 9, 1),)]),
    st.integers(0, 3),
    st.sampled_from(LETTERS),
)  # fmt: skip


def mixed(a, b):
    """SplitMix64 of two numbers of 64 bits."""
    golden = 0x9E3779B97F4A7C15
    x = (a & BITS) ^ (((b & BITS) * golden + golden) & BITS)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
    return x ^ (x >> 31)


def hashed(text, seed):
    key = seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")


def groups_of(rows, config):
    """({request: (query, [(item, label, sources, own)])}, documents over a cap by source)."""
    held, searches = defaultdict(set), {}
    for query, request, item, source, position in rows:
        held[query, item].add(source)
        if request:
            searches.setdefault(request, (query, {}))[1][item] = position
    graded = {pair: grade(sources & {*config.sources}, config) for pair, sources in held.items()}
    made, over = {}, Counter()
    for request, (query, own) in searches.items():
        places = [(item, True, rank) for item, rank in own.items()]
        places += [(item, False, 0) for item in sampled(query, request, held, graded, config) if item not in own]
        kept = []
        for source, members in by_giver(query, places, graded).items():
            members.sort(key=lambda m: (not m[1], mixed(hashed(request, config.seed), m[0])))
            inside = within(source, members, config)
            over[source] += len(members) - len(inside)
            kept += [(item, graded[query, item][0], held[query, item] & {*config.sources}, mine)
                     for item, mine, _ in inside]  # fmt: skip
        kept.sort(key=lambda document: (-document[1], document[0]))
        if kept and kept[0][1] >= config.min_positive:
            made[request] = query, kept
    return made, +over


def grade(sources, config):
    """(label, the source that gives it); (0, None) where there is none."""
    best = max((config.levels[source] for source in sources), default=0)
    return best, next((s for s in LETTERS if s in sources and config.levels[s] == best), None)


def sampled(query, request, held, graded, config):
    for number, source in enumerate(LETTERS):
        pool = [item for (of, item), sources in held.items()
                if of == query and graded[of, item][1] == source and sources & {*POOL} & {*config.sources}]  # fmt: skip
        pool.sort(key=lambda item: (mixed(item, config.seed), item))
        first = mixed(hashed(request, config.seed), number) % len(pool) if pool else 0
        for step in range(min(config.caps[source], len(pool))):
            yield pool[(first + step) % len(pool)]


def by_giver(query, places, graded):
    found = defaultdict(list)
    for item, mine, rank in places:
        if graded[query, item][0] > 0:
            found[graded[query, item][1]].append((item, mine, rank))
    return found


def within(source, members, config):
    bands = [band for band in config.bands if band.source == source]
    if not bands:
        return members[: config.caps[source]]
    return [m for band in bands for m in [m for m in members if band.first <= m[2] <= band.last][: band.cap]]


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(FUNNEL, MINED, CONFIGS)
def test_groups_are_the_rules_for_any_candidates(funnel, mined, config):
    rows = [(f"q{search % 3}", f"r{search}", item, source, rank) for search, item, source, rank in funnel]
    rows += [(f"q{query}", None, item, source, None) for query, item, source in mined]
    rows.sort(key=lambda row: (row[0], row[1] or "", row[3], row[2]))
    names = ("query", "request_id", "item_id", "source", "position")
    columns = [dict(zip(names, row, strict=True)) | {"user_id": 7 if row[1] else None} for row in rows]
    counts = Counter()
    groups = assemble(pa.Table.from_pylist(columns, schema=CANDIDATES_SCHEMA), config, counts)
    letters = {group.request_id: [{s for i, s in enumerate(LETTERS) if bits >> i & 1} for bits in group.source.tolist()]
               for group in groups}  # fmt: skip
    found = {
        g.request_id: (g.query, list(zip(g.item_id.tolist(), g.label.tolist(), letters[g.request_id], g.own.tolist(),
                                         strict=True)))
        for g in groups
    }  # fmt: skip
    wanted, over = groups_of(rows, config)
    assert found == wanted
    assert {s: n for s in LETTERS if (n := counts[f"over_cap_{s}"])} == dict(over)
    assert counts["groups"] == len(wanted) and counts["documents"] == sum(len(d) for _, d in wanted.values())
