"""Every setting of every loss says something: with another value the loss is another one, or another program."""

import dataclasses
import typing
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import words

from crops_jax.batch import Batch
from crops_jax.losses.build import build_loss
from crops_jax.losses.config import (
    HInfoNCEConfig,
    InfoNCEBinaryConfig,
    InfoNCEPerPositiveConfig,
    LossConfig,
    NCEConfig,
    PairwiseConfig,
    SoftmaxCEConfig,
)

pytestmark = pytest.mark.slow  # many small compilations or files; `make test-all` runs them

LABELS = np.array([[5, 4, 3, 1], [4, 4, 2, 0], [5, 3, 1, 1], [4, 2, 0, 0]], np.int32)
ALIKE = ("form", "tile")  # equal in value: H-InfoNCE's are ways to compute it
SOME = {"reduction": "sum", "mask_duplicate_ids": False}
OTHERS = [
    (HInfoNCEConfig(), {
        "form": "streaming", "min_anchor_label": 3, "min_in_batch_label": 4, "rung_weights": (1.0, 1.0, 1.0, 2.0, 1.0),
        "rung_temperatures": (1.0, 1.0, 1.0, 2.0, 1.0), **SOME,
    }),
    (HInfoNCEConfig(form="streaming"), {"tile": 3}),
    (InfoNCEBinaryConfig(), {"min_positive_label": 5, **SOME}),
    (InfoNCEPerPositiveConfig(), SOME),
    (SoftmaxCEConfig(), {"gain": "exponential", "form": "sum", **SOME}),
    (PairwiseConfig(in_batch=True), {
        "min_anchor_label": 2, "in_batch": False, "in_batch_weight": 0.5, "lambda_rank": True,
        "mask_duplicate_ids": False,
    }),
    (NCEConfig("binary"), {
        "mode": "hardest", "noise_documents": 99, "min_positive_label": 5, "mask_duplicate_ids": False,
    }),
]  # fmt: skip
CASES = [(config, name, value) for config, others in OTHERS for name, value in others.items()]


def case():
    """Four groups of four; group 1 holds the first document of group 0 as well."""
    valid = LABELS.reshape(-1) > 0
    key = np.where(valid, np.arange(16), -1).astype(np.int32)
    key[4] = 0
    batch = Batch(None, None, words(range(4)), words(key), LABELS.reshape(-1), valid, np.zeros(16, np.int32))
    queries, docs = (jax.random.normal(jax.random.key(n), (n, 8)) for n in (4, 16))
    return *(x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (queries, docs)), jnp.float32(-1), batch


def test_all_of_them_are_here():
    assert {type(config) for config, _ in OTHERS} == {*typing.get_args(LossConfig)}
    for kind in typing.get_args(LossConfig):
        told = {name for config, others in OTHERS if type(config) is kind for name in others}
        assert told == {field.name for field in dataclasses.fields(kind)}, kind


@pytest.mark.parametrize(("config", "name", "value"), CASES)
def test_another_value_is_another_loss(config, name, value):
    other = replace(config, **{name: value})
    if isinstance(config, HInfoNCEConfig) and name in ALIKE:
        assert str(jax.make_jaxpr(build_loss(config))(*case())) != str(jax.make_jaxpr(build_loss(other))(*case()))
        return
    before, after = (float(build_loss(c)(*case())[0]) for c in (config, other))
    assert np.isfinite([before, after]).all() and abs(before - after) > 1e-3


@pytest.mark.parametrize("config", [config for config, _ in OTHERS], ids=lambda config: type(config).__name__)
def test_what_a_loss_tells_has_no_gradient(config):
    queries, docs, log_tau, batch = case()

    def told(*vectors):
        _, aux = build_loss(config)(*vectors, batch)
        return aux.row_loss.sum() + aux.row_cosine.sum() + aux.row_weight.sum() + aux.label_cosine.sum()

    assert not any(np.any(g) for g in jax.grad(told, argnums=(0, 1, 2))(queries, docs, log_tau))
