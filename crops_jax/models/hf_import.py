"""Pre-trained towers from Hugging Face checkpoints, and their names back for export.

Two tables say which tensor of the checkpoint each of our leaves is, and how its axes are arranged (`hf_tensors`). All
mismatches of a checkpoint are reported at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crops_jax import hub
from crops_jax.errors import InputError
from crops_jax.models import bert, dual_encoder, hf_config, hf_names, lora, qwen2
from crops_jax.models.config import BertConfig, DualEncoderConfig, Qwen2Config
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.models.hf_tensors import Arrangement, leaves_of, read_leaves, tensor_problems, to_theirs
from crops_jax.models.safetensors_files import Entry, open_checkpoint
from crops_jax.parallel.sharding import RULES, Leaf, Rules, leaf_name

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# our leaf: (their tensor, "their axes -> our axes"); {l} is the layer, our leaf stacks the layers first.
QWEN2_TENSORS = {
    "embedding": ("embed_tokens.weight", "v e -> v e"),
    "final_norm": ("norm.weight", "e -> e"),
    "layers/attention_norm": ("layers.{l}.input_layernorm.weight", "e -> e"),
    "layers/q": ("layers.{l}.self_attn.q_proj.weight", "(g r d) e -> e g r d"),
    "layers/k": ("layers.{l}.self_attn.k_proj.weight", "(g d) e -> e g d"),
    "layers/v": ("layers.{l}.self_attn.v_proj.weight", "(g d) e -> e g d"),
    "layers/q_bias": ("layers.{l}.self_attn.q_proj.bias", "(g r d) -> g r d"),
    "layers/k_bias": ("layers.{l}.self_attn.k_proj.bias", "(g d) -> g d"),
    "layers/v_bias": ("layers.{l}.self_attn.v_proj.bias", "(g d) -> g d"),
    "layers/o": ("layers.{l}.self_attn.o_proj.weight", "e (g r d) -> g r d e"),
    "layers/ffn_norm": ("layers.{l}.post_attention_layernorm.weight", "e -> e"),
    "layers/gate": ("layers.{l}.mlp.gate_proj.weight", "f e -> e f"),
    "layers/up": ("layers.{l}.mlp.up_proj.weight", "f e -> e f"),
    "layers/down": ("layers.{l}.mlp.down_proj.weight", "e f -> f e"),
}
BERT_TENSORS = {
    "embedding": ("embeddings.word_embeddings.weight", "v e -> v e"),
    "position_embedding": ("embeddings.position_embeddings.weight", "p e -> p e"),
    "type_embedding": ("embeddings.token_type_embeddings.weight", "t e -> t e"),
    "embedding_norm": ("embeddings.LayerNorm.weight", "e -> e"),
    "embedding_norm_bias": ("embeddings.LayerNorm.bias", "e -> e"),
    "layers/q": ("encoder.layer.{l}.attention.self.query.weight", "(h d) e -> e h d"),
    "layers/k": ("encoder.layer.{l}.attention.self.key.weight", "(h d) e -> e h d"),
    "layers/v": ("encoder.layer.{l}.attention.self.value.weight", "(h d) e -> e h d"),
    "layers/q_bias": ("encoder.layer.{l}.attention.self.query.bias", "(h d) -> h d"),
    "layers/k_bias": ("encoder.layer.{l}.attention.self.key.bias", "(h d) -> h d"),
    "layers/v_bias": ("encoder.layer.{l}.attention.self.value.bias", "(h d) -> h d"),
    "layers/o": ("encoder.layer.{l}.attention.output.dense.weight", "e (h d) -> h d e"),
    "layers/o_bias": ("encoder.layer.{l}.attention.output.dense.bias", "e -> e"),
    "layers/attention_norm": ("encoder.layer.{l}.attention.output.LayerNorm.weight", "e -> e"),
    "layers/attention_norm_bias": ("encoder.layer.{l}.attention.output.LayerNorm.bias", "e -> e"),
    "layers/up": ("encoder.layer.{l}.intermediate.dense.weight", "f e -> e f"),
    "layers/up_bias": ("encoder.layer.{l}.intermediate.dense.bias", "f -> f"),
    "layers/down": ("encoder.layer.{l}.output.dense.weight", "e f -> f e"),
    "layers/down_bias": ("encoder.layer.{l}.output.dense.bias", "e -> e"),
    "layers/ffn_norm": ("encoder.layer.{l}.output.LayerNorm.weight", "e -> e"),
    "layers/ffn_norm_bias": ("encoder.layer.{l}.output.LayerNorm.bias", "e -> e"),
}
_SMALL_FILES = ("*config.json", "*modules.json", "*tokenizer.json", "config_sentence_transformers.json")


def create(config: DualEncoderConfig, key: jax.Array, mesh: Mesh | None = None, rules: Rules = RULES) -> DualEncoder:
    """The model a run starts from: weights of `config.init_from` in both towers, else random ones drawn from `key`.

    With a mesh (which must then be the ambient one) every leaf is born sharded. Call it outside `jax.jit`.

    Raises:
      InputError: the mesh does not fit the model, the checkpoint is not found, damaged, or of another architecture.
    """
    abstract = dual_encoder.abstract(config)
    if mesh is not None:
        rules.check(mesh, abstract)
    if config.init_from is None:
        return dual_encoder.init(config, key, rules)
    tower = load_tower(find_source(config.init_from), config.backbone, mesh, rules)
    loaded = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tower)[0]}

    def fill(path: tuple[Any, ...], leaf: Leaf) -> jax.Array:
        tower_name, _, name = leaf_name(path).partition("/")
        weight = loaded.get(lora.base_name(name))
        if weight is None:  # tau, and the adapters of LoRA
            return dual_encoder.draw(leaf_name(path), leaf, key, rules)
        return weight if tower_name == "query_tower" else jnp.copy(weight)  # an update donates each leaf once

    return jax.tree_util.tree_map_with_path(fill, abstract)


def find_source(name: str) -> Path:
    """The checkpoint folder that `name` stands for: a local folder, the MiniLM package, or a hub id (downloaded).

    Raises:
      InputError: none of the three; says what was tried. For the package, also a file whose hash is not the
        published one.
    """
    folder = hub.local_path(name)
    if folder.is_dir():
        return folder
    tried = [f"no local folder {folder}"]
    if hub.is_minilm_package(name):
        if packaged := package_folder():
            return packaged
        tried.append(f"the package is not installed ({hub.INSTALL_MINILM})")
    elif hub.is_hub_id(name):
        try:
            return hub.download(name, ["*.safetensors", "*.safetensors.index.json", *_SMALL_FILES])
        except InputError as error:
            tried += error.problems
    else:
        tried.append(f"not the package {hub.MINILM_PACKAGE}, and no hub id (owner/name)")
    raise InputError(f"checkpoint {name!r}", tried)


def package_folder() -> Path | None:
    """The folder of the installed MiniLM package, its weights' sha256 verified; None where it is not installed.

    Raises:
      InputError: the weights are not the published ones.
    """
    folder = hub.minilm_folder()
    if folder is not None:
        verify_minilm(folder)
    return folder


def verify_minilm(folder: Path) -> None:
    """Raises InputError unless the folder's model.safetensors is the published all-MiniLM-L6-v2, bit for bit."""
    file = folder / "model.safetensors"
    if not file.is_file():
        raise InputError(str(folder), "holds no model.safetensors; install the package again")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise InputError(str(file), f"sha256 is {found}, the published weights have {MINILM_SHA256}: it is damaged")


