"""The losses of other recipes against worked numbers, and on eight devices."""

import math

import jax
import numpy as np
import pytest
from batches import words

from crops_jax.batch import Batch
from crops_jax.losses.build import build_loss
from crops_jax.losses.config import InfoNCEBinaryConfig, NCEConfig, PairwiseConfig
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh, put_rows

pytestmark = pytest.mark.slow  # many small compilations; `make test-all` runs them

STAR = PairwiseConfig(in_batch=True)
FSLR = PairwiseConfig(in_batch=True, min_anchor_label=1)
LAMBDA = PairwiseConfig(in_batch=True, min_anchor_label=1, lambda_rank=True)


def batch_of(labels, keys=None, known=None):
    label = np.array(labels, np.int32)
    key = np.arange(label.size) if keys is None else np.array(keys)
    return Batch(
        query=None, docs=None, query_key=words(np.arange(len(labels))),
        doc_key=words(np.where(label.reshape(-1) > 0, key, -1)), label=label.reshape(-1),
        valid=label.reshape(-1) > 0, source=np.zeros(label.size, np.int32),
        known=None if known is None else words(np.array(known).reshape(-1)).reshape(len(labels), -1, 2),
    )  # fmt: skip


def of_matrix(config, matrix, labels, keys=None, known=None):
    """(loss, aux) where query i has the logit matrix[i][j] with document j of the batch."""
    matrix = np.array(matrix, np.float32)
    batch = batch_of(labels, keys, known)
    return build_loss(config)(np.eye(len(matrix), dtype=np.float32), matrix.T, np.float32(0), batch)


def near(got, want, tol=1e-6):
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=tol)


def test_ance_is_a_mean_over_triples():
    docs = [[3, 2.5, 0, 0, 0, 0], [0, 0, 2, 2.5, 0, 0], [0, 0, 0, 0, 1, -1]]
    value, aux = of_matrix(PairwiseConfig(), docs, [[4, 1]] * 3)
    near(value, 0.525027)
    near(aux.row_loss[::2], [0.474077, 0.974077, 0.126928])
    value, _ = of_matrix(PairwiseConfig(), [[3, 2.5, 3, 9, 9, 9], [0] * 6], [[4, 1, 1], [4, 0, 0]])
    near(value, (0.474077 + math.log(2)) / 2)  # a lone positive makes no triple


def test_nce_takes_the_hardest_negative_or_all_as_noise():
    matrix, labels = [[4.0, 1.0, 2.5], [0.5, 3.0, 2.0], [1.5, 2.0, 2.2]], [[4]] * 3
    value, aux = of_matrix(NCEConfig(), matrix, labels)
    near(aux.row_loss, [0.201413, 0.313262, 0.598139])
    near(value, 0.370938)
    _, aux = of_matrix(NCEConfig(), matrix, labels, keys=[7, 8, 7])  # query 0 owns document 2
    near(aux.row_loss[0], math.log1p(math.exp(1.0 - 4.0)))
    value, aux = of_matrix(NCEConfig("binary", noise_documents=3), matrix, labels)
    near(aux.row_loss, [4.595684, 3.769543, 4.607258])
    near(value, 4.324162)
    alone, _ = of_matrix(NCEConfig("binary", noise_documents=3), [[0.5]], [[4]])
    near(alone, math.log1p(math.exp(-math.log(3) - 0.5)))  # a batch without noise


def test_dpr_is_the_binary_loss_on_one_positive_and_mined_negatives():
    matrix = [[5, 3, 1, 0], [0.5, 1, 4, 2]]
    value, aux = of_matrix(InfoNCEBinaryConfig(), matrix, [[4, 1], [4, 1]])
    near(aux.row_loss[::2], [0.148755, 0.195007])
    near(value, 0.171881)


def test_star_shares_hard_negatives_and_masks_what_is_relevant():
    matrix = [[5, 3, 1, 0], [0.5, 1, 4, 2]]  # documents p1, h1, p2, h2
    near(of_matrix(STAR, matrix, [[4, 1], [4, 1]])[0], 0.059510)
    # h1 is what query 2 likes: query 2 does not see it, and query 1, whose group holds it, sees it once.
    left = np.log1p(np.exp([3 - 5, 0 - 5, 0.5 - 4, 2 - 4]))
    near(of_matrix(STAR, matrix, [[4, 1], [4, 1]], keys=[0, 2, 2, 3])[0], left.mean())
    heavy = of_matrix(PairwiseConfig(in_batch=True, in_batch_weight=3.0), matrix, [[4, 1], [4, 1]])[0]
    terms = np.log1p(np.exp([3 - 5, 1 - 5, 0 - 5, 2 - 4, 0.5 - 4, 1 - 4]))
    near(heavy, (terms * [1, 3, 3, 1, 3, 3]).sum() / 14)


def test_a_known_positive_of_another_group_is_no_negative():
    matrix = [[5, 3, 1, 0], [0.5, 1, 4, 2]]
    value, aux = of_matrix(STAR, matrix, [[4, 1], [4, 1]], known=[[-1, -1], [1, -1]])
    near(value, 0.061694)  # h1 is relevant to query 2
    assert aux.masked_duplicates == 1
    near(of_matrix(STAR, matrix, [[4, 1], [4, 1]], known=[[-1, -1]] * 2)[0], 0.059510)
    dense = [[4.0, 1.0, 2.5], [0.5, 3.0, 2.0], [1.5, 2.0, 2.2]]
    near(of_matrix(NCEConfig(), dense, [[4]] * 3, known=[[2], [-1], [-1]])[1].row_loss[0], math.log1p(math.exp(-3)))


def test_fs_lr_compares_every_grade_with_all_lower_ones():
    matrix, labels = [[2, 1, 1.5, 0, -1, 0, 0, 0], [0] * 8], [[4, 3, 2, 1], [1, 0, 0, 0]]
    rows = of_matrix(FSLR, matrix, labels)[1].row_loss[:4]
    near(np.average(rows, weights=[4, 3, 2, 1]), 0.297069)  # ten pairs
    _, aux = of_matrix(LAMBDA, matrix, labels)
    near(2 * np.sum(aux.row_weight[:4] * aux.row_loss[:4]), 0.267218)  # of two queries this one


@pytest.mark.parametrize("config", [STAR, FSLR, LAMBDA, NCEConfig()], ids=["star", "fs-lr", "lambda", "nce"])
def test_eight_devices_equal_one(config):
    rng = np.random.default_rng(0)
    batch = batch_of(rng.integers(0, 5, (16, 3)), known=rng.integers(-1, 48, (16, 2)))
    queries, docs = rng.normal(size=(16, 8)).astype(np.float32), rng.normal(size=(48, 8)).astype(np.float32)
    loss = jax.value_and_grad(lambda q, d, b: build_loss(config)(q, d, np.float32(-1), b)[0], argnums=(0, 1))
    wanted = jax.jit(loss)(queries, docs, batch)
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        found = jax.jit(loss)(*put_rows((queries, docs, batch), mesh))
    jax.tree.map(lambda a, b: near(a, b, 1e-5), found, wanted)
