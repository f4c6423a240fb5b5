"""Encoders as plain pytrees: flax.nnx modules in tree mode, one array per leaf, layers stacked and scanned.

Tree mode is switched on here, once, so that `jax.jit`, `jax.grad`, optax and donation take a module as they take
any pytree, without nnx's own transforms.
"""

from flax import nnx

nnx.set_graph_mode(False)
nnx.set_graph_updates(False)
