"""The hand-over folder: every file that servers read, golden vectors that replay, refusals."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from batches import moved
from safetensors.numpy import load_file, save_file

from crops_jax.artifacts.folders import Folder, write_folder
from crops_jax.artifacts.manifest import verify
from crops_jax.batch import Tokens
from crops_jax.errors import InputError
from crops_jax.handover.towers import GOLDEN_TEXTS, export_towers, replay
from crops_jax.models import dual_encoder, sentence_encoder
from crops_jax.models.config import BertConfig, DualEncoderConfig, LoraConfig, Qwen2Config, SparseMlpConfig
from crops_jax.models.hub_tokenizer import read_tokenizer
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh
from crops_jax.text.hashed_ids import IdConfig
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer

TINY = Qwen2Config(
    vocab_size=304, width=16, layers=2, heads=4, kv_heads=2, head_size=8, ffn=24, init_std=0.3, max_positions=64
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = train_tokenizer(
        ["cordless drill transformer wire"] * 3, 300, tmp_path_factory.mktemp("t") / "tokenizer.json"
    )
    return Tokenizer(TextConfig(str(path), max_query_tokens=12, max_doc_tokens=24, append_eos=True, lowercase=True))


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory) -> Path:
    """A causal, last-token model that was trained on a mesh, exported."""
    with jax.set_mesh(make_mesh(MeshConfig(data=4, tensor=2))):
        model = dual_encoder.init(DualEncoderConfig(TINY, dtype="bfloat16"), jax.random.key(0))
    target = tmp_path_factory.mktemp("e") / "export"
    with write_folder(target, kind="export") as out:
        export_towers(model, tokenizer, out)
    return target


def _json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_layout_serves_old_and_new_readers(exported):
    query = exported / "query_tower"
    config = _json(query / "config.json")
    assert config["is_causal"] is True and "auto_map" not in config
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6
    assert config["torch_dtype"] == config["dtype"] == "float32"
    pooling = _json(query / "1_Pooling" / "config.json")
    assert pooling["pooling_mode"] == "lasttoken" and pooling["pooling_mode_lasttoken"] is True
    assert [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value] == [
        "pooling_mode_lasttoken"
    ]
    assert pooling["word_embedding_dimension"] == pooling["embedding_dimension"] == 16
    types = [module["type"] for module in _json(query / "modules.json")]
    assert types == [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")]
    assert _json(query / "sentence_bert_config.json")["max_seq_length"] == 12
    assert _json(exported / "document_tower" / "sentence_bert_config.json")["max_seq_length"] == 24
    assert _json(query / "tokenizer_config.json")["split_special_tokens"] is True
    assert not [name for name in load_file(query / "model.safetensors") if name.startswith("model.")]
    assert (query / "model.safetensors").stat().st_mode & 0o044


def test_every_field_that_tei_parses_is_there_in_its_type(exported):
    """The structs of text-embeddings-inference's router, and of its Qwen2: a missing or odd field ends its start."""
    query = exported / "query_tower"
    parsed = {
        "config.json": {
            "architectures": list, "model_type": str, "max_position_embeddings": int, "pad_token_id": int,
            "vocab_size": int, "hidden_size": int, "intermediate_size": int, "num_hidden_layers": int,
            "num_attention_heads": int, "num_key_value_heads": int, "hidden_act": str, "rms_norm_eps": float,
            "rope_theta": float, "use_sliding_window": bool,
        },
        "1_Pooling/config.json": dict.fromkeys(
            ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens",
             "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_lasttoken"), bool
        ),
        "sentence_bert_config.json": {"max_seq_length": int},
        "config_sentence_transformers.json": {"prompts": dict, "default_prompt_name": type(None)},
    }  # fmt: skip
    for name, fields in parsed.items():
        found = _json(query / name)
        assert {field: type(found[field]) for field in fields} == fields, name
    config = _json(query / "config.json")
    assert config.get("sliding_window") is None and not config["architectures"][0].endswith("Classification")
    assert all(type(text) is str for text in _json(query / "config_sentence_transformers.json")["prompts"].values())


