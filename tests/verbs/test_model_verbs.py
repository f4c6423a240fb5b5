"""Every verb from train to export once, on a shop in small: what it wrote, against loops over vectors and rows."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from shop import command, flip, judgments, manifest, texts
from tiny import WORDS, metrics

from crops_jax import build_index, encode, evaluate, preflight, train, verify
from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import fingerprint, seal, write_manifest
from crops_jax.batch import Tokens
from crops_jax.errors import InputError
from crops_jax.mining.testsets import SETS
from crops_jax.models import dual_encoder, sentence_encoder
from crops_jax.parallel.config import MeshConfig
from crops_jax.retrieval.blocks import load_index
from crops_jax.retrieval.bm25 import BM25Searcher
from crops_jax.retrieval.config import BM25Config
from crops_jax.retrieval.vectors import open_embeddings
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.trained import settings, trained_experiment, trained_model
from crops_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def alone(shop):
    """encode(tower, texts): vectors of whole rows, without encode's batches, buckets and parts."""
    model = jax.tree.map(np.asarray, trained_model(shop, jax.make_mesh((8,), ("data",))))
    tower_of, tokenizer = jax.jit(dual_encoder.encode, static_argnums=1), featurizer_of(shop)

    def vectors(tower, chosen):
        rows = tokenizer.encode_queries(chosen) if tower == "query" else tokenizer.encode_documents(chosen)
        return np.asarray(tower_of(model, tower, Tokens(*rows)))

    return vectors


def embedded(e):
    """(ids, vectors) of the arm's embeddings."""
    read = open_embeddings(e.arm_folder("embeddings")).read()
    return read.ids, read.vectors


def test_train_follows_its_schedule_and_keeps_what_it_should(shop):
    lines = metrics(shop)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    # Two steps of warm-up from zero, then half a cosine over four.
    rates = [0, 0.005, *(0.01 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4))]
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates, rel=1e-5)
    assert lines[0]["update_norm"] == 0 < lines[1]["update_norm"] and lines[0]["tau"] == pytest.approx(0.1)
    assert all(0.01 <= line["tau"] <= 1 for line in lines) and lines[2]["tau"] != lines[1]["tau"]
    assert [line["step"] for line in lines if "validation_recall_3" in line] == [2, 4, 6]
    folder = shop.arm_folder("train")
    made = manifest(folder)
    assert made["kind"] == "train" and made["counts"] == {"steps": 6, "rounds": 1, "best_step": 6}
    assert made["inputs"]["records"]["sha256"] == fingerprint(shop.arm_folder("records"))
    assert made["config"] == json.loads(json.dumps(train.settings(shop)))
    scores = {line["step"]: line["validation_recall_3"] for line in lines if line["step"] % 2 == 0}
    best = max(scores, key=lambda step: (scores[step], step))
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == sorted({4, 6, best})
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_encode_gives_every_item_the_towers_vector_of_its_whole_text(shop, alone):
    folder, of_item = shop.arm_folder("embeddings"), texts(shop.text.field_order)
    ids, vectors = embedded(shop)
    assert ids.tolist() == sorted(of_item) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, alone("document", [of_item[i] for i in ids.tolist()]), atol=1e-5)
    lengths = featurizer_of(shop).encode([of_item[i] for i in (25, 26, 27)], 99).length
    assert 20 < lengths[0] < lengths[1] == shop.text.max_doc_tokens < lengths[2]  # 20 is the largest bucket
    assert np.abs(vectors - alone("query", [of_item[i] for i in ids.tolist()])).max() > 0.01
    made = manifest(folder)
    assert made["counts"] == {"items": len(of_item), "width": 16, "items_without_text": 1, "parts": 3}
    counts = [manifest(part)["counts"] for part in sorted(folder.glob("part-*"))]
    assert [(count["items"], count["items_without_text"]) for count in counts] == [(10, 0), (10, 0), (7, 1)]
    assert made["config"] == json.loads(json.dumps(settings(trained_experiment(shop))))
    sources = {"train": shop.arm_folder("train"), "logs": shop.folder("logs")}
    assert {name: entry["sha256"] for name, entry in made["inputs"].items()} == {
        name: fingerprint(path) for name, path in sources.items()
    }
    assert not list(folder.parent.glob(".embeddings*"))


