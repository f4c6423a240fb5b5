"""Checkpoints as they lie on the hub: what their config.json and their tensors carry besides the network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from places import GOLDEN
from safetensors.numpy import load_file, save_file

from crops_jax.errors import InputError
from crops_jax.models import hf_config, hf_import
from crops_jax.models.config import MINILM_L6, QWEN2_5_0_5B, BertConfig, Qwen2Config
from crops_jax.models.safetensors_files import SINGLE

QWEN2, BERT = (hf_config.from_hf_json(GOLDEN / name / "config.json") for name in ("qwen2_tiny", "bert_tiny"))


def _bert(width=768, layers=12, heads=12, ffn=3072, vocabulary=30522, **more):
    return {
        "model_type": "bert", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": ffn, "vocab_size": vocabulary, "max_position_embeddings": 512, "type_vocab_size": 2,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "architectures": ["BertModel"], "pad_token_id": 0, **more,
    }  # fmt: skip


def _qwen2(width=896, layers=24, heads=14, kv_heads=2, ffn=4864, **more):
    return {
        "model_type": "qwen2", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": ffn, "vocab_size": 151936, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "initializer_range": 0.02,
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_cache": True, "bos_token_id": 151643, "eos_token_id": 151645,
        "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 21, **more,
    }  # fmt: skip


CHINESE_NOTES = {
    "directionality": "bidi", "output_past": True, "pooler_fc_size": 768, "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3, "pooler_size_per_head": 128, "pooler_type": "first_token_transform",
}  # fmt: skip
BASE = BertConfig(width=768, layers=12, ffn=3072)
CHINESE = BertConfig(vocab_size=21128, width=768, layers=12, ffn=3072)
FILES = {
    "bert-base-uncased": (
        _bert(architectures=["BertForMaskedLM"], gradient_checkpointing=False, position_embedding_type="absolute",
              transformers_version="4.6.0.dev0", use_cache=True), BASE),
    "bert-base-chinese": (_bert(vocabulary=21128, architectures=["BertForMaskedLM"], **CHINESE_NOTES), CHINESE),
    "bge-base-zh": (
        _bert(vocabulary=21128, **CHINESE_NOTES, _name_or_path="/root/.cache/x", classifier_dropout=None,
              id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, torch_dtype="float32", bos_token_id=0,
              eos_token_id=2), CHINESE),
    "a reranker": (
        _bert(architectures=["BertForSequenceClassification"], num_labels=1, problem_type=None, summary_type="first",
              sentence_transformers={"version": "5.0.0"}, sbert_ce_default_activation_function="torch.nn.Identity"),
        BASE),
    "of 2019, with the settings of generation": (
        {**{k: v for k, v in _bert().items() if k != "layer_norm_eps"}, "finetuning_task": None, "_num_labels": 2,
         "language": "german", "name": "Bert", "do_sample": False, "num_beams": 1, "top_k": 50, "max_length": 20,
         "pruned_heads": {}, "torchscript": False, "use_bfloat16": False, "is_decoder": False, "output_attentions": 0,
         "is_encoder_decoder": False, "xla_device": None, "decoder_start_token_id": None}, BASE),
    "MiniLM, saved by transformers 5": (
        _bert(384, 6, 12, 1536, add_cross_attention=False, is_decoder=False, dtype="float32", tie_word_embeddings=True,
              bos_token_id=None, classifier_dropout=None), MINILM_L6),
    "Qwen2.5-0.5B": (_qwen2(use_mrope=False, transformers_version="4.40.1"), QWEN2_5_0_5B),
    "rope_scaling that says default": (
        _qwen2(rope_scaling={"rope_type": "default", "type": "default"}, _attn_implementation_autoset=True),
        QWEN2_5_0_5B),
    "saved by transformers 5": (
        {**{k: v for k, v in _qwen2().items() if k != "rope_theta"}, "sliding_window": None, "dtype": "bfloat16",
         "layer_types": ["full_attention"] * 24, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        QWEN2_5_0_5B),
    "Qwen2.5-Math-1.5B": (
        _qwen2(1536, 28, 12, 2, 8960, rope_theta=10000.0, max_position_embeddings=4096, sliding_window=4096),
        Qwen2Config(width=1536, layers=28, heads=12, head_size=128, ffn=8960, rope_theta=1e4, max_positions=4096)),
    "gte-Qwen2, which is bidirectional": (
        _qwen2(1536, 28, 12, 2, 8960, is_causal=False, auto_map={"AutoModel": "modeling_qwen.Qwen2Model"},
               unsloth_version="2025.1"),
        Qwen2Config(width=1536, layers=28, heads=12, head_size=128, ffn=8960, causal=False)),
}  # fmt: skip


def _read(tmp_path: Path, config: dict) -> Qwen2Config | BertConfig:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return hf_config.from_hf_json(tmp_path / "config.json")


@pytest.mark.parametrize("name", FILES)
def test_configs_of_the_hub_are_read(name, tmp_path):
    config, wanted = FILES[name]
    assert _read(tmp_path, config) == wanted


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (_bert(position_embedding_type="relative_key"), "position_embedding_type = 'relative_key' is not implemented"),
        (_bert(hidden_act="gelu_new"), "hidden_act = 'gelu_new' is not implemented, only 'gelu' or 'gelu_python'"),
        (_bert(is_decoder=True), "is_decoder = True is not implemented, only False"),
        (_bert(add_cross_attention=True), "add_cross_attention = True is not implemented"),
        (_bert(pruned_heads={"0": [1]}), "pruned_heads = {'0': [1]} is not implemented"),
        (_bert(quantization_config={"bits": 8}), "quantization_config = {'bits': 8} is not implemented"),
        (_bert(architectures=["JinaBertModel"]), "architectures names 'JinaBertModel', a network of its own code"),
        (_bert(feed_forward_type="geglu"), "key feed_forward_type = 'geglu' is unknown, so it may change"),
        (_bert(layers="12"), "num_hidden_layers = '12' is no whole number above zero"),
        (_bert(layers=10**30), "is above 10000: the file is damaged"),
        (_bert(vocab_size=2**40), "vocab_size = 1099511627776 is above 2147483647"),
        (_qwen2(rope_scaling={"type": "yarn", "factor": 4.0}), "rope_scaling = {'type': 'yarn', 'factor': 4.0} is not"),
        (_qwen2(rope_scaling={"rope_type": "linear", "factor": 2.0}), "rope_scaling = .*linear.* is not implemented"),
        (_qwen2(rope_parameters={"rope_type": "default", "mrope_section": [1]}), "rope_parameters.mrope_section = "),
        (_qwen2(rope_parameters={"rope_type": "default", "rope_theta": 1e4}), "two values of rope_theta"),
        (_qwen2(use_sliding_window=True), "use_sliding_window = True is not implemented"),
        (_qwen2(layer_types=["full_attention", "sliding_attention"]), r"layer_types \['sliding_attention'\] are not"),
        (_qwen2(attention_bias=False), "attention_bias = False is not implemented, only True"),
        (_qwen2(qk_norm=True), "key qk_norm = True is unknown"),
        (_qwen2(architectures=["Qwen2BiModel"]), "architectures names 'Qwen2BiModel'"),
        ({"model_type": "roberta"}, "model_type 'roberta' is not implemented; qwen2 and bert are"),
        ({"hidden_size": 768}, "names no model_type"),
    ],
)
def test_what_changes_the_network_is_refused_by_name(config, said, tmp_path):
    with pytest.raises(InputError, match=said.replace("{", r"\{").replace("[1]", r"\[1\]")):
        _read(tmp_path, config)


def _rewrite(source: str, folder: Path, change) -> Path:
    shutil.copytree(GOLDEN / source, folder)
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE)
    return folder


def _assert_same(folder: Path, source: str, backbone) -> None:
    found, wanted = (hf_import.to_hf(hf_import.load_tower(f, backbone)) for f in (folder, GOLDEN / source))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("prefix", ["", "bert.", "model.", "0.auto_model.", "module.encoder."])
def test_bert_of_2018_with_heads_and_buffers(prefix, tmp_path):
    def old(tensors):
        names = {name: name.replace("LayerNorm.weight", "LayerNorm.gamma") for name in tensors}
        names = {name: prefix + new.replace("LayerNorm.bias", "LayerNorm.beta") for name, new in names.items()}
        other = dict.fromkeys(
            ["cls.predictions.bias", "cls.predictions.transform.LayerNorm.gamma", "cls.seq_relationship.weight",
             f"{prefix}pooler.dense.weight", "classifier.weight"], np.zeros(2, np.float32),
        )  # fmt: skip
        other[f"{prefix}embeddings.position_ids"] = np.zeros((1, 4), np.int64)
        return {names[name]: value for name, value in tensors.items()} | other

    _assert_same(_rewrite("bert_tiny", tmp_path / "old", old), "bert_tiny", BERT)


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model."])
def test_decoders_with_heads_and_buffers(prefix, tmp_path):
    def old(tensors):
        extra = {"lm_head.weight": np.zeros(2, np.float32), "score.weight": np.zeros(2, np.float32)}
        extra[f"{prefix}layers.1.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
        return {prefix + name: value for name, value in tensors.items()} | extra

    _assert_same(_rewrite("qwen2_tiny", tmp_path / "old", old), "qwen2_tiny", QWEN2)


def test_tensors_of_other_networks_are_refused_with_the_reason_in_a_line_each(tmp_path):
    def change(tensors):
        for layer in range(2):
            tensors[f"layers.{layer}.self_attn.q_norm.weight"] = np.zeros(8, np.float32)
            tensors[f"layers.{layer}.mlp.up_proj.lora_A.weight"] = np.zeros(8, np.float32)
            del tensors[f"layers.{layer}.self_attn.v_proj.bias"]
        tensors["norm.weight"] = tensors["norm.weight"].astype(np.int32)
        return tensors

    folder = _rewrite("qwen2_tiny", tmp_path / "other", change)
    with pytest.raises(InputError) as error:
        hf_import.load_tower(folder, QWEN2)
    assert error.value.problems == [
        "layers.*.self_attn.v_proj.bias: missing, 2 tensors",
        "norm.weight: holds int32, no floats: quantised weights are not read",
        "layers.*.mlp.up_proj.lora_A.weight: unexpected (an adapter of its own; merge it into the weights first), "
        "2 tensors",
        "layers.*.self_attn.q_norm.weight: unexpected (norms of queries and keys, which Qwen2 has not), 2 tensors",
    ]


def test_a_file_of_two_towers_or_of_two_names_for_one_tensor_is_refused(tmp_path):
    def twins(tensors):
        return {f"{tower}.{name}": value for tower in ("query", "passage") for name, value in tensors.items()}

    with pytest.raises(InputError, match=r"several towers, under 'passage\.', 'query\.'; keep one"):
        hf_import.load_tower(_rewrite("bert_tiny", tmp_path / "twins", twins), BERT)

    def twice(tensors):
        return tensors | {"embeddings.LayerNorm.gamma": tensors["embeddings.LayerNorm.weight"]}

    with pytest.raises(InputError, match=r"holds embeddings\.LayerNorm\.weight twice"):
        hf_import.load_tower(_rewrite("bert_tiny", tmp_path / "twice", twice), BERT)
