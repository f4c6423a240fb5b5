"""Optimised product quantisation: a rotation, then each part of the vector by a codebook of its own.

y = R x, cut into M parts of D / M numbers; the code of a part is its nearest of K entries. R and the codebooks are
learned in turn: the codebooks by k-means, R = U V^T of the singular value decomposition U S V^T = sum(y' x^T), y' the
quantised y (orthogonal Procrustes). No round makes the reconstruction error larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crops_jax.errors import InputError
from crops_jax.suggestions.k_means import k_means, means, nearest


@dataclass(frozen=True)
class ProductCodes:
    """A learned rotation and its codebooks."""

    rotation: np.ndarray  # float32[D, D], orthogonal
    codebooks: np.ndarray  # float32[M, K, D / M]

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """int32[N, M] of float32[N, D]."""
        parts = np.split(vectors @ self.rotation.T, len(self.codebooks), axis=1)
        return np.stack([nearest(part, book).codes for part, book in zip(parts, self.codebooks, strict=True)], axis=1)

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """float32[N, D] of int32[N, M]."""
        return self._quantised(codes) @ self.rotation

    def _quantised(self, codes: np.ndarray) -> np.ndarray:
        return np.concatenate([book[c] for c, book in zip(codes.T, self.codebooks, strict=True)], axis=1)

    def error(self, vectors: np.ndarray) -> float:
        """Mean squared distance of the vectors to what their codes say."""
        return float(((vectors - self.reconstruct(self.codes(vectors))) ** 2).sum(1).mean())


def check_width(width: int, parts: int) -> None:
    """Raises InputError unless vectors of `width` numbers can be cut into `parts`."""
    if width % parts:
        problem = f"vectors of {width} numbers cannot be cut into {parts} parts; choose a divisor of {width}, or 0"
        raise InputError("suggest.ids.opq_parts", problem)


def learn_product_codes(
    vectors: np.ndarray, parts: int, codes: int, iterations: int, seed: int
) -> tuple[ProductCodes, list[float]]:
    """(the rotation and codebooks, the reconstruction error before each round and after the last).

    Raises:
      InputError: the vectors cannot be cut into `parts`.
    """
    check_width(vectors.shape[1], parts)
    start = np.split(vectors, parts, axis=1)
    books = np.stack([k_means(part, codes, iterations, seed + m) for m, part in enumerate(start)])
    learned = ProductCodes(np.eye(vectors.shape[1], dtype=np.float32), books)
    errors = [learned.error(vectors)]
    for _ in range(iterations):
        learned = _next(learned, vectors)
        errors.append(learned.error(vectors))
        if errors[-2] - errors[-1] <= 1e-6 * errors[0]:
            break
    return learned, errors


def _next(learned: ProductCodes, vectors: np.ndarray) -> ProductCodes:
    quantised = learned._quantised(learned.codes(vectors)).astype(np.float64)
    u, _, v = np.linalg.svd(quantised.T @ vectors.astype(np.float64))
    rotation = (u @ v).astype(np.float32)
    books = []
    for part, book in zip(
        np.split(vectors @ rotation.T, len(learned.codebooks), axis=1), learned.codebooks, strict=True
    ):
        books.append(means(nearest(part, book), book, part))
    return ProductCodes(rotation, np.stack(books))
