"""Groups and unit vectors made by hand or drawn, and a loss's value and gradients on them."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from batches import words

from crops_jax.batch import Batch
from crops_jax.losses.build import build_loss
from crops_jax.losses.config import HInfoNCEConfig

NXN, FACTORED = HInfoNCEConfig(form="nxn"), HInfoNCEConfig(form="factored")
STREAMING, RING = HInfoNCEConfig(form="streaming", tile=7), HInfoNCEConfig(form="ring", tile=3)  # divide no batch here
LOG_TAU = np.float32(math.log(0.2))


def make_batch(labels, doc_keys=None, query_keys=None, size=0) -> Batch:
    """Groups given as lists of labels; shorter groups are padded with label 0."""
    size = max(size, *map(len, labels), 1)
    label = np.array([list(g) + [0] * (size - len(g)) for g in labels], np.int32)
    valid = label > 0
    key = np.where(valid, np.arange(label.size).reshape(label.shape), -1)
    for (q, k), value in (doc_keys or {}).items():
        key[q, k] = value
    return Batch(
        query=None,
        docs=None,
        query_key=words(query_keys if query_keys is not None else range(len(labels))),
        doc_key=words(key.reshape(-1)),
        label=label.reshape(-1),
        valid=valid.reshape(-1),
        source=np.zeros(label.size, np.int32),
    )


def toy(labels=((5, 4, 1), (4, 2)), **kwargs):
    """The worked example: two queries, five documents, tau 0.2; the sixth row is padding that holds NaN."""
    cosine = np.array([[0.9, 0.7, 0.4, 0.3, 0.1], [0.2, 0.1, 0.3, 0.8, 0.5]])
    docs = np.stack([cosine[0], cosine[1], np.sqrt(1 - cosine[0] ** 2 - cosine[1] ** 2)], axis=1)
    docs = np.concatenate([docs, np.full((1, 3), np.nan)])
    return np.eye(3)[:2].astype(np.float32), docs.astype(np.float32), make_batch(labels, **kwargs)


def random_case(labels, seed=0, dim=16, dtype=np.float32, **kwargs):
    """Random unit vectors; padding holds NaN."""
    rng = np.random.default_rng(seed)
    batch = make_batch(labels, **kwargs)
    queries, docs = rng.normal(size=(len(labels), dim)), rng.normal(size=(batch.label.size, dim))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, docs)]
    unit[0][~batch.valid.reshape(len(labels), -1).any(axis=1)] = np.nan
    unit[1][~batch.valid] = np.nan
    return unit[0].astype(dtype), unit[1].astype(dtype), batch


@functools.cache
def compiled(config):
    return jax.jit(jax.value_and_grad(build_loss(config), argnums=(0, 1, 2), has_aux=True))


def value_and_grads(config, e_query, e_doc, log_tau, batch):
    (loss, aux), grads = compiled(config)(e_query, e_doc, jnp.asarray(log_tau), batch)
    return loss, aux, grads


def loss_and_aux(config, *args):
    return value_and_grads(config, *args)[:2]  # one compilation serves both


def near(got, want, tol=1e-6):
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=tol)


def relative(got, want, tol):
    """The largest difference, as a part of the largest entry."""
    got, want = np.asarray(got), np.asarray(want)
    assert np.abs(got - want).max() <= tol * (np.abs(want).max() or 1)
