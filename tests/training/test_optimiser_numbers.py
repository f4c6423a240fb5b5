"""The updates of a run, group by group, against Adam written out in numpy; and tau put back within its bounds."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import SPARSE, batch

from crops_jax.config import Experiment
from crops_jax.models import dual_encoder
from crops_jax.models.config import BertConfig, DualEncoderConfig, FrozenConfig, Qwen2Config
from crops_jax.parallel.sharding import leaf_name
from crops_jax.runs.tasks import task_of
from crops_jax.training.config import OptimConfig, TrainConfig
from crops_jax.training.step import build_step, init_state

STEPS, WARMUP = 5, 2
MODEL = DualEncoderConfig(SPARSE, frozen=FrozenConfig(towers=("query",)))
CONFIG = OptimConfig(learning_rate=0.5, weight_decay=0.25, b1=0.8, b2=0.95, eps=1e-2, clip_norm=None)
CASES = {
    "constant": CONFIG,
    "clipped, with rates of their own": replace(CONFIG, clip_norm=0.3, tau_learning_rate=0.03, table_learning_rate=2.0),
    "warm-up and cosine": replace(CONFIG, warmup_steps=WARMUP, schedule="cosine", tau_learning_rate=0.01),
    "warm-up and linear, coupled": replace(CONFIG, warmup_steps=WARMUP, schedule="linear", decay="coupled"),
    "cosine without warm-up": replace(CONFIG, schedule="cosine", clip_norm=1e9),
}


def shape_of(config, k):
    """The part of its peak that a rate has at update k."""
    if k < config.warmup_steps:
        return k / config.warmup_steps
    done = (k - config.warmup_steps) / (STEPS - config.warmup_steps)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.schedule]


def by_hand(config, parameters, gradients, groups):
    """The parameters after every update, in float64."""
    names = {"tau": config.tau_learning_rate, "tables": config.table_learning_rate}
    peak = [names.get(group) or config.learning_rate for group in groups]
    now = [np.array(p, np.float64) for p in parameters]
    m, v, after = [0.0] * len(now), [0.0] * len(now), []
    for k, gradient in enumerate(gradients):
        norm = math.sqrt(sum((np.array(g, np.float64) ** 2).sum() for g in gradient))
        scale = 1 if config.clip_norm is None else min(1, config.clip_norm / norm)
        for i, (group, g) in enumerate(zip(groups, gradient, strict=True)):
            g, decay = scale * np.array(g, np.float64), config.weight_decay * now[i] if group == "weights" else 0.0
            g = g + decay if config.decay == "coupled" else g
            m[i] = config.b1 * m[i] + (1 - config.b1) * g
            v[i] = config.b2 * v[i] + (1 - config.b2) * g**2
            way = (m[i] / (1 - config.b1 ** (k + 1))) / (np.sqrt(v[i] / (1 - config.b2 ** (k + 1))) + config.eps)
            way = way + decay if config.decay == "decoupled" else way
            now[i] = now[i] - peak[i] * shape_of(config, k) * way
        after.append([np.copy(x) for x in now])
    return after


@pytest.mark.parametrize("case", CASES)
def test_every_group_moves_as_its_numbers_say(case):
    """What is frozen has no update at all; the rates are those of the experiment and of its number of steps."""
    config, rng = CASES[case], np.random.default_rng(0)
    task = task_of(Experiment(model=MODEL, optim=config, train=TrainConfig(steps=STEPS)))
    model = dual_encoder.init(MODEL, jax.random.key(0))
    parameters = dual_encoder.trainable(model)
    flat, tree = jax.tree.flatten(parameters)
    groups = [g for g in jax.tree.leaves(dual_encoder.parameter_groups(MODEL)) if g != "frozen"]
    assert {*groups} == {"weights", "no_decay", "tables", "tau"} and len(groups) == len(flat)
    assert len(flat) < len(jax.tree.leaves(model)) and jax.tree.leaves(parameters.query_tower) == []
    gradients = [[rng.normal(size=x.shape).astype(np.float32) for x in flat] for _ in range(STEPS)]
    wanted = by_hand(config, flat, gradients, groups)
    state, now, update = task.optimiser.init(parameters), parameters, jax.jit(task.optimiser.update)
    for k in range(STEPS):
        moved, state = update(jax.tree.unflatten(tree, gradients[k]), state, now)
        now = jax.tree.map(jnp.add, now, moved)
        if shape_of(config, k) == 0:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(moved))
        for found, expected in zip(jax.tree.leaves(now), wanted[k], strict=True):
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_tau_is_put_back_after_an_update_that_leaves_its_bounds():
    """With so large a rate the first update alone would leave them; the loss itself sees tau as it is."""
    config = DualEncoderConfig(SPARSE, tau_init=0.3, tau_min=0.2, tau_max=0.4)
    optimiser = OptimConfig(learning_rate=1e-3, tau_learning_rate=50.0)
    task = task_of(Experiment(model=config, optim=optimiser, train=TrainConfig(steps=STEPS)))
    state = init_state(dual_encoder.init(config, jax.random.key(0)), task.objective, task.optimiser)
    step = jax.jit(build_step(task.objective, task.optimiser))
    for _ in range(2):
        state, metrics = step(state, batch("ids"), None)
        bound = min((0.2, 0.4), key=lambda tau: abs(tau - float(metrics["tau"])))
        assert float(metrics["tau"]) == pytest.approx(bound, rel=1e-6)
        assert float(state.model.log_tau) == pytest.approx(math.log(bound), rel=1e-6)
    assert int(state.step) == 2


@pytest.mark.parametrize(
    "backbone", [Qwen2Config(layers=1), BertConfig(layers=1), SPARSE], ids=lambda b: type(b).__name__
)
def test_norms_biases_tables_and_tau_are_never_decayed(backbone):
    groups = dual_encoder.parameter_groups(DualEncoderConfig(backbone, "mean"))
    named = {leaf_name(path): group for path, group in jax.tree_util.tree_flatten_with_path(groups)[0]}
    assert named.pop("log_tau") == "tau" and {"weights", "no_decay"} <= {*named.values()}
    for name, group in named.items():
        small = "no_decay" if "norm" in name or "bias" in name else "weights"
        assert group == ("tables" if "/tables/" in name else small), name
