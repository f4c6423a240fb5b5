"""From a tower's token states to a sentence-transformers vector: pooling, then Dense, LayerNorm and Normalize modules.

Shapes: n rows, T tokens, E the tower's width, D the vector's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from crops_jax.errors import InputError
from crops_jax.models.dual_encoder import normalise
from crops_jax.models.layers import layer_norm
from crops_jax.models.safetensors_files import Entry, open_checkpoint, shape_problems, view
from crops_jax.models.sentence_folder import Module, PoolingMode
from crops_jax.parallel.sharding import RULES

# torch's classes by their last name; those that a folder may name lie below torch.nn.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "Tanh": jnp.tanh,
    "Identity": lambda x: x,
    "ReLU": jax.nn.relu,
    "GELU": partial(jax.nn.gelu, approximate=False),
    "SiLU": jax.nn.silu,
    "Sigmoid": jax.nn.sigmoid,
}
_NORM_EPS = 1e-5  # of torch's LayerNorm, which the folder's module does not change


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense:
    """activation(x W + b), to which x or x R may be added."""

    weight: jax.Array  # [in, out]
    bias: jax.Array  # [out]
    residual: jax.Array | None  # [in, out]
    activation: str = field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, in] -> [n, out]."""
        y = ACTIVATIONS[self.activation](x @ self.weight + self.bias[None])
        return y if self.residual is None else y + x @ self.residual


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / std * weight + bias."""

    weight: jax.Array  # [D]
    bias: jax.Array  # [D]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, D] -> [n, D]."""
        return layer_norm(x, self.weight, self.bias, _NORM_EPS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalize:
    """x / |x|."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, D] -> [n, D]."""
        return normalise(x)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Head:
    """What follows the tower; the last normalisation is always there and stands in no module."""

    pooling: tuple[PoolingMode, ...] = field(metadata={"static": True})
    modules: tuple[Dense | LayerNorm | Normalize, ...] = ()

    def width(self, tower_width: int) -> int:
        """D, for a tower of E."""
        out = [module.weight.shape[-1] for module in self.modules if isinstance(module, Dense)]
        return out[-1] if out else tower_width * len(self.pooling)

    def vectors(self, hidden: jax.Array, length: jax.Array, skipped: int = 0) -> jax.Array:
        """float32[n, D] unit vectors of states [n, T, E]; a row of length 0 without modules gives zeros.

        Args:
          length: int32[n], tokens of the row.
          skipped: leading tokens that are not pooled (those of a prompt).
        """
        parts = [_pooled(mode, hidden.astype(jnp.float32), length, skipped) for mode in self.pooling]
        x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        for module in self.modules:
            x = module(x)
        return normalise(x)


def _pooled(mode: PoolingMode, hidden: jax.Array, length: jax.Array, skipped: int) -> jax.Array:
    """[n, E], by length: padding of any value cannot leak in."""
    place = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None]
    inside = (place < length[:, None]) & (place >= skipped)
    if mode == "max":
        largest = jnp.where(inside[..., None], hidden, -jnp.inf).max(axis=1)
        return jnp.where(inside.any(axis=1)[:, None], largest, 0)
    count = jnp.maximum(length - skipped, 1).astype(jnp.float32)[:, None]
    match mode:
        case "cls":  # the row's first token where all are skipped
            first = jnp.where(length > skipped, skipped, 0)[:, None]
            weight = ((place == first) & (place < length[:, None])).astype(jnp.float32)
        case "lasttoken":
            weight = (inside & (place == length[:, None] - 1)).astype(jnp.float32)
        case "mean":
            weight = inside.astype(jnp.float32) / count
        case "mean_sqrt_len_tokens":
            weight = inside.astype(jnp.float32) / jnp.sqrt(count)
        case "weightedmean":  # by the place in the row, skipped tokens counted
            weight = jnp.where(inside, place + 1, 0).astype(jnp.float32)
            weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1)
    return jnp.einsum("nt,nte->ne", weight, hidden, precision="highest", out_sharding=RULES.used(("batch", None)))


def load_head(pooling: tuple[PoolingMode, ...], modules: tuple[Module, ...], tower_width: int) -> Head:
    """The head that the folder's modules describe, its weights as float32.

    Raises:
      InputError: weights are missing, pickled or of another shape, or an activation is not implemented.
    """
    width, built = tower_width * len(pooling), []
    # The closing normalisation is the head's own: a second one would change last bits.
    for module in modules[:-1] if modules and modules[-1].kind == "Normalize" else modules:
        match module.kind:
            case "Dense":
                built.append(_dense(module, width))
                width = built[-1].weight.shape[1]
            case "LayerNorm":
                weight, bias = _tensors(module.folder, {"norm.weight": (width,), "norm.bias": (width,)})
                built.append(LayerNorm(weight, bias))
            case "Normalize":
                built.append(Normalize())
    return Head(pooling, tuple(built))


def _dense(module: Module, width: int) -> Dense:
    config, place = module.config, str(module.folder / "config.json")
    known = {"in_features", "out_features", "bias", "activation_function", "use_residual", "module_input_name",
             "module_output_name"}  # fmt: skip
    named = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    outside, _, activation = str(named).rpartition(".")
    out = config.get("out_features")
    problems = [f"{key} = {config[key]!r} is unknown" for key in config if key not in known]
    if not outside.startswith("torch.nn") or activation not in ACTIVATIONS:
        problems.append(f"activation_function {named!r} is not implemented; of torch.nn {', '.join(ACTIVATIONS)} are")
    if config.get("in_features") != width or not isinstance(out, int):
        problems.append(f"maps {config.get('in_features')} features to {out}, {width} come from the module before")
    if problems:
        raise InputError(place, problems)
    shapes = {"linear.weight": (out, width)}
    biased, residual = config.get("bias", True), config.get("use_residual", False)
    shapes |= {"linear.bias": (out,)} if biased else {}
    shapes |= {"residual.weight": (out, width)} if residual and out != width else {}
    found = dict(zip(shapes, _tensors(module.folder, shapes), strict=True))
    added = found["residual.weight"].T if "residual.weight" in found else jnp.eye(width) if residual else None
    bias = found["linear.bias"] if biased else jnp.zeros(out)
    return Dense(found["linear.weight"].T, bias, added, activation)


def _tensors(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[jax.Array]:
    """The tensors of a module's model.safetensors, which has to hold exactly these."""
    entries: dict[str, Entry] = open_checkpoint(folder)
    problems = shape_problems(entries, shapes) + [f"{name}: unexpected" for name in entries if name not in shapes]
    if problems:
        raise InputError(str(folder), problems)
    return [jnp.asarray(view(entries[name]).astype(np.float32)) for name in shapes]
