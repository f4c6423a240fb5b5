"""A run whose frozen layers' states are kept: the losses of a run without, and nothing is computed a second time."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import elsewhere, losses, tiny_experiment, with_logs

from crops_jax import encode, train
from crops_jax.batches.config import PackingConfig
from crops_jax.models.config import FrozenConfig
from crops_jax.models.frozen_states import FrozenStates
from crops_jax.retrieval.vectors import open_embeddings

pytestmark = pytest.mark.slow


def vectors(arm):
    return np.concatenate([part for _, part in open_embeddings(arm.arm_folder("embeddings")).pieces()])


def test_states_are_kept_for_all_steps_arms_and_encoding(tmp_path, monkeypatch):
    packing = PackingConfig(doc_row_tokens=32, doc_rows=32, query_row_tokens=16, query_rows=16)
    plain = with_logs(tiny_experiment(tmp_path))
    plain = replace(
        plain,
        input=replace(plain.input, packing=packing),
        model=replace(plain.model, frozen=FrozenConfig(layers=1)),
        train=replace(plain.train, steps=6),
    )
    kept = replace(plain.model, frozen=FrozenConfig(layers=1, keep_states=True))
    first, second = (replace(elsewhere(plain, name), model=kept) for name in ("first", "second"))
    for arm in (plain, first):
        train.run(arm)
        encode.run(arm)

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(FrozenStates, "_computed", never)
    train.run(second)
    encode.run(second)
    wanted = losses(plain)
    for arm in (first, second):
        found = losses(arm)
        assert list(found) == list(wanted)
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-4)
    of_plain, of_first, of_second = map(vectors, (plain, first, second))
    np.testing.assert_allclose(of_first, of_plain, atol=1e-3)
    np.testing.assert_array_equal(of_second, of_first)
