"""Semantic ids by residual k-means: each level codes what the levels before it left over; then product codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crops_jax.suggestions.config import RQKMeansConfig
from crops_jax.suggestions.k_means import balanced_k_means, k_means, nearest
from crops_jax.suggestions.opq import ProductCodes, check_width, learn_product_codes


def residual_codes(vectors: np.ndarray, codebooks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(int32[N, L], float32[N, D] what is left) of codebooks float32[K_t, D]."""
    left, codes = np.asarray(vectors, np.float32), []
    for book in codebooks:
        codes.append(nearest(left, book).codes)
        left = left - book[codes[-1]]
    return np.stack(codes, axis=1), left


@dataclass(frozen=True)
class ResidualKMeans:
    """Learned codebooks (`semantic_index.Quantiser`)."""

    codebooks: tuple[np.ndarray, ...]  # float32[K_t, D], a level each
    products: ProductCodes | None  # of what they leave over

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level of an id."""
        parts, codes, _ = (0, 0, 0) if self.products is None else self.products.codebooks.shape
        return (*(len(book) for book in self.codebooks), *(codes,) * parts)

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """int32[N, L] of float32[N, D]: the nearest code of each level, full or not."""
        codes, left = residual_codes(vectors, self.codebooks)
        return codes if self.products is None else np.concatenate([codes, self.products.codes(left)], axis=1)

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """float32[N, D] of int32[N, L]."""
        levels = len(self.codebooks)
        found = sum(book[c] for c, book in zip(codes.T, self.codebooks, strict=False))
        return found if self.products is None else found + self.products.reconstruct(codes[:, levels:])

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name."""
        named = {f"level.{t}": book for t, book in enumerate(self.codebooks)}
        if self.products is not None:
            named |= {"opq.rotation": self.products.rotation, "opq.codebooks": self.products.codebooks}
        return named


def from_tensors(tensors: Mapping[str, np.ndarray], config: RQKMeansConfig) -> ResidualKMeans:
    """What `ResidualKMeans.tensors` gave."""
    products = ProductCodes(tensors["opq.rotation"], tensors["opq.codebooks"]) if config.opq_parts else None
    return ResidualKMeans(tuple(tensors[f"level.{t}"] for t in range(len(config.codes))), products)


def learn(vectors: np.ndarray, config: RQKMeansConfig) -> tuple[ResidualKMeans, np.ndarray]:
    """(the codebooks, int32[N, L] codes of the vectors): with `balanced`, no code of the last level is overfull.

    Raises:
      InputError: the vectors cannot be cut into `opq_parts`.
    """
    if config.opq_parts:
        check_width(vectors.shape[1], config.opq_parts)
    left, books, codes = np.asarray(vectors, np.float32), [], []
    for level, size in enumerate(config.codes):
        if config.balanced and level == len(config.codes) - 1:
            book, found = balanced_k_means(left, size, config.iterations, config.seed + level)
        else:
            book = k_means(left, size, config.iterations, config.seed + level)
            found = nearest(left, book).codes
        books.append(book)
        codes.append(found)
        left = left - book[found]
    products = None
    if config.opq_parts:
        products, _ = learn_product_codes(left, config.opq_parts, config.opq_codes, config.iterations, config.seed)
        codes += list(products.codes(left).T)
    return ResidualKMeans(tuple(books), products), np.stack(codes, axis=1)