def load_tower(folder: Path, backbone: Qwen2Config | BertConfig, mesh: Mesh | None = None, rules: Rules = RULES) -> Any:
    """One tower with the checkpoint's weights as float32, laid out on the mesh (one device without).

    Raises:
      InputError: as `checked_entries`.
    """
    entries = checked_entries(folder, backbone)
    return read_leaves(entries, tensors_of(backbone), dual_encoder.build_tower(backbone, "query"), mesh, rules)


def checked_entries(folder: Path, backbone: Qwen2Config | BertConfig) -> dict[str, Entry]:
    """The tensors of a checkpoint by the names of the tables; its headers and config.json are read, not its weights.

    Raises:
      InputError: lists every setting of config.json that differs from `backbone`, every missing tensor, every
        unexpected one with the reason where it is known, every wrong shape.
    """
    table = tensors_of(backbone)
    entries, ambiguous = hf_names.tower_entries(open_checkpoint(folder), table["embedding"][0])
    leaves = leaves_of(dual_encoder.build_tower(backbone, "query"))
    problems = _config_problems(folder, backbone) + (ambiguous or tensor_problems(entries, table, leaves))
    if problems:
        raise InputError(str(folder), problems)
    return entries


def tensors_of(backbone: Qwen2Config | BertConfig) -> dict[str, tuple[str, str]]:
    """The table of a family."""
    return QWEN2_TENSORS if isinstance(backbone, Qwen2Config) else BERT_TENSORS


def _config_problems(folder: Path, backbone: Any) -> list[str]:
    """Where config.json contradicts `backbone`; what does not change the weights' meaning may differ."""
    try:
        found = hf_config.from_hf_json(folder / "config.json")
    except InputError as error:
        return [f"config.json: {problem}" for problem in error.problems]
    if type(found) is not type(backbone):
        return [f"config.json describes {type(found).__name__}, the run wants {type(backbone).__name__}"]
    free = {"init_std", "causal"} | ({"max_positions"} if isinstance(found, Qwen2Config) else set())
    return [
        f"config.json has {field.name} = {getattr(found, field.name)}, the run wants {getattr(backbone, field.name)}"
        for field in dataclasses.fields(found)
        if field.name not in free and getattr(found, field.name) != getattr(backbone, field.name)
    ]


def from_hf(tensors: Mapping[str, jax.Array], backbone: Qwen2Config | BertConfig) -> Any:
    """The tower of weights under their names, which may be traced; the inverse of `to_hf`."""

    def arranged(path: tuple[Any, ...], leaf: Leaf) -> jax.Array:
        template, pattern = tensors_of(backbone)[leaf_name(path)]
        stacked = "{l}" in template
        form = Arrangement(pattern, leaf.shape[1:] if stacked else leaf.shape)
        layers = [
            jnp.transpose(jnp.reshape(tensors[template.format(l=layer)], form.apart), form.to_ours)
            for layer in range(leaf.shape[0] if stacked else 1)
        ]
        return jnp.stack(layers) if stacked else layers[0]

    return jax.tree_util.tree_map_with_path(arranged, dual_encoder.build_tower(backbone, "query"))


def to_hf(tower: qwen2.Qwen2 | bert.Bert) -> dict[str, np.ndarray]:
    """The tower's weights under their names (without 'model.'), float32, for a safetensors file; adapters merged."""
    return to_theirs(lora.merged(tower), tensors_of(tower.config))
