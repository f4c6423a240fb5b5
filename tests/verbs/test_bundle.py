"""The bundle of the shop: every part is that of the verb that made it, and the evidence is that of its logs."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import item, write
from shop import KITS, MINED, command, manifest, seal_again, texts
from tiny import WORDS

from crops_jax import build_index, bundle
from crops_jax.artifacts.manifest import fingerprint, seal, verify
from crops_jax.errors import InputError
from crops_jax.handover import bundle as handover_bundle
from crops_jax.labels import PAPER
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.retrieval.vectors import open_embeddings
from crops_jax.serving.evidence import Evidence


def test_a_bundle_holds_what_the_verbs_made(shop):
    folder = shop.arm_folder("bundle")
    made = verify(folder)
    assert made["kind"] == "bundle" and made["config"]["title"] == "An arm"
    assert made["config"]["sources"] == list(PAPER)
    kinds = ("export", "embeddings", "eval", "index")
    assert {name: entry["sha256"] for name, entry in made["inputs"].items()} == {
        name: fingerprint(shop.arm_folder(name) if name in kinds else shop.folder(name))
        for name in (*kinds, "logs", "mined")
    }
    export, embeddings = shop.arm_folder("export"), shop.arm_folder("embeddings")
    for entry in manifest(export)["files"]:
        assert (folder / entry["path"]).read_bytes() == (export / entry["path"]).read_bytes()
    np.testing.assert_array_equal(np.load(folder / "vectors.npy"), open_embeddings(embeddings).read().vectors)
    assert fingerprint(folder / "index") == fingerprint(shop.arm_folder("index"))
    items = pa.ipc.open_file(folder / "items.arrow").read_all().to_pylist()
    assert [row["item_id"] for row in items] == np.load(folder / "ids.npy").tolist() == sorted(texts())
    assert items[4]["ocr_cover"] == f"{WORDS[1]} 4" and items[4]["keyword"] == f"k4|{WORDS[1]}"
    assert json.loads((folder / "eval" / "results.json").read_text())["arm"] == "An arm"
    assert made["counts"]["search"] == "scann" and made["counts"]["documents"] == len(items)


def test_texts_are_written_slice_by_slice_from_parts_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(handover_bundle, "_ROWS", 3)
    known = np.random.default_rng(0).permutation(20)
    for number, part in enumerate(np.split(known, [4, 5, 11])):
        write(tmp_path / f"items.parquet/part-{number}.parquet", "items", [item(int(i), f"text {i}") for i in part])
    for ids in (np.arange(1, 20, 2), np.arange(20), np.zeros(0, np.int64)):
        handover_bundle._write_items(tmp_path, ids, tmp_path / "items.arrow")
        with pa.ipc.open_file(tmp_path / "items.arrow") as file:
            sizes = [file.get_batch(n).num_rows for n in range(file.num_record_batches)]
            rows = file.read_all().to_pylist()
        assert [row["item_id"] for row in rows] == ids.tolist() and sum(sizes) == len(ids) and max(sizes, default=0) < 4
        assert all(row == {"item_id": i} | {f: item(i, f"text {i}")[f] for f in TEXT_FIELDS}
                   for i, row in zip(ids.tolist(), rows, strict=True))  # fmt: skip
    with pytest.raises(InputError, match="1 of the encoded items are missing"):
        handover_bundle._write_items(tmp_path, np.arange(21), tmp_path / "items.arrow")


def test_evidence_is_what_was_mined_from_the_logs(shop):
    """User j asks for word j, clicks 3j, then for a kit of it and likes 3j + 1; 3j + 2 was in the feed."""
    evidence = Evidence(shop.arm_folder("bundle") / "evidence", None)
    for j, word in enumerate(WORDS):
        asked, kit = evidence.query(word), evidence.query(f"{word} kit")
        assert (asked.searches, asked.written, asked.exemplar) == (1, 1, 3 * j)
        assert kit.written == (j < KITS)
        clicked, reworded, fed = evidence.pairs(word, [3 * j, 3 * j + 1, 3 * j + 2])
        assert "P0" in clicked.sources and (clicked.shown, clicked.clicked) == (1, 1)
        assert set(reworded.sources) == {"P1", "U2"} and reworded.reworded == f"{word} kit" and reworded.shown == 0
        assert (fed.sources, fed.feeds) == (("P2",), 1)
    rows = pq.read_table(shop.arm_folder("bundle") / "evidence" / "pairs.parquet")
    assert min(rows["item_id"].to_pylist()) >= 0, "what a language model wrote is never found"


def test_parts_of_another_run_are_refused_and_evidence_can_stay_at_home(own_shop, capsys):
    command(bundle, replace(own_shop, handover=replace(own_shop.handover, evidence=False)))
    assert not (own_shop.arm_folder("bundle") / "evidence").exists()
    assert "mined" not in manifest(own_shop.arm_folder("bundle"))["inputs"]
    logs, mined = own_shop.folder("logs"), own_shop.folder("mined")
    made = manifest(logs)
    seal(logs, kind="logs", config=made["config"], inputs={}, counts={"sealed": "anew"})
    with pytest.raises(InputError, match=r"embeddings: was made from another .*logs; make it again with .*encode"):
        bundle.run(own_shop)
    seal_again(own_shop.arm_folder("embeddings"), train=own_shop.arm_folder("train"), logs=logs)
    build_index.run(own_shop)
    own = {kind: own_shop.arm_folder(kind) for kind in ("train", "embeddings")}
    for known in (own | {"embeddings": own["train"]}, own):  # measured in another corpus, on other logs
        seal_again(own_shop.arm_folder("eval"), **known)
        with pytest.raises(InputError, match=r"eval: was made from another .*; make it again with .*evaluate"):
            bundle.run(own_shop)
    seal_again(own_shop.arm_folder("eval"), **own, logs=logs)
    with pytest.raises(InputError, match=r"mined: was made from another .*logs; make it again with .*mine"):
        bundle.run(own_shop)
    seal_again(mined, logs=logs)
    bundle.run(own_shop)  # mined again: another manifest, the same bytes
    pq.write_table(pq.read_table(mined / MINED[0]).slice(1), mined / MINED[0])
    seal_again(mined, logs=logs)
    with pytest.raises(InputError, match=r"records: was made from another .*mined; mine as it was, train on this"):
        bundle.run(own_shop)
    (own_shop.arm_folder("records") / "manifest.json").unlink()
    bundle.run(own_shop)
    assert "it cannot be told whether it learned from what is the evidence now" in capsys.readouterr().err
    folder = own_shop.arm_folder("train")
    seal(folder, kind="train", config=manifest(folder)["config"], inputs={}, counts={"made": "anew"})
    with pytest.raises(
        InputError, match=r"was made from another .*train; make it again with `python -m crops_jax\.export"
    ):
        bundle.run(own_shop)
