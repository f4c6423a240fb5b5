"""The rounds of mined negatives, opened one by one: whose neighbours are drawn, how, and when they are drawn again."""

from dataclasses import replace

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from hand_logs import rewrite
from shop import seal_again
from tiny import WORDS, sparse, tiny_experiment, with_logs

from crops_jax.artifacts.folders import write_folder
from crops_jax.baselines.config import NegativesConfig
from crops_jax.baselines.groups import Clicks
from crops_jax.errors import InputError
from crops_jax.labels import LOG_ONLY, levels
from crops_jax.logs.schema import COUNTERS
from crops_jax.logs.tables import write_table
from crops_jax.losses.config import HInfoNCEConfig
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.mining.knowledge import KNOWLEDGE_SCHEMA
from crops_jax.parallel.sharding import make_mesh
from crops_jax.records import RecordsConfig, RecordsReader
from crops_jax.records.provenance import labels_json
from crops_jax.retrieval.config import BM25Config
from crops_jax.retrieval.corpus import read_corpus
from crops_jax.retrieval.embedding import as_rows, encode_rows
from crops_jax.runs import mined_negatives
from crops_jax.runs.dual_encoder import seed_of
from crops_jax.runs.folder import settings
from crops_jax.runs.task import folder_of_round
from crops_jax.runs.tasks import task_of
from crops_jax.text.featurizer import encode_documents


@pytest.fixture
def arm(tmp_path):
    """An arm whose first round needs no model; its second begins at a checkpoint that is there."""
    arm = with_logs(sparse(tiny_experiment(tmp_path)))
    for step in (8, 16):
        with write_folder(arm.arm_folder("train") / "checkpoints" / str(step), kind="checkpoint"):
            pass
    return replace(arm, negatives=NegativesConfig(ranker="bm25", rounds=3, top=6, count=2))


def opened(arm, number=0, again=False, model=None):
    """(folder, its groups by request) of a round after it was opened."""
    task = task_of(arm)
    task.open(task.rounds[number], model, make_mesh(arm.mesh), again)
    folder = folder_of_round(arm.arm_folder("train"), task.rounds[number])
    reader = RecordsReader(folder)
    return folder, {group.request_id: group for group in reader.read(range(len(reader)))}


def negatives(groups):
    return {request: group.item_id[1:].tolist() for request, group in groups.items()}


def nearest_by_the_model(arm, model, top):
    """query -> ids of the documents of the largest products, without the known."""
    mesh, task, corpus = make_mesh(arm.mesh), task_of(arm), read_corpus(arm.folder("logs"))
    clicks = Clicks.read(arm.folder("mined") / "candidates.parquet")
    queries = as_rows(task.featurizer.encode_queries(clicks.queries))
    documents = as_rows(encode_documents(task.featurizer, corpus.item_ids, corpus.keywords, corpus.texts))
    q = encode_rows(model, "query", queries, arm.encode, mesh)
    d = encode_rows(model, "document", documents, arm.encode, mesh)
    order = corpus.item_ids[np.argsort(-(q @ d.T), axis=1, kind="stable")]
    rows = zip(clicks.queries, order, clicks.known, strict=True)
    return {query: set(row[~np.isin(row, known)][:top].tolist()) for query, row, known in rows}


def test_the_models_negatives_are_drawn_from_so_many_of_its_nearest_and_no_others(arm):
    arm = replace(arm, negatives=NegativesConfig(top=3, count=2))
    with jax.set_mesh(mesh := make_mesh(arm.mesh)):
        model = task_of(arm).first_model(mesh)
        _, groups = opened(arm, model=model)
        nearest = nearest_by_the_model(arm, model, 3)
    drawn = {query: set() for query in nearest}
    for group in groups.values():
        drawn[group.query] |= set(group.item_id[1:].tolist())
    assert len(nearest) == len(WORDS) and drawn == nearest


