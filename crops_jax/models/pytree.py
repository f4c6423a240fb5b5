"""flax.nnx modules as plain pytrees: `jax.jit`, `jax.grad`, optax and donation take a module as they take any pytree.

Tree mode is switched on here, once, and every model module takes nnx from here.
"""

from __future__ import annotations

from flax import nnx

nnx.set_graph_mode(False)
nnx.set_graph_updates(False)

__all__ = ["nnx"]
