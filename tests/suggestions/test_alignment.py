"""Pairs of texts as records: which are drawn, what the trainer reads, and that training on them aligns an encoder."""

from dataclasses import replace

import jax
import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_experiment

from crops_jax import train
from crops_jax.artifacts.folders import write_folder
from crops_jax.engines import files
from crops_jax.errors import InputError
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.records import RecordsConfig, RecordsReader
from crops_jax.retrieval.embedding import as_rows, encode_rows
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.trained import trained_model
from crops_jax.suggestions.alignment import DOCUMENT_FIELD, _drawn, write_alignment_records
from crops_jax.suggestions.co_occurrence import PREFIX_QUERY, QUERY_QUERY
from crops_jax.suggestions.config import AlignmentConfig
from crops_jax.text.tokenizer import train_tokenizer

RECORDS = RecordsConfig(shards=1, validation_share=0)
PREFIXES = [("la", "lamp", 3, 0.9), ("la", "lava rock", 1, 0.2), ("灯", "lamp", 2, 0.1)]
QUERIES = [("lamp", "lava rock", 2, 0.5), ("Lava Rock", "lamp", 2, 0.5)]


def mined(folder, prefixes=PREFIXES, queries=QUERIES):
    """A folder of what is mined, each table in two parts."""
    with write_folder(folder, kind="mined_suggestions") as out:
        more = {"requests": 1}
        for name, schema, rows in (("prefix_query", PREFIX_QUERY, prefixes), ("query_query", QUERY_QUERY, queries)):
            texts = sorted({row[0] for row in rows})
            for part in range(2):
                names = schema.names[:4]
                of_part = [dict(zip(names, row, strict=True)) | more for row in rows if row[0] in texts[part::2]]
                table = pa.Table.from_pylist(of_part, schema)
                files.write(table.to_batches(), out / f"{name}/part-{part}.parquet", schema)
    return folder


def written(tmp_path, config=AlignmentConfig(), name="records", records=RECORDS, **given):  # noqa: B008
    with write_folder(tmp_path / name, kind="records") as out:
        counts = write_alignment_records(tmp_path / "mined", out, config, records, **given)
    reader = RecordsReader(tmp_path / name)
    return reader.read(range(len(reader))), counts


def told(found):
    return sorted((r.query, getattr(r, DOCUMENT_FIELD)[0]) for r in found)


def test_pairs_become_groups_of_one_document(tmp_path):
    mined(tmp_path / "mined")
    found, counts = written(tmp_path)
    assert told(found) == [("Lava Rock", "lamp"), ("la", "lamp"), ("la", "lava rock"), ("lamp", "lava rock"),
                           ("灯", "lamp")]  # fmt: skip
    for r in found:
        assert r.label.tolist() == [5] and r.source.tolist() == [0]
        assert all(getattr(r, name) == [""] for name in TEXT_FIELDS if name != DOCUMENT_FIELD)
    ids = {r.photo_caption[0]: (int(r.item_id[0]), int(r.doc_key[0])) for r in found}
    assert all(ids[r.photo_caption[0]] == (r.item_id[0], r.doc_key[0]) for r in found) and len({*ids.values()}) == 2
    keys = {r.query: r.query_key for r in found}
    assert keys["la"] not in (keys["灯"], keys["lamp"]) and len({r.request_id for r in found}) == 5
    nothing = {"few_users": 0, "low_score": 0, "over_the_cap": 0}
    assert counts["pairs"] == {"prefix_query": {"pairs": 3} | nothing, "query_query": {"pairs": 2} | nothing}
    assert counts["labels"] is None and counts["distinct_documents"] == 2


def test_weak_pairs_and_those_over_the_cap_are_left_out_and_counted(tmp_path):
    mined(tmp_path / "mined")
    found, counts = written(tmp_path, AlignmentConfig(min_users=2, min_score=0.15, per_query=0))
    assert told(found) == [("la", "lamp")]
    assert counts["pairs"] == {
        "prefix_query": {"pairs": 3, "few_users": 1, "low_score": 1, "over_the_cap": 0},
        "query_query": {"pairs": 2, "few_users": 0, "low_score": 0, "over_the_cap": 2},
    }
    found, _ = written(tmp_path, AlignmentConfig(per_prefix=0), "queries")
    assert told(found) == [("Lava Rock", "lamp"), ("lamp", "lava rock")]
    with pytest.raises(InputError, match="no pair of texts is left"):
        written(tmp_path, AlignmentConfig(min_users=9), "none")
    with pytest.raises(InputError, match="photo_caption it is"):
        written(tmp_path, name="other", fields=("ocr_cover",))
    with pytest.raises(InputError, match="both are 0"):
        AlignmentConfig(per_prefix=0, per_query=0)


