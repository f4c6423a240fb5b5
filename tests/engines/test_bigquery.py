"""The miners' expressions as BigQuery's SQL: it is what it was, and it gives the rows that the engine gives.

Where a change of it is meant: python tests/engines/test_bigquery.py writes it anew.
"""

from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pytest
import sqlglot

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.logs.schema import arrow_schema
from crops_jax.mining.config import QueryLevelConfig, SystemLevelConfig
from crops_jax.mining.day import Day
from crops_jax.mining.funnel import funnel_rows
from crops_jax.mining.query_level import reformulation_pairs
from crops_jax.mining.system_level import feed_near_query

GOLDEN = Path(__file__).parents[1] / "golden" / "bigquery"
MINERS = ("reformulations", "funnel", "feed_near_query")


class Script:
    """An engine that runs nothing: it writes down what is asked of it. Its counts are 0, so every loop ends."""

    def __init__(self):
        self.tables = []

    def materialise(self, name, expression):
        self.tables.append(f"CREATE TEMP TABLE `{name}` AS\n{sql(expression)};\n")
        return ibis.table(expression.schema(), name=name)

    def count(self, expression):
        return 0


def sql(expression):
    return str(ibis.to_sql(expression, dialect="bigquery", pretty=True))


def day():
    schemas = {name: arrow_schema(name) for name in ("searches", "candidates", "feed", "items")}
    schemas["searches"] = schemas["searches"].append(pa.field("typed", pa.string()))
    nullable = {n: pa.schema([field.with_nullable(True) for field in schema]) for n, schema in schemas.items()}
    tables = {n: ibis.table(ibis.Schema.from_pyarrow(schema), name=n) for n, schema in nullable.items()}
    return Day(**tables, respelled=False)


def script(miner):
    engine, table = Script(), None
    match miner:
        case "reformulations":
            table = reformulation_pairs(day().searches, QueryLevelConfig())
        case "funnel":
            table = funnel_rows(day())
        case "feed_near_query":
            table = feed_near_query(engine, "p2", day(), SystemLevelConfig())
    return "\n".join([*engine.tables, sql(table) + ";\n"])


@pytest.mark.parametrize("miner", MINERS)
def test_the_sql_is_what_it_was(miner):
    assert script(miner) == (GOLDEN / f"{miner}.sql").read_text(), f"python {Path(__file__).name} writes it anew"


def test_the_sql_gives_the_rows_of_the_engine():
    """BigQuery's SQL, translated back and run: users with less than two blocks, as its counts of 0 have it."""
    rng = np.random.default_rng(0)
    user, query, item = (rng.integers(0, n, 200).tolist() for n in (5, 6, 9))
    ts = (1_750_000_000_000 + rng.integers(0, 900_000, 200)).tolist()
    typed = [f"q{q}" for q in query]
    searches = {"request_id": [f"r{i}" for i in range(200)], "user_id": user, "query": typed, "ts": ts, "typed": typed}
    acts = {"clicked": [i % 3 == 0 for i in item], "liked": [False] * 200, "watch_ms": [5_000 * (i % 4) for i in item]}
    feed = {"user_id": user[::-1], "item_id": item, "ts": ts[::-1], **acts, "duration_ms": [1] * 200}
    stages = [("exposed", "ranked", "filtered")[i % 3] for i in range(200)]
    candidates = {"request_id": searches["request_id"], "item_id": item, "stage": stages, "position": [1] * 200, **acts}
    with open_engine(EngineConfig(memory_limit="500MB"), []) as engine:
        tables = {"searches": searches, "feed": feed, "candidates": candidates}
        made = {n: engine.connection.create_table(n, pa.table(c)) for n, c in tables.items()}
        engine.connection.raw_sql("CREATE MACRO ieee_divide(a, b) AS a / b")  # BigQuery's, for numbers that are there
        rows = Day(**made, items=made["feed"], respelled=False)
        ours = {
            "reformulations": reformulation_pairs(rows.searches, QueryLevelConfig()),
            "funnel": funnel_rows(rows),
            "feed_near_query": feed_near_query(engine, "ours", rows, SystemLevelConfig()),
        }
        for miner, table in ours.items():
            for statement in sqlglot.transpile((GOLDEN / f"{miner}.sql").read_text(), read="bigquery", write="duckdb"):
                found = engine.connection.con.execute(statement)
            names, found = [column[0] for column in found.description], found.fetchall()
            expected = table.select(*names).to_pyarrow().to_pylist()
            assert sorted(map(str, found)) == sorted(str(tuple(row.values())) for row in expected)
            assert len(expected) > 50, miner


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in MINERS:
        (GOLDEN / f"{name}.sql").write_text(script(name))