def test_a_killed_encode_keeps_its_parts_and_another_model_or_corpus_does_not(own_shop, monkeypatch):
    before, whole, calls = embedded(own_shop)[1], encode.encode_rows, []

    def dies_in_the_second_part(*args):
        calls.append(len(args[2].length))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(encode, "encode_rows", dies_in_the_second_part)
    with pytest.raises(KeyboardInterrupt):
        encode.run(own_shop)
    encode.run(own_shop)
    assert calls == [10, 10, 10, 7]
    np.testing.assert_array_equal(embedded(own_shop)[1], before)
    for kind, folder in (("logs", own_shop.folder("logs")), ("train", own_shop.arm_folder("train"))):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            encode.run(own_shop)
        seal(folder, kind=kind, config=manifest(folder)["config"], inputs={}, counts={"another": 1})
        encode_again(own_shop, calls, [10, 10, 7])
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        encode.run(own_shop)
    encode_again(replace(own_shop, encode=replace(own_shop.encode, part=9)), calls, [9, 9, 8, 1])
    seal(folder, kind="train", config=manifest(folder)["config"], inputs={}, counts={"a third": 1})
    with pytest.raises(InputError, match="was made from another"):
        build_index.run(own_shop)


def encode_again(e, calls, parts):
    """All of these parts, although a killed run had finished one."""
    calls[:] = [0] * 5
    encode.run(e)
    assert calls[5:] == parts


def test_build_index_holds_the_embeddings_under_their_ids(shop, own_shop):
    folder, embeddings = shop.arm_folder("index"), shop.arm_folder("embeddings")
    ids, vectors = embedded(shop)
    made = manifest(folder)
    assert made["counts"] == {"documents": len(ids), "width": 16, "kind": "brute force"}
    assert made["config"] == build_index.settings(shop)
    assert made["inputs"]["embeddings"]["sha256"] == fingerprint(embeddings)
    found, scores = load_index(folder).search(vectors, 1)
    nearest = (vectors @ vectors.T).argmax(axis=1)
    assert found[:, 0].tolist() == ids[nearest].tolist()
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-4)
    build_index.run(replace(own_shop, index=replace(own_shop.index, brute_force_below=0, leaves=3)))
    assert manifest(own_shop.arm_folder("index"))["counts"]["kind"] == "tree"
    flip(own_shop.arm_folder("embeddings") / "part-00001/vectors.npy")
    with pytest.raises(InputError, match="bytes have changed"):
        build_index.run(own_shop)


def ranked(scores, ids):
    return [ids[k] for k in np.lexsort((ids, -scores))]


def truth(e):
    """set -> [(event, query, items)] from the test sets' rows."""
    found = {}
    for name in ("ct", "qr", "unexposed"):
        events = {}
        for row in pq.read_table(e.folder("testsets") / f"{name}.parquet").to_pylist():
            events.setdefault((row.get("event_id", row["query"]), row["query"]), set()).add(row["item_id"])
        found[name] = [(event, query, items) for (event, query), items in sorted(events.items())]
    return found


def by_hand(e, lists, score_of):
    """What results.json says in its recall and ndcg, from every query's ranked items."""
    trained_on = {*WORDS, *(f"{word} kit" for word in WORDS)}
    kept = {"all": {True, False}, "seen": {True}, "unseen": {False}}
    recall, ndcg = {}, {"judged": {}, "full": {}}
    for name, label in (("ct", "CT"), ("qr", "QR"), ("unexposed", "unexposed")):
        for split, wanted in kept.items():
            for k in e.evaluate.cutoffs:
                values = [len(items & {*lists[query][:k]}) / len(items) for _, query, items in truth(e)[name]
                          if (query in trained_on) in wanted]  # fmt: skip
                recall[label, split, str(k)] = np.mean(values) if values else None
    grades = {}
    for row in judgments():
        grades.setdefault(row["query"], {})[row["item_id"]] = row["grade"]
    at = e.evaluate.ndcg_at
    for protocol in ndcg:
        values = []
        for query, of_item in grades.items():
            order = sorted(of_item, key=lambda i, q=query: (-score_of(q, i), i))
            chosen = order if protocol == "judged" else lists[query]
            gains = [sum((2**g - 1) / math.log2(n + 2) for n, g in enumerate(labels[:at])) for labels in
                     ([of_item.get(i, 0) for i in chosen], sorted(of_item.values(), reverse=True))]  # fmt: skip
            values.append(gains[0] / gains[1])
        ndcg[protocol] = np.mean(values)
    return recall, ndcg


def check_results(results, recall, ndcg):
    assert {(s, p, k): results["recall"][s][p][k]["value"] for s, p, k in recall} == pytest.approx(recall)
    found = {protocol: results["ndcg"][protocol]["all"]["value"] for protocol in ndcg}
    assert found == pytest.approx(ndcg, rel=1e-5)
    assert results["cutoffs"] == [3, 5] and results["ndcg_at"] == 3


