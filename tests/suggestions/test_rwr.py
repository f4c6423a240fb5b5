"""The losses that learn from preferences: worked numbers, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crops_jax.errors import InputError
from crops_jax.suggestions.config import RWRConfig
from crops_jax.suggestions.rwr import Preferences, rwr_loss, sequence_log_probability

FORMS = ("margin", "hinge_plus", "printed")
WINNER, LOSERS = jnp.array([-6.0]), jnp.array([[-9.0, -8, -7.5, -10]])


def rows(n=4, reference=(-7.0, (-8.0, -8.5, -7, -9)), weight=1 / 1.5):
    losers = jnp.array([reference[1][:n]])
    return Preferences(jnp.array([reference[0]]), losers, jnp.full((1, n), weight), jnp.ones((1, n), bool))


def value(form, kind, n=4, sft=0.0, **changes):
    loss, _ = rwr_loss(WINNER, LOSERS[:, :n], rows(n, **changes), RWRConfig(rows=kind, form=form, sft_weight=sft))
    return float(loss)


def test_the_worked_numbers():
    assert value("margin", "pair", 1) == pytest.approx(0.540306, abs=5e-7)
    listed = {form: value(form, "list") for form in FORMS}
    assert listed == pytest.approx({"margin": 1.495352, "hinge_plus": 1.645068, "printed": np.log(5)}, abs=5e-7)
    assert value("margin", "list", sft=0.4) == pytest.approx(3.895352, abs=5e-7)
    # The winner leads the first loser by 1.0: by 0.5 more than the margin.
    assert value("hinge_plus", "pair", 1) == pytest.approx(np.log(2), abs=5e-7)
    assert value("printed", "pair", 1) == pytest.approx(np.log1p(np.exp(-0.5 / 1.5)), abs=5e-7)
    leads = np.array([1.0, 0.25, 0.75, 1.0])
    assert value("margin", "pair") == pytest.approx(np.log1p(np.exp((0.5 - leads) / 1.5)).mean(), abs=5e-7)


def test_the_slope_where_policy_and_reference_agree():
    """By the implicit reward of the winner, which moves by beta = 0.5 with its log-probability."""
    for form, slope in zip(FORMS, (-0.565387, -0.565387, 0.0), strict=True):
        config = RWRConfig(form=form, sft_weight=0.0)

        def of(winner, config=config):
            return rwr_loss(winner, LOSERS, rows(reference=(-6.0, (-9.0, -8, -7.5, -10))), config)[0]

        assert float(jax.grad(of)(WINNER)[0]) / 0.5 == pytest.approx(slope, abs=5e-7)


@pytest.mark.parametrize(("form", "kind"), [("margin", "list"), ("hinge_plus", "pair"), ("printed", "list")])
def test_padding_and_rows_without_losers_change_nothing_but_the_likelihood(form, kind):
    config = RWRConfig(rows=kind, form=form)

    def of(winner, losers, padding):
        wide = jnp.concatenate([losers, padding], axis=1)
        both = jnp.concatenate([wide, jnp.full((1, 6), jnp.nan)])
        present = jnp.array([[True] * 4 + [False] * 2, [False] * 6])
        fill = lambda a: jnp.concatenate([jnp.pad(a, ((0, 0), (0, 2)), constant_values=jnp.inf), both[1:]])  # noqa: E731
        padded = Preferences(jnp.array([-7.0, -3]), fill(rows().reference_losers), fill(rows().weight), present)
        return rwr_loss(jnp.concatenate([winner, jnp.array([-2.0])]), both, padded, config)

    (loss, aux), slopes = jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True)(
        WINNER, LOSERS, jnp.full((1, 2), jnp.nan)
    )
    _, told = rwr_loss(WINNER, LOSERS, rows(), config)
    assert float(aux.preference) == pytest.approx(float(told.preference), abs=1e-6)
    assert float(loss) == pytest.approx(float(told.preference) + 0.4 * (6 + 2) / 2, abs=1e-6)
    assert float(aux.accuracy) == float(told.accuracy) == 1.0 and float(aux.gap) == pytest.approx(0.75)
    direct = jax.grad(lambda *both: rwr_loss(*both, rows(), config)[0], argnums=(0, 1))(WINNER, LOSERS)
    np.testing.assert_allclose(slopes[1], direct[1], atol=1e-6)
    np.testing.assert_allclose(slopes[0], direct[0] + 0.4 / 2, atol=1e-6)
    assert np.asarray(slopes[2]).tolist() == [[0, 0]]
    nobody = Preferences(jnp.array([-7.0]), LOSERS, LOSERS, jnp.zeros((1, 4), bool))
    assert float(rwr_loss(WINNER, LOSERS, nobody, config)[0]) == pytest.approx(0.4 * 6)


def test_equal_losers_in_a_list_are_one_pair_with_a_head_start():
    """log(1 + 3 exp(z)) = softplus(z + log 3)."""
    same = Preferences(jnp.array([-7.0]), jnp.full((1, 3), -8.0), jnp.full((1, 3), 2.0), jnp.ones((1, 3), bool))
    loss, _ = rwr_loss(WINNER, jnp.full((1, 3), -9.0), same, RWRConfig(sft_weight=0.0))
    assert float(loss) == pytest.approx(np.log1p(np.exp(2 * (0.5 - 1.0) + np.log(3))), abs=1e-6)


def test_a_sequence_is_the_sum_of_its_tokens():
    """Two tokens of chance 1/2 and 1/4, and a third place that is padding."""
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]]))
    present = jnp.array([True, True, False])
    of = lambda x: sequence_log_probability(x, jnp.array([0, 1, 2]), present)  # noqa: E731
    found, slope = jax.value_and_grad(of)(logits)
    assert float(found) == pytest.approx(np.log(0.125), abs=1e-6)
    np.testing.assert_allclose(slope, [[0.5, -0.25, -0.25], [-0.25, 0.75, -0.5], [0, 0, 0]], atol=1e-6)
    assert of(logits.astype(jnp.bfloat16)).dtype == jnp.float32


def test_impossible_settings_are_told():
    with pytest.raises(InputError, match="beta: 0 is not above zero"):
        RWRConfig(beta=0)
    with pytest.raises(InputError, match="sft_weight = -1: must be a number of 0 or more"):
        RWRConfig(sft_weight=-1)
