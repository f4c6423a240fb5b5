"""Semantic ids by a residual-quantised autoencoder (RQ-VAE).

Shapes: B vectors of a batch, D numbers each, W numbers of what is quantised, L levels of K codes. The loss of a vector
is |x - x'|^2 + sum over levels of |sg(r) - c|^2 + commitment * |r - sg(c)|^2, r what the levels before left over and c
the level's nearest code. The decoder reads z + sg(sum of c - z), so that its gradient reaches the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crops_jax.errors import Diverged
from crops_jax.progress import bar
from crops_jax.suggestions.config import RQVAEConfig
from crops_jax.suggestions.k_means import k_means, nearest
from crops_jax.suggestions.rq_k_means import residual_codes

_KMEANS_ROUNDS = 10
_FIRST = 1 << 16  # vectors that the first codes are made from, at most; of more, so many are drawn
_ROWS = 8_192  # vectors encoded at a time

Params = dict[str, Any]  # encoder, decoder: lists of (weight, bias); codebooks float32[L, K, W]


class _State(NamedTuple):
    params: Params
    moments: optax.OptState
    used: jax.Array  # int32[L, K]: how often since dead codes were last looked for


def _layers(key: jax.Array, widths: tuple[int, ...]) -> list[tuple[jax.Array, jax.Array]]:
    keys = jax.random.split(key, len(widths) - 1)
    sizes = zip(keys, widths[:-1], widths[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b)) for k, a, b in sizes]


def _mlp(layers: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    for i, (weight, bias) in enumerate(layers):
        x = jnp.matmul(x, weight, precision=jax.lax.Precision.HIGHEST) + bias[None, :]
        x = jax.nn.relu(x) if i < len(layers) - 1 else x
    return x


def _quantise(z: jax.Array, codebooks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(int32[L, B] codes, [L, B, W] what stood before each level, [L, B, W] the chosen codes)."""

    def level(left: jax.Array, book: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        far = (book * book).sum(1)[None, :] - 2 * jnp.matmul(left, book.T, precision=jax.lax.Precision.HIGHEST)
        code = jnp.argmin(far, axis=1).astype(jnp.int32)
        return left - jax.lax.stop_gradient(book[code]), (code, left, book[code])

    return jax.lax.scan(level, z, codebooks)[1]


def loss(params: Params, x: jax.Array, commitment: float) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The mean loss of float[B, D] vectors; and (int32[L, B] codes, float[L, B, W] residuals)."""
    z = _mlp(params["encoder"], x)
    codes, left, chosen = _quantise(z, params["codebooks"])
    copied = z + jax.lax.stop_gradient(chosen.sum(0) - z)
    far = ((x - _mlp(params["decoder"], copied)) ** 2).sum(1)
    towards = ((jax.lax.stop_gradient(left) - chosen) ** 2).sum((0, 2))
    near = ((left - jax.lax.stop_gradient(chosen)) ** 2).sum((0, 2))
    return (far + towards + commitment * near).mean(), (codes, left)


@partial(jax.jit, static_argnums=(2,))
def _step(
    state: _State, x: jax.Array, config: RQVAEConfig, key: jax.Array, reseed: jax.Array
) -> tuple[_State, jax.Array]:
    (value, (codes, left)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, x, config.commitment)
    change, moments = _optimiser(config).update(gradient, state.moments, state.params)
    params = optax.apply_updates(state.params, change)
    used = state.used + jax.vmap(lambda c: jnp.bincount(c, length=config.codes))(codes)
    rows = jax.random.randint(key, (config.levels, config.codes), 0, len(x))
    fresh = jnp.take_along_axis(left, rows[:, :, None], axis=1)
    dead = (used == 0) & reseed
    params["codebooks"] = jnp.where(dead[:, :, None], fresh, params["codebooks"])
    return _State(params, moments, jnp.where(reseed, 0, used)), value


def _optimiser(config: RQVAEConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)


@dataclass(frozen=True)
class ResidualAutoencoder:
    """A learned RQ-VAE (`semantic_index.Quantiser`)."""

    params: Params

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level of an id."""
        levels, codes, _ = self.params["codebooks"].shape
        return (codes,) * levels

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """int32[N, L] of float32[N, D]."""
        return residual_codes(_by_rows(self.params["encoder"], vectors), self.params["codebooks"])[0]

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """float32[N, D] of int32[N, L]."""
        summed = sum(book[c] for c, book in zip(codes.T, self.params["codebooks"], strict=True))
        return _by_rows(self.params["decoder"], summed)

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name."""
        named = {"codebooks": self.params["codebooks"]}
        for part in ("encoder", "decoder"):
            for i, (weight, bias) in enumerate(self.params[part]):
                named |= {f"{part}.{i}.weight": weight, f"{part}.{i}.bias": bias}
        return named


_jitted_mlp = jax.jit(_mlp)


def _by_rows(layers: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> np.ndarray:
    parts = [np.asarray(_jitted_mlp(layers, x[start : start + _ROWS])) for start in range(0, len(x), _ROWS)]
    return np.concatenate(parts) if parts else np.zeros((0, layers[-1][1].shape[0]), np.float32)


def from_tensors(tensors: Mapping[str, np.ndarray], config: RQVAEConfig) -> ResidualAutoencoder:
    """What `ResidualAutoencoder.tensors` gave."""
    layers = range(len(config.hidden) + 1)
    params: Params = {"codebooks": tensors["codebooks"]}
    for part in ("encoder", "decoder"):
        params[part] = [(tensors[f"{part}.{i}.weight"], tensors[f"{part}.{i}.bias"]) for i in layers]
    return ResidualAutoencoder(params)


def learn(vectors: np.ndarray, config: RQVAEConfig) -> tuple[ResidualAutoencoder, np.ndarray]:
    """(the autoencoder, int32[N, L] codes of the vectors), after `config.steps` steps. Equal seeds, equal codes."""
    vectors, key = np.asarray(vectors, np.float32), jax.random.key(config.seed)
    widths = (vectors.shape[1], *config.hidden, config.width)
    params: Params = {
        "encoder": _layers(jax.random.fold_in(key, 0), widths),
        "decoder": _layers(jax.random.fold_in(key, 1), widths[::-1]),
    }
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(vectors))[:_FIRST])
    params["codebooks"] = _first_codes(_by_rows(params["encoder"], vectors[rows]), config)
    state = _State(params, _optimiser(config).init(params), jnp.zeros((config.levels, config.codes), jnp.int32))
    order = _batches(len(vectors), config)
    with bar("RQ-VAE", config.steps, unit="step") as told:
        for step in range(config.steps):
            again = (step + 1) % config.reseed_every == 0 and step + 1 < config.steps
            state, _ = _step(state, vectors[next(order)], config, jax.random.fold_in(key, 2 + step), jnp.asarray(again))
            told.update()
    learned = ResidualAutoencoder(jax.tree.map(np.asarray, state.params))
    if not all(np.isfinite(tensor).all() for tensor in learned.tensors().values()):
        raise Diverged("RQ-VAE", "its weights are not finite any more; lower suggest.ids.learning_rate")
    return learned, learned.codes(vectors)


def _first_codes(z: np.ndarray, config: RQVAEConfig) -> jax.Array:
    books = []
    for level in range(config.levels):
        books.append(k_means(z, config.codes, _KMEANS_ROUNDS, config.seed + level))
        z = z - books[-1][nearest(z, books[-1]).codes]
    return jnp.asarray(np.stack(books))


def _batches(n: int, config: RQVAEConfig):
    """Rows of each step: every vector once before any comes again, in a new order each time."""
    rng, left = np.random.default_rng(config.seed), np.zeros(0, np.int64)
    while True:
        while len(left) < config.batch:
            left = np.concatenate([left, rng.permutation(n)])
        yield left[: config.batch]
        left = left[config.batch :]
