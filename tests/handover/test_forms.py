"""ONNX, StableHLO and bfloat16 weights give the vectors of the tower that they were made from."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from batches import moved
from places import ROOT
from safetensors.numpy import load_file

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import InputError
from crops_jax.handover.forms import write_forms, write_onnx
from crops_jax.handover.towers import export_towers
from crops_jax.models import dual_encoder, sentence_encoder
from crops_jax.models.config import BertConfig, DualEncoderConfig, LoraConfig, Qwen2Config
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer

BASE = Qwen2Config(vocab_size=304, width=16, layers=2, heads=4, kv_heads=2, head_size=8, ffn=24, init_std=0.3)
BIDIRECTIONAL = replace(BASE, causal=False)
BERT = BertConfig(304, 16, 2, 4, 24, max_positions=64, init_std=0.3)
TEXTS = ["wire", "cordless drill transformer", "", "变压器 wire " * 30]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = train_tokenizer(
        ["cordless drill transformer wire"] * 3, 300, tmp_path_factory.mktemp("t") / "tokenizer.json"
    )
    return Tokenizer(TextConfig(str(path), max_query_tokens=12, max_doc_tokens=24, append_eos=True))


@pytest.fixture
def export(tokenizer, tmp_path):
    """export(backbone, pooling, ...): the folder of an export, and its manifest's counts."""

    def write(backbone, pooling="mean", weights="float32", forms=(), **config):
        model = dual_encoder.init(DualEncoderConfig(backbone, pooling, tie_towers=True, **config), jax.random.key(0))
        model = moved(model)
        with write_folder(tmp_path / "export", kind="export") as out:
            export_towers(model, tokenizer, out, weights)
            write_forms(out, forms)
        return tmp_path / "export", json.loads((tmp_path / "export" / "manifest.json").read_text())["counts"]

    return write


@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        (BASE, "last"),
        pytest.param(BIDIRECTIONAL, "mean", marks=pytest.mark.slow),
        pytest.param(BERT, "cls", marks=pytest.mark.slow),
    ],
)
def test_onnx_pools_and_normalises_within_the_graph(export, backbone, pooling):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, counts = export(backbone, pooling, forms=("onnx",))
    assert counts["query_onnx"]["golden_difference"] < 1e-5 > counts["document_onnx"]["golden_difference"]
    encoder = sentence_encoder.load(folder / "query_tower")
    wanted = encoder.encode(TEXTS)
    session = onnxruntime.InferenceSession(folder / "query_tower" / "tower.onnx", providers=["CPUExecutionProvider"])
    rows = [encoder.tokenizer.encode(text).ids for text in TEXTS]
    for side in ("right", "left"):  # tokenisers of decoders pad on either
        ids, mask = np.full((2, len(rows), 20), 7, np.int64)
        for row, found in enumerate(rows):
            place = slice(len(found)) if side == "right" else slice(20 - len(found), 20)
            ids[row, place], mask[row] = found, 0
            mask[row, place] = 1
        found = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=side)


def test_a_graph_that_computes_otherwise_is_not_kept(export, monkeypatch):
    pytest.importorskip("onnxruntime")
    folder, _ = export(BASE, "last")
    encoder = sentence_encoder.load(folder / "query_tower")
    monkeypatch.setattr("crops_jax.handover.onnx_graph._rotated", lambda g, x, cos, sin: x)
    with pytest.raises(InputError, match="its vector differs"):
        write_onnx(encoder, folder / "query_tower")


@pytest.mark.slow
def test_stablehlo_takes_the_weights_by_name_for_every_platform_and_shape(export):
    pytest.importorskip("flatbuffers")
    folder, counts = export(BIDIRECTIONAL, forms=("stablehlo",), lora=LoraConfig(rank=2))
    told = counts["query_stablehlo"]
    assert told["platforms"] == ["cpu", "cuda", "tpu"] and told["golden_difference"] < 1e-5
    assert told["jax"] == jax.__version__ and len(told["read_until"]) == len("2026-01-01")
    tower = folder / "query_tower"
    called = jax.export.deserialize(bytearray((tower / "tower.stablehlo").read_bytes())).call
    encoder, weights = sentence_encoder.load(tower), load_file(tower / "model.safetensors")
    for texts, slots in ((TEXTS, 15), (TEXTS[:1], 3)):
        ids, length = np.zeros((len(texts), slots), np.int32), np.zeros(len(texts), np.int32)
        for row, text in enumerate(texts):
            found = encoder.tokenizer.encode(text).ids
            ids[row, : len(found)], length[row] = found, len(found)
        np.testing.assert_allclose(called(weights, ids, length), encoder.encode(texts), atol=1e-5)


PAGE = ROOT / "docs/handover.md"


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("backbone", [BASE, pytest.param(BERT, marks=pytest.mark.slow)], ids=["qwen2", "bert"])
def test_the_code_of_the_page_gives_the_golden_vectors_of_every_form(export, backbone, weights):
    pytest.importorskip("onnxruntime"), pytest.importorskip("flatbuffers")
    blocks = PAGE.read_text().partition("\n## Other forms\n")[2].partition("\n## ")[0].split("```python\n")[1:]
    code, texts = [block.partition("```")[0] for block in blocks], '"how to wire a transformer"'
    assert len(code) == 2 and code[0].count(texts) == 1
    folder, _ = export(backbone, forms=("onnx", "stablehlo"), weights=weights)
    for tower in ("query_tower", "document_tower"):
        golden = json.loads((folder / tower / "golden.json").read_text())
        for text, wanted in zip(golden["texts"], golden["embeddings"], strict=True):
            names = {}
            for block in code:
                block = block.replace("runs/demo/crops/export/query_tower", str(folder / tower))
                exec(block.replace(texts, repr(text)), names)
                np.testing.assert_allclose(names["vector"][0], wanted, atol=1e-5, err_msg=f"{text[:20]!r}, {block}")


@pytest.mark.slow
def test_bfloat16_weights_say_what_they_cost(export):
    folder, counts = export(BERT, weights="bfloat16")
    tower = folder / "query_tower"
    assert {str(tensor.dtype) for tensor in load_file(tower / "model.safetensors").values()} == {"bfloat16"}
    assert json.loads((tower / "config.json").read_text())["dtype"] == "bfloat16"
    lost = counts["query_cosine_lost"]
    assert 1e-7 < lost["mean"] <= lost["most"] < 1e-2 and counts["query_golden_difference"] < 1e-5
    rounded = json.loads((tower / "golden.json").read_text())["embeddings"]
    _, counts = export(BERT)
    exact = np.array(json.loads((tower / "golden.json").read_text())["embeddings"])
    assert "query_cosine_lost" not in counts
    assert 1 - (exact * rounded).sum(axis=1).min() == pytest.approx(lost["most"], abs=1e-6)
