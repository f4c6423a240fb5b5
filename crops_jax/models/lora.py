"""LoRA: a tower's weights stay as they are, and chosen projections learn a correction of low rank.

Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models": x W becomes x W + alpha / r (x A) B, with W
frozen, A of r columns and B of r rows. B starts at zero, so that training starts from the model itself. Frozen weights
have no gradient and no optimiser state; an export adds alpha / r A B to them, so that its reader needs to know nothing
of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import jax
import numpy as np

from crops_jax.models.config import LoraConfig
from crops_jax.models.pytree import nnx
from crops_jax.parallel.sharding import Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """A frozen weight and its adapter, in the place of the weight; L layers are stacked first."""

    base: Any  # float32[L, *inputs, *outputs]
    a: Any  # float32[L, *inputs, r]
    b: Any  # float32[L, r, *outputs]
    scale: float = field(metadata={"static": True})  # alpha / r

    def equations(self, equation: str) -> tuple[str, str]:
        """The einsums by A and B that make up the one by the weight itself.

        >>> Adapted(None, None, None, 1.0).equations("te,egd->tgd")
        ('te,ez->tz', 'tz,zgd->tgd')
        """
        operands, result = equation.split("->")
        x, w = operands.split(",")
        inputs = "".join(axis for axis in w if axis in x)
        low = "".join(axis for axis in x if axis not in inputs) + "z"
        outputs = "".join(axis for axis in w if axis not in inputs)
        return f"{x},{inputs}z->{low}", f"{low},z{outputs}->{result}"

    def merged(self) -> np.ndarray:
        """W + alpha / r A B on the host, float32[L, *inputs, *outputs]."""
        base, a, b = (np.asarray(x, np.float32) for x in (self.base, self.a, self.b))
        layers, rank = b.shape[:2]
        return base + np.float32(self.scale) * (a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)).reshape(
            base.shape
        )


def adapt(tower: Any, config: LoraConfig, known: Mapping[str, int]) -> Any:
    """A described tower (its leaves are `Leaf`s) frozen, with adapters beside the chosen projections.

    A is split over the mesh as the weight's inputs are, B as its outputs.

    Args:
      known: how many axes of each projection are inputs.
    """
    frozen = jax.tree.map(lambda leaf: replace(leaf, group="frozen"), tower)
    for name in config.projections:
        base = getattr(frozen.layers, name)
        first = 1 + known[name]  # of the outputs; layers come before the inputs
        inputs, outputs = base.shape[1:first], base.shape[first:]
        a = Leaf((base.shape[0], *inputs, config.rank), (*base.axes[:first], None), scale=prod(inputs) ** -0.5)
        b = Leaf((base.shape[0], config.rank, *outputs), (base.axes[0], None, *base.axes[first:]), "constant", 0.0)
        setattr(frozen.layers, name, nnx.data(Adapted(base, a, b, config.alpha / config.rank)))
    return frozen


def merged(tower: Any) -> Any:
    """The tower without adapters that computes the same; only what was adapted comes to the host."""
    return jax.tree.map(lambda w: w.merged() if isinstance(w, Adapted) else w, tower, is_leaf=_is_adapted)


def base_name(name: str) -> str:
    """The name that a leaf has in a tower without adapters; an adapter's own name stays as it is."""
    return name.removesuffix("/base")


def _is_adapted(node: Any) -> bool:
    return isinstance(node, Adapted)