def test_the_exported_tokenizer_alone_cuts_appends_one_eos_lower_cases_and_knows_no_special_words(exported, tokenizer):
    assert any("<|endoftext|>" in text for text in GOLDEN_TEXTS)
    alone = tokenizers.Tokenizer.from_file(str(exported / "query_tower" / "tokenizer.json"))
    in_two_characters = "CAFE\u0301 Drill"  # which the tokeniser's own normaliser makes one
    for text in (*GOLDEN_TEXTS, in_two_characters):
        ids = alone.encode(text).ids
        rows = tokenizer.encode_queries([text])
        assert ids == rows.ids[0, : rows.length[0]].tolist()
        assert ids.count(tokenizer.eos_id) == 1 and ids[-1] == tokenizer.eos_id


def test_every_letter_is_lower_cased_alike_in_training_and_by_every_reader_of_the_folder(exported, tokenizer):
    letters = [c for c in map(chr, range(0x20, sys.maxunicode + 1)) if c.lower() != c or c.upper() != c]
    texts = ["ΟΔΟΣ ΜΟΥΣΙΚΗΣ, Ο Σ", *(f"A{c} {c}A {c}" for c in letters)]  # at a word's end, at its beginning, alone
    limit, folder = 60, exported / "document_tower"
    rows = tokenizer.encode(texts, limit)
    wanted = [ids[:length] for ids, length in zip(rows.ids.tolist(), rows.length, strict=True)]
    alone = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rebuilt = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))  # as transformers makes Qwen2's normaliser
    rebuilt.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), rebuilt.normalizer[1]])
    for reader in (alone, read_tokenizer(folder, limit, lower_case=True, rows=1 << 20), rebuilt):
        reader.enable_truncation(limit)
        assert [found.ids for found in reader.encode_batch(texts)] == wanted