def test_evaluate_ranks_what_the_vectors_rank(shop, alone):
    ids, vectors = embedded(shop)
    queries = sorted({query for events in truth(shop).values() for _, query, _ in events})
    scores = dict(zip(queries, alone("query", queries) @ vectors.T, strict=True))
    lists = {query: ranked(row, ids) for query, row in scores.items()}
    recall, ndcg = by_hand(shop, lists, lambda query, item: scores[query][np.searchsorted(ids, item)])
    assert recall["CT", "seen", "5"] != recall["CT", "unseen", "5"] and recall["QR", "unseen", "5"] is None
    results = evaluate.read_results(shop.arm_folder("eval"))
    check_results(results, recall, ndcg)
    assert (results["arm"], results["queries_searched"], results["queries_seen"]) == ("An arm", 13, 8)
    scann = results["scann"]
    assert (scann["recall_against_exact"], scann["k"], scann["queries"], scann["documents"]) == (1, 5, 13, len(ids))
    compact = results["compact"]
    assert (compact["k"], compact["queries"]) == (5, 13)
    assert [(row["width"], row["form"], row["bytes"]) for row in compact["rows"]][:5] == [
        (16, "float32", 64), (16, "int8", 16), (16, "binary", 2), (16, "binary, rescored", 2), (8, "float32", 32)
    ]  # fmt: skip
    assert compact["rows"][0]["recall"] == pytest.approx({name: recall[name, "all", "5"] for name in ("CT", "QR")})
    assert (shop.arm_folder("eval") / "compact.svg").read_text().startswith("<svg")
    rows = pq.read_table(shop.arm_folder("eval") / "per_query.parquet").to_pylist()
    events = [row for row in rows if (row["set"], row["metric"]) == ("CT", "recall@5")]
    assert {(row["event_id"], row["query"], row["seen"]): row["value"] for row in events} == {
        (event, query, query in WORDS): len(items & {*lists[query][:5]}) / len(items)
        for event, query, items in truth(shop)["ct"]
    }
    made = manifest(shop.arm_folder("eval"))
    assert made["config"] == json.loads(json.dumps(evaluate.settings(shop)))
    assert {name: entry["sha256"] for name, entry in made["inputs"].items()} == {
        name: fingerprint(path) for name, path in evaluate.inputs(shop).items()
    }
    assert {*made["inputs"]} == {"logs", "testsets", "train", "embeddings", "index"}


def test_bm25_is_ranked_beside_it_on_the_whole_texts(shop):
    of_item = texts()
    ids = np.array(sorted(of_item))
    searcher = BM25Searcher(ids, [of_item[i] for i in ids.tolist()], shop.bm25)
    queries = sorted({query for events in truth(shop).values() for _, query, _ in events})
    scores = {query: searcher.scores(query) for query in queries}
    lists = {query: [i for i in ranked(row, ids) if row[np.searchsorted(ids, i)] > 0] for query, row in scores.items()}
    results = evaluate.read_results(evaluate.bm25_folder(shop))
    check_results(results, *by_hand(shop, lists, lambda query, item: scores[query][np.searchsorted(ids, item)]))
    assert results["arm"] == "BM25" and "scann" not in results and "compact" not in results
    made = manifest(evaluate.bm25_folder(shop))
    assert {*made["inputs"]} == {"logs", "testsets"}
    assert made["config"] == json.loads(json.dumps(evaluate.bm25_settings(shop)))


def test_results_whose_bytes_have_changed_are_no_results(own_shop):
    results = evaluate.run_bm25(own_shop) / "results.json"
    results.write_text(results.read_text().replace('"arm"', '"arn"', 1))
    with pytest.raises(InputError, match=r"results\.json: is missing, or its bytes have changed since it was written"):
        evaluate.read_results(results.parent)


def test_test_sets_of_other_logs_are_refused(own_shop):
    made = manifest(own_shop.folder("testsets"))
    made["inputs"]["logs"]["sha256"] = "0" * 64
    write_manifest(own_shop.folder("testsets"), made)
    for what in (evaluate.run, evaluate.run_bm25):
        with pytest.raises(
            InputError, match=r"was made from another .*logs; make it again with `python -m crops_jax.mine"
        ):
            what(own_shop)


def test_a_validation_day_is_evaluated_beside_the_test_day(own_shop):
    """Its sets here are those of the test day without all but three words."""
    chosen = set(WORDS[:3])
    made_from = {"logs": own_shop.folder("logs")}
    with write_folder(own_shop.folder("validation_sets"), kind="validation_sets", inputs=made_from) as out:
        for name in SETS:
            rows = pq.read_table(own_shop.folder("testsets") / f"{name}.parquet")
            rows = rows.filter([query in chosen for query in rows["query"].to_pylist()])
            pq.write_table(rows, out / f"{name}.parquet", write_page_checksum=True)
    of_test = own_shop.arm_folder("eval"), evaluate.bm25_folder(own_shop)
    before = [fingerprint(folder) for folder in of_test]
    found = evaluate.run(own_shop, "validation"), evaluate.run_bm25(own_shop, "validation")
    assert [fingerprint(folder) for folder in of_test] == before
    for folder, other in zip(found, of_test, strict=True):
        rows, all_rows = (pq.read_table(path / "per_query.parquet").to_pylist() for path in (folder, other))
        assert rows == [row for row in all_rows if row["query"] in chosen or row["set"] == "judgments"]
        made = manifest(folder)["inputs"]
        assert made["validation_sets"]["sha256"] == fingerprint(own_shop.folder("validation_sets"))
        assert "testsets" not in made
    assert evaluate.read_results(found[0])["scann"]["queries"] == 3