def test_bm25s_negatives_are_drawn_from_so_many_of_its_nearest_and_no_others(arm):
    _, groups = opened(replace(arm, negatives=NegativesConfig(ranker="bm25", top=3, count=2)))
    for word in WORDS:
        assert len({item for g in groups.values() if g.query == word for item in g.item_id[1:].tolist()}) == 3


def test_each_round_draws_anew_where_the_ranking_stays(arm):
    first, second = (negatives(opened(arm, number)[1]) for number in (0, 1))
    assert first.keys() == second.keys() and first != second
    assert negatives(opened(replace(arm, seed=5, name="other"))[1]) != first


def test_a_round_that_was_made_is_kept_until_what_it_is_made_from_changes(arm):
    def made(arm):
        return (opened(arm)[0] / "manifest.json").stat().st_ino

    first = made(arm)
    assert made(arm) == first
    narrower = replace(arm, negatives=replace(arm.negatives, top=5))
    assert (second := made(narrower)) != first
    table = arm.folder("mined") / "candidates.parquet"
    pq.write_table(pq.read_table(table).slice(1), table)
    seal_again(arm.folder("mined"), logs=arm.folder("logs"))
    assert made(narrower) != second


def test_a_run_goes_on_within_a_round_with_the_groups_that_it_began_with_alone(arm):
    _, groups = opened(arm)
    assert negatives(opened(arm, again=True)[1]) == negatives(groups)
    with pytest.raises(InputError, match="0000: holds another round; put the folder back"):
        opened(replace(arm, negatives=replace(arm.negatives, top=5)), again=True)


def with_items(arm, **fields):
    """The arm with fields of its items by a function of their id; it reads covers alone."""

    def change(table):
        for name, of in fields.items():
            texts = [of(i) for i in table["item_id"].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, [texts])
        return table

    rewrite(arm.folder("logs"), "items", change)
    seal_again(arm.folder("logs"))
    seal_again(arm.folder("mined"), logs=arm.folder("logs"))
    return replace(arm, text=replace(arm.text, field_order=("ocr_cover",)))


def test_rounds_rank_the_text_that_the_model_reads(arm):
    """Every item says a word that is not in its cover many times in its keywords."""
    _, groups = opened(with_items(arm, keyword=lambda i: "|".join([WORDS[(i + 1) % 8]] * 9)))
    for group in groups.values():
        assert all(group.query in cover for cover in group.ocr_cover)


def test_documents_that_the_model_cannot_tell_apart_are_one_in_a_round(arm):
    """Items of the same word up to 23, and from 24 on, have one cover; their keywords differ."""
    arm = with_items(arm, ocr_cover=lambda i: f"{WORDS[i % 8]} {i // 24}", keyword=str)
    _, groups = opened(replace(arm, negatives=replace(arm.negatives, count=3)))
    keys = {}
    for group in groups.values():
        assert group.ocr_cover[1:].count(f"{group.query} 0") == 0  # the text of what was clicked
        assert group.ocr_cover.count(f"{group.query} 1") <= 1
        keys |= zip(group.item_id.tolist(), group.doc_key.tolist(), strict=True)
    assert any(i + 8 in keys for i in keys if i >= 24)
    assert all(keys[i] == keys[i + 8] for i in keys if i >= 24 and i + 8 in keys)


def test_what_fills_up_a_group_is_no_copy_of_a_click_either(arm):
    """Items j and 8 + j were clicked for a word, 16 + j has the text of the latter, and nobody else says the word."""

    def cover(i):
        return f"{WORDS[i % 8]} {min(i // 8, 1)}" if i < 24 else f"oak {i}"

    _, groups = opened(replace(with_items(arm, ocr_cover=cover), negatives=replace(arm.negatives, count=3)))
    for group in groups.values():
        assert not any(group.query in text for text in group.ocr_cover[1:])