def test_pairs_are_drawn_by_their_scores(tmp_path):
    """Of a and b with scores 3 and 1, a is the one drawn three times in four; three of three are all."""
    texts = pa.array(np.repeat([f"t{i}" for i in range(4_000)], 2))
    first = _drawn(texts, pa.array(["a", "b"] * 4_000), np.tile([3.0, 1.0], 4_000), 1, seed=0)
    assert len(first) == 4_000 and (first // 2 == np.arange(4_000)).all()
    assert (first % 2 == 0).mean() == pytest.approx(0.75, abs=0.02)
    again = _drawn(texts, pa.array(["a", "b"] * 4_000), np.tile([3.0, 1.0], 4_000), 1, seed=1)
    assert 1_000 < (again != first).sum() < 2_000, "3/4 * 1/4 * 2 = 3/8 of them"
    alone = _drawn(texts[10:14], pa.array(["a", "b"] * 2), np.tile([3.0, 1.0], 2), 1, seed=0)
    assert (alone + 10 == first[5:7]).all(), "a draw depends on its text's own pairs alone"
    assert _drawn(texts[:2], pa.array(["a", "b"]), np.ones(2), 3, 0).tolist() == [0, 1]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    many = [("p", f"q{i:02}", 1, 0.5) for i in range(20)]
    mined(tmp_path / "mined", many, [])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        found, counts = written(tmp_path, name=name, seed=seed)
        assert len(found) == 8 and counts["pairs"]["prefix_query"]["over_the_cap"] == 12
    a, b, c = (RecordsReader(tmp_path / name).fingerprint() for name in "abc")
    assert a == b != c


@pytest.mark.slow
def test_training_brings_prefixes_to_their_queries(tmp_path):
    """A dual encoder of two layers on the records: prefixes of one, two and three letters, eight queries."""
    words = ["pump", "lamp", "drill", "saw", "vase", "rope", "tile", "sink"]
    queries = [f"{a} {b}" for a, b in zip(words, words[3:] + words[:3], strict=True)]
    prefixes = [(q[:n], q, 2, 0.5) for q in queries for n in (1, 2, 3) if sum(o[:n] == q[:n] for o in queries) == 1]
    others = [(q, other, 1, 0.5) for q, other in zip(queries, queries[4:] + queries[:4], strict=True)]
    mined(tmp_path / "mined", prefixes, others)
    e = replace(tiny_experiment(tmp_path / "tiny"), workdir=str(tmp_path / "run"))
    e = replace(e, train=replace(e.train, steps=24), input=replace(e.input, docs_per_query=1))
    with write_folder(e.folder("tokenizer"), kind="tokenizer") as out:
        train_tokenizer(queries, 300, out / "tokenizer.json")
    with write_folder(e.arm_folder("records"), kind="records") as out:
        write_alignment_records(tmp_path / "mined", out, AlignmentConfig(), RECORDS, fields=e.text.field_order)

    def lead(steps):
        """How much nearer a prefix lies to its own query than to the others, on average."""
        trained = replace(e, name=f"steps_{steps}", train=replace(e.train, steps=steps))
        trained.arm_folder("records").parent.mkdir(exist_ok=True)
        trained.arm_folder("records").symlink_to(e.arm_folder("records"))
        train.run(trained)
        mesh, featurizer = jax.make_mesh((1,), ("data",)), featurizer_of(trained)
        with jax.set_mesh(mesh):
            model = trained_model(trained, mesh)
            asked = as_rows(featurizer.encode_queries([p for p, *_ in prefixes]))
            texts = as_rows(featurizer.encode_documents(queries))
            cosines = encode_rows(model, "query", asked, e.encode, mesh) @ encode_rows(
                model, "document", texts, e.encode, mesh).T  # fmt: skip
        own = np.array([[q == query for q in queries] for _, query, *_ in prefixes])
        return cosines[own].mean() - cosines[~own].mean()

    before, after = lead(1), lead(24)
    assert after > before + 0.3, (before, after)