def test_special_tokens_keep_their_ids_and_words_that_are_none_stay_listed(tokenizer, tmp_path):
    """Of Qwen2's files: special tokens outside the vocabulary, and added words that are no special tokens."""
    raw = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    raw.add_special_tokens(["<|im_start|>"])
    raw.add_tokens(["<tool_call>"])
    raw.add_special_tokens(["<|im_end|>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    other = Tokenizer(TextConfig(str(tmp_path / "tokenizer.json"), max_query_tokens=60, max_doc_tokens=60))
    model = dual_encoder.init(DualEncoderConfig(TINY, "mean", tie_towers=True), jax.random.key(0))
    with write_folder(tmp_path / "export", kind="export") as out:
        export_towers(model, other, out)
    folder = tmp_path / "export" / "query_tower"
    alone = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert alone.get_vocab() == raw.get_vocab()
    text = "a <|im_start|> b <tool_call> c <|im_end|> <|endoftext|>"
    rows = other.encode_queries([text])
    assert alone.encode(text).ids == rows.ids[0, : rows.length[0]].tolist()
    assert set(alone.encode(text).tokens) & {"<|im_start|>", "<tool_call>", "<|im_end|>"} == {"<tool_call>"}
    assert _json(folder / "golden.json")["texts"][-1] == "how to <|endoftext|> <|im_start|> <|im_end|> a story"


def test_golden_vectors_replay_and_a_changed_weight_does_not(exported, tmp_path):
    assert verify(exported)["counts"]["query_golden_difference"] < 1e-5
    golden = np.array(_json(exported / "query_tower" / "golden.json")["embeddings"])
    np.testing.assert_allclose(np.linalg.norm(golden, axis=1), 1, atol=1e-5)
    assert not np.allclose(golden, _json(exported / "document_tower" / "golden.json")["embeddings"][:9], atol=1e-2)
    weights = exported / "query_tower" / "model.safetensors"
    kept = weights.read_bytes()
    tensors = load_file(weights)
    tensors["norm.weight"][3] += 0.5
    save_file(tensors, weights)
    with pytest.raises(InputError, match="'transformer': its vector differs"):
        replay(exported / "query_tower")
    weights.write_bytes(kept)


def test_the_document_towers_golden_item_says_how_fields_become_a_text(exported, tmp_path):
    golden = _json(exported / "document_tower" / "golden.json")
    assert golden["item"]["text"] == "Cordless drill 18V | 2 batteries\ntools drill\ndrill 18v  cordless drill"
    assert golden["item"]["text"] == golden["texts"][-1] and len(golden["texts"]) == len(golden["embeddings"]) == 10
    assert "item" not in _json(exported / "query_tower" / "golden.json")
    folder = Path(shutil.copytree(exported / "document_tower", tmp_path / "tower"))
    golden["item"]["fields"]["photo_caption"] = "one more line"
    (folder / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(InputError, match=r"item: its fields become '.*one more line.*another text than golden\.json"):
        replay(folder)
    (folder / "golden.json").write_text(json.dumps(golden | {"item": {}}))
    with pytest.raises(InputError, match="item: is damaged"):
        replay(folder)


def test_a_tower_is_read_by_what_its_tokenizer_says(exported, tmp_path):
    folder = Path(shutil.copytree(exported / "query_tower", tmp_path / "tower"))
    told, spec = _json(folder / "tokenizer_config.json"), _json(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"add_eos_token": True}))
    assert replay(folder) < 1e-5
    (folder / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": None}))
    with pytest.raises(InputError, match="add_eos_token, which some readers follow and some do not; write it into"):
        sentence_encoder.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file; AutoTokenizer"):
        sentence_encoder.load(folder)


@pytest.mark.slow
def test_adapters_that_moved_are_in_the_exported_weights(tokenizer, tmp_path):
    """The folder's embeddings are those of the model with its adapters, and its files know nothing of adapters."""
    config = DualEncoderConfig(TINY, "last", tie_towers=True, lora=LoraConfig(rank=3, projections=("q", "o", "down")))
    start = dual_encoder.init(config, jax.random.key(0))
    model = moved(start)
    with write_folder(tmp_path / "export", kind="export") as out:
        export_towers(model, tokenizer, out)
    texts = Tokens(*tokenizer.encode_queries(GOLDEN_TEXTS))
    encode = jax.jit(dual_encoder.encode, static_argnums=1)
    wanted = np.asarray(encode(model, "query", texts))
    assert np.abs(wanted - encode(start, "query", texts)).max() > 0.01
    folder = tmp_path / "export" / "query_tower"
    np.testing.assert_allclose(sentence_encoder.load(folder).encode(GOLDEN_TEXTS), wanted, atol=1e-5)
    names = {name.removeprefix("layers.0.self_attn.q_proj.") for name in load_file(folder / "model.safetensors")}
    assert {name for name in names if "." not in name} == {"weight", "bias"}


def test_the_sparse_model_is_refused(tokenizer, tmp_path):
    model = dual_encoder.abstract(DualEncoderConfig(SparseMlpConfig(IdConfig(2, 2, 2, 2))))
    with pytest.raises(InputError, match="hashed ids, not text"):
        export_towers(model, tokenizer, Folder(tmp_path))


def test_a_tokenizer_that_servers_would_rebuild_wrongly_is_refused(tokenizer, tmp_path):
    raw = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    raw.normalizer = tokenizers.normalizers.NFKC()
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    raw.save(str(tmp_path / "tokenizer.json"))
    other = Tokenizer(TextConfig(str(tmp_path / "tokenizer.json"), append_eos=True))
    model = dual_encoder.abstract(DualEncoderConfig(TINY))
    with pytest.raises(InputError, match=r"normaliser is not NFC(.|\n)*does not split text as Qwen2"):
        export_towers(model, other, Folder(tmp_path))


@pytest.mark.slow
def test_a_model_whose_positions_do_not_reach_is_refused(tokenizer, tmp_path):
    config = DualEncoderConfig(BertConfig(304, 16, 1, 4, 24, max_positions=16), "mean", tie_towers=True)
    with pytest.raises(InputError, match=r"max_seq_length is 24, not within 2\.\.16"):
        export_towers(dual_encoder.init(config, jax.random.key(0)), tokenizer, Folder(tmp_path))