def test_evaluate_obeys_its_settings_and_refuses_what_is_stale(own_shop, capsys, monkeypatch):
    configs = []
    monkeypatch.setattr(evaluate, "BM25Searcher", lambda *args: configs.append(args[2]) or BM25Searcher(*args))
    settings = replace(own_shop.evaluate, cutoffs=(2,), ndcg_at=1, scann=False, compact=False)
    shutil.rmtree(own_shop.arm_folder("index"))
    command(evaluate, replace(own_shop, evaluate=settings, bm25=BM25Config(k1=0.0, b=0.0)))
    assert configs == [BM25Config(k1=0.0, b=0.0)]
    said = capsys.readouterr().out
    assert "Recall@2 CT" in said and "NDCG@1" in said and "An arm" in said and "BM25" in said
    results = evaluate.read_results(own_shop.arm_folder("eval"))
    assert results["cutoffs"] == [2] and results["ndcg_at"] == 1
    assert "scann" not in results and "compact" not in results
    with pytest.raises(InputError, match="build_index"):
        evaluate.run(own_shop)
    build_index.run(own_shop)
    made = manifest(own_shop.arm_folder("embeddings"))
    right = {"train": own_shop.arm_folder("train"), "logs": own_shop.folder("logs")}
    for wrong in ({"train": right["logs"]}, {"logs": right["train"]}):
        sealed = {"kind": "embeddings", "config": made["config"], "inputs": right | wrong, "counts": {}}
        seal(own_shop.arm_folder("embeddings"), **sealed)
        with pytest.raises(InputError, match=r"was made from another .*; make it again with `.*encode"):
            evaluate.run(own_shop)
    seal(own_shop.arm_folder("embeddings"), **sealed | {"inputs": right})
    build_index.run(own_shop)
    flip(own_shop.folder("testsets") / "ct.parquet")
    for run in (evaluate.run, evaluate.run_bm25):
        with pytest.raises(InputError, match="bytes have changed"):
            run(own_shop)


def test_export_gives_the_vectors_that_were_searched(shop, alone):
    folder = shop.arm_folder("export")
    vectors, of_item = embedded(shop)[1], texts(shop.text.field_order)
    documents, queries = (sentence_encoder.load(folder / f"{tower}_tower") for tower in ("document", "query"))
    np.testing.assert_allclose(documents.encode([of_item[i] for i in sorted(of_item)]), vectors, atol=1e-4)
    asked = [*WORDS, "a query that is longer than eight tokens"]
    np.testing.assert_allclose(queries.encode(asked), alone("query", asked), atol=1e-4)
    limits = [json.loads((folder / f"{t}_tower/sentence_bert_config.json").read_text())["max_seq_length"]
              for t in ("query", "document")]  # fmt: skip
    assert limits == [8, 30]
    made = manifest(folder)
    assert made["config"] == json.loads(json.dumps(settings(trained_experiment(shop))))
    assert made["inputs"]["train"]["sha256"] == fingerprint(shop.arm_folder("train"))
    assert 0 <= made["counts"]["query_golden_difference"] < 1e-4


def test_verify_reads_every_byte_below_the_folders_it_is_given(own_shop, capsys):
    command(verify, None, own_shop.workdir)
    ok = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ok")]
    kinds = "logs mined testsets tokenizer records train embeddings index eval eval export bundle".split()  # noqa: SIM905
    assert sorted(line.split("(")[1].split(",")[0] for line in ok) == sorted(kinds)
    flip(own_shop.arm_folder("eval") / "per_query.parquet")
    (own_shop.arm_folder("index") / "ids.npy").unlink()
    with pytest.raises(InputError) as error:
        command(verify, None, own_shop.workdir)
    assert len(error.value.problems) == 2
    said = capsys.readouterr().out
    assert said.count("BAD") == 2 and said.count("ok  ") == len(kinds) - 2
    for nothing, told in (([], "usage"), ([str(Path(own_shop.workdir) / "nowhere")], "no manifest.json found")):
        with pytest.raises(InputError, match=told):
            command(verify, None, *nothing)


def test_preflight_says_what_it_found_and_leaves_with_2_where_something_is_wrong(shop, capsys):
    command(preflight, shop)
    assert "problem" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        command(preflight, replace(shop, mesh=MeshConfig(tensor=2)))
    said = capsys.readouterr().out
    assert end.value.code == 2 and "problem  mesh" in said and "1 KV heads" in said
