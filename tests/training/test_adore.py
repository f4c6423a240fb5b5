"""ADORE: the ranking loss by hand, what an update moves, one device and eight."""

import jax
import numpy as np
import pytest
from batches import DOCS, SPARSE, batch, words

from crops_jax.baselines.config import AdoreConfig
from crops_jax.models import dual_encoder
from crops_jax.models.config import DualEncoderConfig, FrozenConfig
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import abstract_on, make_mesh, put_rows
from crops_jax.training import optim
from crops_jax.training.adore import AdoreObjective, Index, rank_loss
from crops_jax.training.config import ALL_AT_ONCE, OptimConfig
from crops_jax.training.step import build_step, init_state

CONFIG = DualEncoderConfig(SPARSE, frozen=FrozenConfig(towers=("document",), tau=True))
OBJECTIVE = AdoreObjective(AdoreConfig(top=5, cut=5), ALL_AT_ONCE)


def test_the_loss_by_hand():
    y = np.array([3, 2.5, 2, 1], np.float32)
    relevant = np.array([False, True, False, False])
    np.testing.assert_allclose(rank_loss(y, relevant, ~relevant, 4), 0.205468, atol=1e-6)
    appended = np.append(y, np.float32(0.2))  # the positive was not among the four
    target = np.array([False] * 4 + [True])
    np.testing.assert_allclose(rank_loss(appended, target, ~target, 4), 1.250143, atol=1e-6)


def index(rng, queries=32):
    vectors = rng.normal(size=(DOCS, SPARSE.width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    positives = np.stack([rng.permutation(DOCS)[:3] for _ in range(queries)]).astype(np.int32)
    positives[::2, 1:] = -1
    return Index(vectors, words(np.arange(queries)), positives)


def reference(model, rows, constants):
    """The loss by the definition, a query at a time, in float64."""
    queries = np.asarray(dual_encoder.encode(model, "query", rows.query), np.float64) / float(dual_encoder.tau(model))
    losses = []
    for query, key in zip(queries, range(len(queries)), strict=True):
        liked = {p for p in constants.positives[key].tolist() if p >= 0}
        order = np.argsort(-(constants.vectors @ query), kind="stable")[:5].tolist()
        listed = order if liked & set(order) else order + [p for p in constants.positives[key].tolist() if p >= 0]
        y = constants.vectors[listed] @ query
        a = np.array([1 / r if r <= 5 else 0 for r in range(1, len(listed) + 1)])
        pairs = [(i, j) for i, d in enumerate(listed) if d in liked for j, e in enumerate(listed) if e not in liked]
        losses.append(np.mean([abs(a[i] - a[j]) * np.log1p(np.exp(y[j] - y[i])) for i, j in pairs]))
    return np.mean(losses)


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_an_update_is_the_reference_s_and_moves_the_query_tower_alone(devices):
    rows, constants = batch("ids"), index(np.random.default_rng(0))
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    optimiser = optim.build(OptimConfig(learning_rate=0.1), dual_encoder.parameter_groups(CONFIG), 3)
    before = dual_encoder.init(CONFIG, jax.random.key(0))
    wanted = reference(before, rows, constants)
    with jax.set_mesh(mesh):
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract_on(dual_encoder.abstract(CONFIG), mesh))
        state = init_state(jax.device_put(before, places), OBJECTIVE, optimiser)
        held = jax.tree.map(lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P())), constants)
        state, metrics = jax.jit(build_step(OBJECTIVE, optimiser))(state, put_rows(rows, mesh), held)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=2e-5)
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), before, state.model)
    assert all(jax.tree.leaves(same.document_tower)) and same.log_tau
    assert not all(jax.tree.leaves(same.query_tower))
