"""Settings of the towers that change no shape: each is where it belongs, and everywhere that it belongs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import SPARSE, batch
from jax.extend import core as jex

from crops_jax.models import dual_encoder
from crops_jax.models.attention import attention_mask
from crops_jax.models.config import BertConfig, DualEncoderConfig, Qwen2Config
from crops_jax.parallel.sharding import leaf_name

QWEN2 = Qwen2Config(vocab_size=50, width=16, layers=1, heads=4, kv_heads=2, head_size=4, ffn=32)
BERT = BertConfig(vocab_size=50, width=16, layers=1, heads=4, ffn=32, max_positions=12)


def named(config):
    return {
        leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(dual_encoder.abstract(config))[0]
    }


@pytest.mark.parametrize("backbone", [QWEN2, BERT, SPARSE])
def test_fresh_weights_have_the_configs_deviation(backbone):
    """But for the sparse model's layers, which start at sqrt(2 / inputs); norms start at one, biases at zero."""
    for name, leaf in named(DualEncoderConfig(replace(backbone, init_std=0.3), "mean")).items():
        if leaf.group in ("weights", "tables"):
            layer = "/weights/" in name
            assert leaf.init == "normal" and leaf.scale == ((2 / leaf.shape[0]) ** 0.5 if layer else 0.3), name
        elif leaf.group == "no_decay":
            assert leaf.init == "constant" and leaf.scale == (0.0 if "bias" in name else 1.0), name


def equations(jaxpr: jex.Jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jex.jaxprs_in_params(equation.params):
            yield from equations(inner)


def program(config):
    encode = jax.make_jaxpr(dual_encoder.encode, static_argnums=1)
    return list(equations(encode(dual_encoder.abstract(config), "query", batch("padded").query).jaxpr))


@pytest.mark.parametrize("backbone", [QWEN2, BERT])
def test_every_norm_adds_the_configs_epsilon(backbone):
    """Two of the layer and one of the whole: before the layers in BERT, after them in Qwen2."""
    added = [float(operand.val) for equation in program(DualEncoderConfig(replace(backbone, norm_eps=0.125), "mean"))
             if equation.primitive.name == "add" for operand in equation.invars
             if isinstance(operand, jex.Literal) and jnp.ndim(operand.val) == 0]  # fmt: skip
    assert added.count(0.125) == 3 and not {1e-6, 1e-12} & {*added}


def test_a_token_sees_its_own_text_and_padding_sees_nothing():
    segment = jnp.array([[1, 1, 2, 0, 0]], jnp.int32)
    both_ways = np.zeros((5, 5), bool)
    both_ways[:2, :2] = both_ways[2, 2] = True
    np.testing.assert_array_equal(attention_mask(segment, causal=False)[0], both_ways)
    np.testing.assert_array_equal(attention_mask(segment, causal=True)[0], np.tril(both_ways))


def test_attention_in_blocks_is_the_configs_choice():
    """Scores of all 32 rows of 12 tokens, or of four rows at a time."""

    def scores(most):
        shapes = {v.aval.shape for e in program(DualEncoderConfig(QWEN2, attention_scores=most)) for v in e.outvars}
        return {shape for shape in shapes if shape[-2:] == (12, 12) and len(shape) == 5 and shape[1] == 2}

    assert scores(None) == {(32, 2, 2, 12, 12)} and scores(4 * 4 * 12**2) == {(4, 2, 2, 12, 12)}