def test_bm25_ranks_with_the_settings_of_the_arm(arm):
    """Beside what was clicked, item 16 + j says a word twice in a long text, and 24 + j once in a short one."""

    def cover(i):
        word = WORDS[i % 8]
        return {0: word, 1: word, 2: f"{word} {word}" + " oak" * 30, 3: f"{word} once"}.get(i // 8, "oak")

    arm = with_items(arm, ocr_cover=cover)
    arm = replace(arm, negatives=NegativesConfig(ranker="bm25", top=1, count=1))
    for b, first in ((0.0, 16), (1.0, 24)):
        _, groups = opened(replace(arm, name=f"b-{b}", bm25=BM25Config(b=b)))
        assert {group.item_id[1] - WORDS.index(group.query) for group in groups.values()} == {first}


def test_what_a_language_model_wrote_stays_in_graded_groups(arm):
    written = [{"query": "pump", "item_id": -5, "ocr_cover": "pump and hose", **dict.fromkeys(COUNTERS)}]
    mined, logs = arm.folder("mined"), arm.folder("logs")
    rows = pq.read_table(mined / "candidates.parquet").to_pylist()
    rows.append(dict.fromkeys(rows[0]) | {"query": "pump", "item_id": -5, "source": "P3"})
    rows.sort(key=lambda row: row["query"])
    with write_folder(mined, kind="mined", inputs={"logs": logs}) as out:
        for schema, table, name in ((CANDIDATES_SCHEMA, rows, "candidates"), (KNOWLEDGE_SCHEMA, written, "knowledge")):
            columns = {field: [row.get(field) for row in table] for field in schema.names}
            write_table(schema, columns, out / f"{name}.parquet")
    graded = NegativesConfig(ranker="bm25", top=6, count=1, graded=True)
    slots = replace(arm.input, docs_per_query=arm.labels.group_size + 1)
    _, groups = opened(replace(arm, loss=HInfoNCEConfig(min_anchor_label=2), negatives=graded, input=slots))
    assert {request for request, group in groups.items() if -5 in group.item_id} == {
        request for request, group in groups.items() if group.query == "pump"
    } != set()  # fmt: skip


def test_rounds_are_tokenised_where_the_config_says_so(tmp_path):
    arm = with_logs(tiny_experiment(tmp_path))
    arm = replace(arm, negatives=NegativesConfig(ranker="bm25", top=6, count=2))
    for tokenize in (True, False):
        folder, _ = opened(replace(arm, name=str(tokenize), records=RecordsConfig(shards=2, tokenize=tokenize)))
        assert (RecordsReader(folder).token_ids is not None) == tokenize


def test_the_triangle_is_that_of_the_query_a_click_and_the_documents_by_the_models_own_tau(arm, monkeypatch):
    """Clicked items lie at the cosine 0.8 with every query; 16 to 23 lean beyond them, the others to the other side."""
    positive, beyond, other_side = [0.8, 0.6], [0.6, 0.8], [0.8, -0.6]
    documents = np.array([positive] * 16 + [beyond] * 8 + [other_side] * 16, np.float32)
    towers = {"query": np.array([[1, 0]] * 8, np.float32), "document": documents}
    monkeypatch.setattr(mined_negatives, "encode_rows", lambda model, tower, *_: towers[tower])
    monkeypatch.setattr(mined_negatives.dual_encoder, "tau", lambda model: 0.05)

    def drawn(shortlist):
        config = NegativesConfig(draw="triangle", top=40, count=1, shortlist=shortlist)
        _, groups = opened(replace(arm, name=f"short-{shortlist}", negatives=config))
        return np.array([group.item_id[1] for group in groups.values()])

    by_both = drawn(40)  # nothing that is as near to the query as to the click
    assert (by_both < 24).all() and (by_both >= 16).any()
    by_the_first = drawn(1)  # what is as near to the query as the click is, on whatever side
    assert ((by_the_first < 16) | (by_the_first >= 24)).all() and (by_the_first >= 24).any()


def test_the_triangle_has_as_many_negatives_where_a_query_has_fewer_near(arm, monkeypatch):
    """All items but those clicked and the last five have the text of a click, which is no negative."""
    clicked = {int(item) for items in Clicks.read(arm.folder("mined") / "candidates.parquet").known for item in items}
    arm = with_items(arm, ocr_cover=lambda i: f"oak {i}" if i in clicked or i > 34 else "oak 0")
    config = NegativesConfig(draw="triangle", top=1, count=1)
    with jax.set_mesh(mesh := make_mesh(arm.mesh)):
        model = task_of(arm).first_model(mesh)
        monkeypatch.setattr(
            mined_negatives, "nearest_negatives", lambda search, known, *_: [np.zeros(0, int)] * len(known)
        )
        _, groups = opened(replace(arm, negatives=config), model=model)
    assert {len(group.item_id) for group in groups.values()} == {2}


def test_rounds_of_neighbouring_seeds_share_no_draw():
    seeds = {seed_of(seed, number) for seed in range(5) for number in range(10)}
    assert len(seeds) == 50 and [seed_of(seed, 0) for seed in range(5)] == [0, 1, 2, 3, 4]


def test_graded_groups_of_one_anchor_are_refused(arm):
    labels = replace(arm.labels, one_anchor=True)
    with pytest.raises(InputError, match=r"graded = True and labels\.one_anchor"):
        task_of(
            replace(
                arm, labels=labels, negatives=NegativesConfig(graded=True), input=replace(arm.input, docs_per_query=16)
            )
        )


@pytest.mark.parametrize(("changed", "found"), [({"P0": 3}, "P0: 3, N1: 1"), ({"N1": 4}, "P0: 4, N1: 4")])
def test_of_a_click_and_its_negatives_the_click_alone_is_positive(arm, changed, found):
    labels = replace(arm.labels, levels=levels(**changed))
    with pytest.raises(InputError, match=rf"labels\.levels \({found}\): only P0 has to reach labels\.min_positive, 4"):
        task_of(replace(arm, labels=labels))


def test_shards_that_lack_a_source_of_today_are_read_and_those_of_another_label_are_not(arm, monkeypatch):
    written = labels_json(arm.labels)
    del written["levels"]["N1"]
    monkeypatch.setattr(RecordsReader, "labels", written)
    task_of(replace(arm, negatives=None)).identity()
    for changed, said in (
        ({"caps": written["caps"] | {"X3": 9}}, r"labels\.caps: written with .*'X3': 9"),
        ({"one_anchor": True}, r"labels\.one_anchor: written with True, and False is asked for"),
        ({"sources": list(LOG_ONLY)}, r"labels\.sources: the groups are read with P0, X3, U2, F1, and P0, P1, P2"),
    ):
        monkeypatch.setattr(RecordsReader, "labels", written | changed)
        with pytest.raises(InputError, match=said):
            task_of(replace(arm, negatives=None)).identity()
        task_of(arm).identity()  # which draws its groups itself
    fewer = replace(arm, negatives=None, labels=replace(arm.labels, sources=LOG_ONLY))
    task_of(fewer).identity()
    monkeypatch.setattr(RecordsReader, "labels", written)
    with pytest.raises(InputError, match=r"labels\.sources: the groups are read with P0, P1, P2"):
        task_of(fewer).identity()
    written["levels"]["P1"] = 3
    with pytest.raises(InputError, match=r"labels\.levels: written with .*'P1': 3.*'P1': 5.* is asked for"):
        task_of(replace(arm, negatives=None)).identity()


def test_a_run_whose_negatives_bm25_finds_is_another_with_another_k1(arm):
    def told(e):
        return settings(replace(e, bm25=replace(e.bm25, k1=0.4)))

    assert told(arm) != settings(arm)
    assert told(replace(arm, negatives=None)) == settings(replace(arm, negatives=None))
