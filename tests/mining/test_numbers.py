"""Queries as numbers: one each, in the order of their texts within a part, and the part read off the number."""

import ibis
import pyarrow as pa
import pytest

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import PART, open_engine
from crops_jax.mining.numbers import number_queries, part_of_number
from crops_jax.mining.work import Work

QUERIES = [f"find {i} of topic {i % 7}" for i in range(300)] + ["灯 具", "Übung", "übung", "a'b", "%_\\", "\U0001f600"]


@pytest.mark.parametrize("digits", [0, 1, 2])
def test_a_number_tells_the_part_of_its_query_and_its_place_there(digits, tmp_path):
    with open_engine(EngineConfig(memory_limit="500MB"), []) as engine:
        work = Work(engine, tmp_path, digits)
        searches = engine.materialise("searches", ibis.memtable(pa.table({"query": QUERIES * 2})))
        rows = number_queries(work, "queries", searches)
        rows = rows.mutate(told=part_of_number(work, rows.number), **{PART: work.part_of(rows.query)})
        rows = rows.to_pyarrow().to_pylist()
    assert sorted(row["query"] for row in rows) == sorted(QUERIES)
    assert len({row["number"] for row in rows}) == len(rows)
    assert [row["told"] for row in rows] == [row[PART] for row in rows]
    assert {len(row["told"]) for row in rows} == {max(digits, 1)}
    for part in {row[PART] for row in rows}:
        of_part = [row for row in rows if row[PART] == part]
        numbered = [row["query"] for row in sorted(of_part, key=lambda row: row["number"])]
        assert numbered == sorted(numbered, key=str.encode)
