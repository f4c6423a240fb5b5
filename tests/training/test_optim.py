"""The learning rate over a run, and lengths that do not fit it."""

import numpy as np
import pytest

from crops_jax.errors import InputError
from crops_jax.training import optim
from crops_jax.training.config import OptimConfig


def _rates(config: OptimConfig, steps: int) -> np.ndarray:
    schedule = optim.learning_rate_schedule(config, steps)
    return np.array([float(schedule(step)) for step in range(steps)])


def test_warm_up_and_decay_by_hand():
    linear = OptimConfig(learning_rate=1.0, warmup_steps=2, schedule="linear")
    np.testing.assert_allclose(_rates(linear, 6), [0, 0.5, 1, 0.75, 0.5, 0.25], atol=1e-6)
    cosine = OptimConfig(learning_rate=1.0, schedule="cosine")
    np.testing.assert_allclose(_rates(cosine, 4), [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2], atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_declared_length_gives_the_short_run_the_rates_of_the_long_one(schedule):
    declared = OptimConfig(learning_rate=1.0, warmup_steps=2, schedule=schedule, schedule_steps=36)
    np.testing.assert_array_equal(_rates(declared, 24), _rates(declared, 36)[:24])
    undeclared = OptimConfig(learning_rate=1.0, warmup_steps=2, schedule=schedule)
    np.testing.assert_array_equal(_rates(declared, 36), _rates(undeclared, 36))


def test_lengths_that_do_not_fit_are_refused():
    for warmup in (20, 100):
        with pytest.raises(InputError, match=rf"warmup_steps = {warmup} takes all 20 steps(.|\n)*schedule_steps"):
            optim.build(OptimConfig(warmup_steps=warmup), {}, 20)
    optim.build(OptimConfig(warmup_steps=100, schedule_steps=1000), {}, 20)  # a trial of a longer run
    optim.build(OptimConfig(schedule_steps=10), {}, 20)  # a constant rate ends nowhere
    with pytest.raises(InputError, match=r"train.steps = 20 goes beyond optim.schedule_steps = 10, where the cosine"):
        optim.build(OptimConfig(schedule="cosine", schedule_steps=10), {}, 20)
    with pytest.raises(InputError, match="warmup_steps = -1, schedule_steps = None"):
        OptimConfig(warmup_steps=-1)
    with pytest.raises(InputError, match="schedule_steps = 0"):
        OptimConfig(schedule_steps=0)
