"""The miners against a simulated world, whose full truth is known: precision and recall, printed, with floors."""

from dataclasses import replace

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.mining.config import MiningConfig, WorldKnowledgeConfig
from crops_jax.mining.train_day import mine
from crops_jax.simulate.simulator import SimulateConfig, build_world, simulate
from crops_jax.simulate.synthetic import SyntheticWorldConfig
from crops_jax.stable_hash import hash_texts
from crops_jax.text.tokenizer import document_text


class NoisyTruth:
    """theta = 0.9 for a relevant pair and 0.3 for another, one pair in twenty told wrongly; queries all similar."""

    def __init__(self, logs):
        truth = pq.read_table(logs / "truth/relevance.parquet").to_pylist()
        items = pq.read_table(logs / "items.parquet").to_pylist()
        text = {
            r["item_id"]: document_text(r["ocr_cover"], r["photo_caption"], r["keyword"], r["click_query"])
            for r in items
        }
        self.relevant = {(r["query"], text[r["item_id"]]) for r in truth if r["grade"] >= 2}

    def scores(self, queries, texts):
        right = np.array([pair in self.relevant for pair in zip(queries, texts, strict=True)])
        wrong = hash_texts([f"{q}\0{t}" for q, t in zip(queries, texts, strict=True)]) % 20 == 0
        return np.where(right ^ wrong, np.float32(0.9), np.float32(0.3))

    def query_similarity(self, a, b):
        return np.ones(len(a), np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    config = SimulateConfig()
    sessions = replace(config.sessions, train_sessions=1500, test_sessions=50)
    simulate(build_world(SyntheticWorldConfig(n_items=1000, n_intents=126)), replace(config, sessions=sessions), folder)
    knowledge = WorldKnowledgeConfig(enabled=False)
    with write_folder(folder / "mined", kind="mined") as out:
        mine(folder, out, NoisyTruth(folder), MiningConfig(world_knowledge=knowledge))
    return folder


def figures(world, found, wanted):
    """(precision, recall, number found) of two SQL relations of (query, item_id)."""
    with duckdb.connect() as connection:
        connection.execute(f"create view searches as from '{world}/train/searches.parquet'")
        connection.execute(f"create view shown as from '{world}/train/candidates.parquet' where stage = 'exposed'")
        connection.execute(f"create view feed as from '{world}/train/feed.parquet'")
        connection.execute(f"create view events as from '{world}/truth/events_train.parquet'")
        connection.execute(f"create view mined as from '{world}/mined/candidates.parquet/*.parquet'")
        connection.execute(
            f"create view relevant as select query, item_id from '{world}/truth/relevance.parquet' where grade >= 2"
        )
        count = "select count(*) from"
        both, found_n, wanted_n, right = (
            connection.sql(f"{count} ({q})").fetchone()[0]
            for q in (f"{found} intersect {wanted}", found, wanted, f"{found} intersect select * from relevant")
        )
    return right / found_n, both / wanted_n, found_n


# What a perfect miner would find: relevant items that the same user consumed in a later step of the same session,
# within 90 s; and relevant items in the feed of the query's users.
LATER_IN_SESSION = """
select distinct q.query, c.item_id from searches q join events a using (request_id)
join events b on a.session_id = b.session_id and b.step > a.step
join searches n on n.request_id = b.request_id and n.ts - q.ts <= 90000 and n.query <> q.query
join shown c on c.request_id = b.request_id and (c.clicked or c.liked or c.watch_ms >= 10000)
semi join relevant r on r.query = q.query and r.item_id = c.item_id"""
IN_FEED = """
select distinct q.query, f.item_id from searches q join feed f using (user_id)
semi join relevant r on r.query = q.query and r.item_id = f.item_id
where f.clicked or f.liked or f.watch_ms >= 10000"""


@pytest.mark.parametrize(("source", "wanted"), [("P1", LATER_IN_SESSION), ("P2", IN_FEED)])
def test_precision_and_recall_against_the_truth(world, source, wanted):
    found = f"select distinct query, item_id from mined where source = '{source}'"
    precision, recall, number = figures(world, found, wanted)
    print(f"\n{source}: {number} pairs, precision {precision:.3f}, recall {recall:.3f} (theta errs in 5 % of pairs)")
    assert number > 100
    assert recall > 0.9  # the discriminator loses 5 %
    assert precision > (0.9 if source == "P1" else 0.5)  # most of a feed is about something else


def test_clicked_is_more_relevant_than_shown_than_ranked_than_filtered(world):
    share = {}
    for source in ("P0", "X3", "U2", "F1"):
        found = f"select distinct query, item_id from mined where source = '{source}'"
        share[source] = figures(world, found, "select * from relevant")[0]
    print("\nshare of relevant pairs:", {source: round(value, 3) for source, value in share.items()})
    assert share["P0"] > share["X3"] > share["U2"] > share["F1"]
