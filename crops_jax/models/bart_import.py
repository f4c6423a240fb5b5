"""BART from a Hugging Face checkpoint (`facebook/bart-base`), by a table as the towers' (`hf_import`)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from crops_jax.errors import InputError
from crops_jax.models import hf_config, hf_names
from crops_jax.models.bart import Bart
from crops_jax.models.config import BartConfig
from crops_jax.models.hf_tensors import leaves_of, read_leaves, tensor_problems, to_theirs
from crops_jax.models.safetensors_files import Entry, open_checkpoint, view
from crops_jax.parallel.sharding import RULES, Rules

_LOGITS_BIAS = "final_logits_bias"  # zeros in every BART that is published


def _attention(ours: str, theirs: str, norm: str) -> dict[str, tuple[str, str]]:
    table = {f"{ours}/o": (f"{theirs}.out_proj.weight", "e (h d) -> h d e")}
    table |= {f"{ours}/o_bias": (f"{theirs}.out_proj.bias", "e -> e")}
    for name in "qkv":
        table[f"{ours}/{name}"] = (f"{theirs}.{name}_proj.weight", "(h d) e -> e h d")
        table[f"{ours}/{name}_bias"] = (f"{theirs}.{name}_proj.bias", "(h d) -> h d")
    return table | _norm(ours, norm)


def _norm(ours: str, theirs: str) -> dict[str, tuple[str, str]]:
    return {f"{ours}/norm": (f"{theirs}.weight", "e -> e"), f"{ours}/norm_bias": (f"{theirs}.bias", "e -> e")}


def _side(side: str) -> dict[str, tuple[str, str]]:
    """Encoder or decoder."""
    blocks = f"{side}.layers.{{l}}"
    return {
        f"{side}_side/positions": (f"{side}.embed_positions.weight", "p e -> p e"),
        **_norm(f"{side}_side", f"{side}.layernorm_embedding"),
        **_attention(f"{side}/own", f"{blocks}.self_attn", f"{blocks}.self_attn_layer_norm"),
        f"{side}/ffn/up": (f"{blocks}.fc1.weight", "f e -> e f"),
        f"{side}/ffn/up_bias": (f"{blocks}.fc1.bias", "f -> f"),
        f"{side}/ffn/down": (f"{blocks}.fc2.weight", "e f -> f e"),
        f"{side}/ffn/down_bias": (f"{blocks}.fc2.bias", "e -> e"),
        **_norm(f"{side}/ffn", f"{blocks}.final_layer_norm"),
    }


_ACROSS = ("decoder.layers.{l}.encoder_attn", "decoder.layers.{l}.encoder_attn_layer_norm")
BART_TENSORS = {
    "embedding": ("shared.weight", "v e -> v e"),
    **_side("encoder"),
    **_side("decoder"),
    **_attention("decoder/across", *_ACROSS),
}


def load_bart(folder: Path, mesh: Mesh | None = None, rules: Rules = RULES) -> Bart:
    """The BART of a checkpoint folder, of the shape that its config.json says, as float32.

    Raises:
      InputError: it is no BART, or a variant that is not implemented; lists every missing tensor, every unexpected
        one, every wrong shape.
    """
    config, entries = _checked(folder)
    return read_leaves(entries, BART_TENSORS, Bart(config), mesh, rules)


def check_bart(folder: Path, config: BartConfig) -> None:
    """Looks at a checkpoint folder without loading it.

    Raises:
      InputError: as `load_bart`; or its shape is not that of `config`.
    """
    found, _ = _checked(folder)
    there, wanted = asdict(found), asdict(config)
    if problems := [f"{name}: {there[name]} there, {wanted[name]} in the config" for name in wanted
                    if name != "init_std" and there[name] != wanted[name]]:  # fmt: skip
        raise InputError(str(folder), problems)


def _checked(folder: Path) -> tuple[BartConfig, dict[str, Entry]]:
    """The shape and the tensors of a checkpoint folder."""
    config = hf_config.bart_from_hf_json(folder / "config.json")
    entries, problems = hf_names.tower_entries(open_checkpoint(folder), BART_TENSORS["embedding"][0])
    bias = entries.pop(_LOGITS_BIAS, None)
    problems = problems or tensor_problems(entries, BART_TENSORS, leaves_of(Bart(config))) + _bias_problems(bias)
    if problems:
        raise InputError(str(folder), problems)
    return config, entries


def to_hf(model: Bart) -> dict[str, np.ndarray]:
    """A BART's weights under the names of `BartForConditionalGeneration`, float32, for a safetensors file."""
    tensors = {f"model.{name}": tensor for name, tensor in to_theirs(model, BART_TENSORS).items()}
    return tensors | {_LOGITS_BIAS: np.zeros((1, model.config.vocab_size), np.float32)}


def _bias_problems(bias: Entry | None) -> list[str]:
    if bias is None or not np.any(view(bias)):
        return []
    return [f"{_LOGITS_BIAS}: holds other numbers than 0, which are not added"]
