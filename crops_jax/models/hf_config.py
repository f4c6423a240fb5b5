"""Reads and writes the `config.json` of Hugging Face checkpoints, for the families we have.

Every key is either understood, or must have a value that our forward pass implements, or is known not to matter. Any
other key is reported, because it may change what the network computes. A key that is null counts as absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crops_jax.errors import InputError
from crops_jax.models.config import BartConfig, BertConfig, Qwen2Config
from crops_jax.models.hf_keys import is_a, is_harmless, wrong_forms


@dataclass(frozen=True)
class _Family:
    fields: Mapping[str, str]  # their key -> our field
    defaults: Mapping[str, float]  # what transformers takes for a key that old files lack
    fixed: Mapping[str, tuple[Any, ...]]  # optional key -> the values that are implemented
    special: frozenset[str] = field(default_factory=frozenset)  # keys that `_read_qwen2` interprets
    classes: str = ""  # the networks of transformers that share the tower


_FIXED = {
    "add_cross_attention": (False,),
    "compression_config": ({},),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": ({},),
}
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
    defaults={"initializer_range": 0.02},
    fixed={
        **_FIXED,
        "attention_bias": (True,),
        "hidden_act": ("silu", "swish"),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1.0,),
        "qkv_bias": (True,),
        "use_mrope": (False,),
        "use_sliding_window": (False,),
    },
    special=frozenset(
        {
            "head_dim",
            "is_causal",
            "is_decoder",  # every Qwen2 is one
            "layer_types",
            "max_window_layers",  # this and sliding_window count with use_sliding_window alone
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "sliding_window",
        }
    ),
    classes=r"Qwen2(Model|For\w+)",
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
    defaults={"initializer_range": 0.02, "layer_norm_eps": 1e-12, "type_vocab_size": 2},
    fixed={
        **_FIXED,
        "cross_attention_hidden_size": (),
        "hidden_act": ("gelu", "gelu_python"),
        "is_causal": (False,),
        "is_decoder": (False,),
        "position_embedding_type": ("absolute",),
    },
    classes=r"Bert(Model|LMHeadModel|For\w+)",
)
_BART = _Family(
    fields={
        "vocab_size": "vocab_size",
        "d_model": "width",
        "encoder_layers": "encoder_layers",
        "decoder_layers": "decoder_layers",
        "encoder_attention_heads": "encoder_heads",
        "decoder_attention_heads": "decoder_heads",
        "encoder_ffn_dim": "encoder_ffn",
        "decoder_ffn_dim": "decoder_ffn",
        "max_position_embeddings": "max_positions",
        "init_std": "init_std",
    },
    defaults={"init_std": 0.02},
    fixed={
        **_FIXED,
        "activation_function": ("gelu",),
        "add_bias_logits": (False,),
        "add_final_layer_norm": (False,),
        "extra_pos_embeddings": (2,),
        "is_decoder": (False,),
        "is_encoder_decoder": (True,),
        "normalize_before": (False,),
        "normalize_embedding": (True,),
        "scale_embedding": (False,),
        "static_position_embeddings": (False,),
        "tie_word_embeddings": (True,),
    },
    special=frozenset(
        {
            "decoder_layerdrop",  # of training, which drops nothing here
            "encoder_layerdrop",
            "force_bos_token_to_be_generated",
            "num_hidden_layers",  # the encoder's again
        }
    ),
    classes=r"Bart(Model|For\w+)",
)
_MOST, _MOST_LAYERS = 2**31 - 1, 10_000  # no network has more; names are made for each layer before files are read
_FRACTIONS = {"initializer_range", "init_std", "layer_norm_eps", "rms_norm_eps"}  # of the fields; others are whole
_FORMS = {  # of the keys that are read by hand
    "architectures": (list, "list"),
    "head_dim": (int, "whole number"),
    "is_causal": (bool, "boolean"),
    "layer_types": (list, "list"),
    **dict.fromkeys(("rope_theta", "rope_parameters.rope_theta", "rope_scaling.rope_theta"), (int | float, "number")),
}
_ROPE_NOTES = {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "max_position_embeddings"}
_ROPE_NEUTRAL = {"factor": 1.0, "partial_rotary_factor": 1.0, "attention_factor": 1.0}


def from_hf_json(path: Path) -> Qwen2Config | BertConfig:
    """The backbone that a checkpoint's config.json describes.

    Raises:
      InputError: not a config of Qwen2 or BERT, or it lacks keys, has unknown ones, or asks for a variant that is not
        implemented; all problems at once.
    """
    config = _read(path)
    match config.get("model_type"):
        case "qwen2":
            problems, values = _common(config, _QWEN2)
            more, special = _read_qwen2(config)
            _raise(path, problems + more)
            return Qwen2Config(**values, **special)
        case "bert":
            problems, values = _common(config, _BERT)
            _raise(path, problems)
            return BertConfig(**values)
        case None:
            raise InputError(str(path), "names no model_type; write qwen2 or bert into it, whichever the weights are")
        case other:
            raise InputError(str(path), f"model_type {other!r} is not implemented; qwen2 and bert are")


def bart_from_hf_json(path: Path) -> BartConfig:
    """The BART that a checkpoint's config.json describes.

    Raises:
      InputError: as `from_hf_json`, of BART.
    """
    config = _read(path)
    if config.get("model_type") != "bart":
        raise InputError(str(path), f"model_type {config.get('model_type')!r}: an encoder-decoder has to be a bart")
    problems, values = _common(config, _BART)
    _raise(path, problems)
    return BartConfig(**values)


def bart_to_hf_json(model: BartConfig, end: int, pad: int) -> dict[str, Any]:
    """The config.json of an exported BART whose texts are begun and ended by the token `end`."""
    values = {key: getattr(model, ours) for key, ours in _BART.fields.items()}
    own = {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "num_hidden_layers": model.encoder_layers,
        "dtype": "float32",
        "torch_dtype": "float32",
        "pad_token_id": pad,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": end,
        "forced_eos_token_id": None,
    }
    return dict(sorted({**values, **own}.items()))


def _read(path: Path) -> dict[str, Any]:
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(str(path), "no such file; a checkpoint folder holds a config.json") from None
    except (ValueError, TypeError) as error:
        raise InputError(str(path), f"is no model config ({type(error).__name__}: {error})") from None
    ropes = {name: config.get(name) for name in ("rope_scaling", "rope_parameters")}
    inner = {f"{name}.rope_theta": rope["rope_theta"] for name, rope in ropes.items()
             if isinstance(rope, dict) and "rope_theta" in rope}  # fmt: skip
    _raise(path, wrong_forms(config | inner, _FORMS))
    return config


def _raise(path: Path, problems: list[str]) -> None:
    if problems:
        raise InputError(str(path), problems)


def _common(config: dict[str, Any], family: _Family) -> tuple[list[str], dict[str, Any]]:
    """(what is wrong, our fields) of the keys that mean the same in all files of a family."""
    wanted = {key: config.get(key, family.defaults.get(key)) for key in family.fields}
    if "num_key_value_heads" in wanted and config.get("num_key_value_heads", 0) is None:
        wanted["num_key_value_heads"] = wanted["num_attention_heads"]
    problems = [f"key {key} is missing" for key, value in wanted.items() if value is None]
    for key, value in wanted.items():
        kind, name = (int | float, "number") if key in _FRACTIONS else (int, "whole number")
        most = _MOST_LAYERS if family.fields[key].endswith("layers") else _MOST
        if value is not None and not (is_a(value, kind) and value > 0):
            problems.append(f"{key} = {value!r} is no {name} above zero")
        elif value is not None and value > most:
            problems.append(f"{key} = {value!r} is above {most}: the file is damaged, or not this network's")
    known = family.fields.keys() | family.fixed.keys() | family.special
    problems += [
        f"key {key} = {value!r} is unknown, so it may change what the network computes; take it out of config.json if "
        "it does not"
        for key, value in config.items()
        if key not in known and value is not None and not is_harmless(key)
    ]
    problems += [
        f"{key} = {config[key]!r} is not implemented, only {' or '.join(map(repr, values)) or None}"
        for key, values in family.fixed.items()
        if config.get(key) is not None and config[key] not in values
    ]
    problems += [
        f"architectures names {name!r}, a network of its own code, which is never run; take it out of config.json if "
        f"its tower is that of {config['model_type']}"
        for name in config.get("architectures") or ()
        if not re.fullmatch(family.classes, str(name))
    ]
    return problems, {family.fields[key]: value for key, value in wanted.items()}


def _read_qwen2(config: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The keys whose form differs between versions of transformers, and those that work together."""
    problems, thetas = _rope(config)
    causal = config.get("is_causal")
    values = {"causal": True if causal is None else causal}
    if len(thetas) == 1:
        values["rope_theta"] = thetas.pop()
    else:
        problems.append("rope_theta is missing" if not thetas else f"two values of rope_theta: {sorted(thetas)}")
    if odd := {str(kind) for kind in config.get("layer_types") or []} - {"full_attention"}:
        problems.append(f"layer_types {sorted(odd)} are not implemented, only full_attention")
    if config.get("head_dim") is not None:
        values["head_size"] = config["head_dim"]
    elif all(isinstance(config.get(key), int) and config[key] for key in ("hidden_size", "num_attention_heads")):
        values["head_size"] = config["hidden_size"] // config["num_attention_heads"]
    return problems, values


def _rope(config: dict[str, Any]) -> tuple[list[str], set[float]]:
    """(what is not plain rotary positions, the bases that are named)."""
    problems, thetas = [], {config.get("rope_theta")}
    for name in ("rope_scaling", "rope_parameters"):
        rope = config.get(name) or {}
        kind = rope.get("rope_type") or rope.get("type") or "default" if isinstance(rope, dict) else None
        if kind != "default":
            problems.append(f"{name} = {rope!r} is not implemented, only rope_type 'default'")
            rope = rope if isinstance(rope, dict) else {}
        else:
            problems += [
                f"{name}.{key} = {value!r} is not implemented"
                for key, value in rope.items()
                if key not in _ROPE_NOTES and value is not None and value != _ROPE_NEUTRAL.get(key)
            ]
        thetas.add(rope.get("rope_theta"))
    return problems, {float(theta) for theta in thetas - {None}}


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
