"""Reads and writes the `config.json` of Hugging Face checkpoints, for the two families we have.

Every key is either understood, required to have the one value our forward pass implements, or known not to matter.
Anything else is reported: an unknown key may change what the network computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops_jax.errors import InputError
from crops_jax.models.config import BertConfig, Qwen2Config

_HARMLESS = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "max_window_layers",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
    ]
)


@dataclass(frozen=True)
class _Family:
    fields: Mapping[str, str]  # their key -> our field
    fixed: Mapping[str, Any]  # optional key -> the only value that is implemented
    special: frozenset[str]  # keys that `_read_qwen2` interprets


_QWEN2 = _Family(
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "intermediate_size": "ffn",
        "rms_norm_eps": "norm_eps",
        "max_position_embeddings": "max_positions",
        "initializer_range": "init_std",
    },
    fixed={"hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None, "use_mrope": False},
    special=frozenset({"head_dim", "rope_theta", "rope_parameters", "is_causal", "layer_types"}),
)
_BERT = _Family(
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": "ffn",
        "max_position_embeddings": "max_positions",
        "type_vocab_size": "token_types",
        "layer_norm_eps": "norm_eps",
        "initializer_range": "init_std",
    },
    fixed={
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "cross_attention_hidden_size": None,
    },
    special=frozenset(),
)


def from_hf_json(path: Path) -> Qwen2Config | BertConfig:
    """The backbone that a checkpoint's config.json describes.

    Raises:
      InputError: not a config of Qwen2 or BERT, or it lacks keys, has unknown ones, or asks for a variant that is not
        implemented; all problems at once.
    """
    try:
        config = json.loads(path.read_text())
        family = config["model_type"]
    except FileNotFoundError:
        raise InputError(str(path), "no such file; a checkpoint folder holds a config.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(str(path), f"is no model config ({type(error).__name__}: {error})") from None
    match family:
        case "qwen2":
            problems, values = _common(config, _QWEN2)
            more, special = _read_qwen2(config)
            _raise(path, problems + more)
            return Qwen2Config(**values, **special)
        case "bert":
            problems, values = _common(config, _BERT)
            _raise(path, problems)
            return BertConfig(**values)
    raise InputError(str(path), f"model_type {family!r} is not implemented; qwen2 and bert are")


def _raise(path: Path, problems: list[str]) -> None:
    if problems:
        raise InputError(str(path), problems)


def _common(config: dict[str, Any], family: _Family) -> tuple[list[str], dict[str, Any]]:
    known = family.fields.keys() | family.fixed.keys() | family.special | _HARMLESS
    problems = [f"key {key} is missing" for key in family.fields if key not in config]
    problems += [f"key {key} = {config[key]!r} is unknown" for key in config if key not in known]
    problems += [
        f"{key} = {config[key]!r} is not implemented, only {value!r}"
        for key, value in family.fixed.items()
        if key in config and config[key] != value
    ]
    return problems, {ours: config[key] for key, ours in family.fields.items() if key in config}


def _read_qwen2(config: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The keys whose form differs between versions of transformers."""
    problems, values = [], {"causal": bool(config.get("is_causal", True))}
    rope = config.get("rope_parameters") or {}
    thetas = {float(place["rope_theta"]) for place in (config, rope) if place.get("rope_theta") is not None}
    if len(thetas) == 1:
        values["rope_theta"] = thetas.pop()
    else:
        problems.append("rope_theta is missing" if not thetas else f"two values of rope_theta: {sorted(thetas)}")
    if rope.get("rope_type", "default") != "default":
        problems.append(f"rope_parameters.rope_type = {rope['rope_type']!r} is not implemented, only 'default'")
    if odd := set(config.get("layer_types") or []) - {"full_attention"}:
        problems.append(f"layer_types {sorted(odd)} are not implemented, only full_attention")
    if config.get("head_dim") is not None:
        values["head_size"] = config["head_dim"]
    elif "hidden_size" in config and "num_attention_heads" in config:
        values["head_size"] = config["hidden_size"] // config["num_attention_heads"]
    return problems, values


def to_hf_json(backbone: Qwen2Config | BertConfig, eos_id: int | None, pad_id: int) -> dict[str, Any]:
    """The config.json of an exported tower, with old and new spellings side by side.

    Servers read different ones: `rope_theta` and `rope_parameters`, `torch_dtype` and `dtype`; `is_causal` is always
    written because some take a decoder for causal and some do not.
    """
    family = _QWEN2 if isinstance(backbone, Qwen2Config) else _BERT
    values = {key: getattr(backbone, ours) for key, ours in family.fields.items()}
    common = {"dtype": "float32", "torch_dtype": "float32", "pad_token_id": pad_id, "use_cache": False}
    match backbone:
        case Qwen2Config():
            rope = {"rope_theta": backbone.rope_theta, "rope_type": "default"}
            own = {
                "architectures": ["Qwen2Model"],
                "model_type": "qwen2",
                "hidden_act": "silu",
                "is_causal": backbone.causal,
                "head_dim": backbone.head_size,
                "rope_theta": backbone.rope_theta,
                "rope_parameters": rope,
                "use_sliding_window": False,
                "attention_dropout": 0.0,
                "tie_word_embeddings": True,
                "eos_token_id": eos_id,
                "bos_token_id": eos_id,
            }
        case BertConfig():
            own = {
                "architectures": ["BertModel"],
                "model_type": "bert",
                "hidden_act": "gelu",
                "position_embedding_type": "absolute",
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
    return dict(sorted({**values, **common, **own}.items()))
