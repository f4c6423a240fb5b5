"""What is handed over beside the towers, and in which forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["onnx", "stablehlo"]


@dataclass(frozen=True)
class HandoverConfig:
    """Forms of the towers, and what a bundle holds."""

    weights: Literal["float32", "bfloat16"] = "float32"
    """Number format of the exported weights. The manifest says how much cosine bfloat16 costs."""
    forms: tuple[Form, ...] = ()
    """Further forms of each tower: onnx (with pooling and normalisation in the graph), stablehlo (by jax.export)."""
    evidence: bool = True
    """Put into the bundle what training knew of every query: other users' queries among it. The explorer shows it."""
