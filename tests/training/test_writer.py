"""What a writer's update minimises, against its parts; and that meshes and padding change nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from crops_jax.batch import Tokens
from crops_jax.models import bart
from crops_jax.models.config import BartConfig
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import RULES, make_mesh, put_rows
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.suggestions.batches import SuggestionBatch
from crops_jax.suggestions.config import RWRConfig
from crops_jax.suggestions.likelihood import answers_log_probability
from crops_jax.training.writer import WriterObjective

V, END = 24, 0
MODEL = BartConfig(
    vocab_size=V, width=16, encoder_layers=1, decoder_layers=1, encoder_heads=2, decoder_heads=2, encoder_ffn=16,
    decoder_ffn=16, max_positions=16, init_std=0.3,
)  # fmt: skip
SFT = WriterConfig(model=MODEL, max_source_tokens=8, max_query_tokens=5)
RWR = replace(SFT, start="sft", rwr=RWRConfig(), losers=2)


def drawn(rows=4, answers=3, seed=0):
    rng = np.random.default_rng(seed)
    source = Tokens(rng.integers(1, V, (rows, 8)).astype(np.int32), rng.integers(1, 9, rows).astype(np.int32))
    ids = rng.integers(1, V, (rows, answers, 5)).astype(np.int32)
    length = rng.integers(1, 6, (rows, answers)).astype(np.int32)
    length[0, 1:] = 0  # a row without losers
    before = np.concatenate([np.full_like(ids[:, :, :1], END), ids[:, :, :-1]], axis=2)
    weight = rng.uniform(0.5, 2, (rows, answers - 1)).astype(np.float32)
    return SuggestionBatch(source, before, Tokens(ids, length), weight, np.zeros((rows, answers), np.float32))


@pytest.fixture(scope="module")
def model():
    return bart.init(MODEL, jax.random.key(0), RULES)


@pytest.mark.slow  # many shapes to compile
def test_an_answer_s_log_probability_is_the_sum_of_its_tokens_alone_and_in_a_batch(model):
    """Against the decoder's logits of each answer alone, without any padding."""
    batch = drawn()
    said = answers_log_probability(model, batch, SFT)
    plain = {"dtype": jnp.dtype("float32"), "remat": "none", "rules": RULES}
    for row in range(4):
        n = int(batch.source.length[row])
        read = batch.source.ids[row : row + 1, :n]
        memory = bart.encode(model, read, np.ones((1, n), np.int32), np.arange(n, dtype=np.int32)[None], **plain)
        for a in range(3):
            length = int(batch.answers.length[row, a])
            if not length:
                assert said[row, a] == 0
                continue
            text = batch.answers.ids[row, a, :length]
            fed, ones = np.array([[END, *text[:-1]]], np.int32), np.ones((1, length), np.int32)
            place = np.arange(length, dtype=np.int32)[None]
            hidden = bart.decode(model, fed, ones, place, memory, np.ones((1, n), np.int32), **plain)
            chance = jax.nn.log_softmax(bart.logits(model, hidden, RULES)[0])
            assert said[row, a] == pytest.approx(float(chance[np.arange(length), text].sum()), abs=1e-4)


@pytest.mark.slow
def test_learning_to_write_is_the_mean_over_tokens_of_what_was_taken(model):
    batch = drawn()
    loss, _ = WriterObjective(SFT).loss(model, batch, None)
    said = answers_log_probability(model, batch, SFT)[:, 0]
    assert float(loss) == pytest.approx(-float(said.sum()) / batch.answers.length[:, 0].sum(), abs=1e-6)


@pytest.mark.slow
def test_where_policy_and_reference_agree_the_margin_still_has_a_gradient(model):
    """All implicit rewards are 0: a list of L losers has log(1 + sum exp(w / 2)), whatever the model."""
    batch = drawn()
    said = np.asarray(answers_log_probability(model, batch, RWR))
    batch = replace(batch, reference=said)
    loss, told = WriterObjective(RWR).loss(model, batch, None)
    lists = [np.log1p(np.exp(batch.weight[row] / 2).sum()) for row in range(1, 4)]  # row 0 has no losers
    assert float(told["preference"]) == pytest.approx(np.mean(lists), abs=1e-5)
    assert float(loss) == pytest.approx(np.mean(lists) + 0.4 * -said[:, 0].mean(), abs=1e-4)
    without = replace(RWR, rwr=RWRConfig(sft_weight=0.0))
    slope = jax.grad(lambda m: WriterObjective(without).loss(m, batch, None)[0])(model)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) > 1e-3
    printed = replace(RWR, rwr=RWRConfig(sft_weight=0.0, form="printed"))
    flat = jax.grad(lambda m: WriterObjective(printed).loss(m, batch, None)[0])(model)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(flat)) == 0


@pytest.mark.slow
def test_a_mesh_gives_the_loss_and_the_gradients_of_one_device(model):
    batch = replace(drawn(8), reference=-np.ones((8, 3), np.float32))
    value_and_slope = jax.jit(jax.value_and_grad(lambda m, b: WriterObjective(RWR).loss(m, b, None)[0]))
    wanted, slopes = value_and_slope(model, batch)
    devices = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(devices):
        spread = jax.tree.map(
            lambda leaf, part: jax.device_put(leaf, NamedSharding(devices, RULES.leaf_spec(devices, part))),
            model, bart.Bart(MODEL),
        )  # fmt: skip
        found, spread_slopes = value_and_slope(spread, put_rows(batch, devices))
    assert float(found) == pytest.approx(float(wanted), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b), atol=2e-5), slopes, spread_slopes)
