"""BART without torch: on eight devices as on one, its weights through a checkpoint and back, and odd checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from crops_jax.errors import InputError
from crops_jax.models import bart, hf_tensors
from crops_jax.models.bart_import import BART_TENSORS, load_bart
from crops_jax.models.config import BartConfig
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import RULES, make_mesh, put_rows

SHAPE = BartConfig(vocab_size=40, width=16, encoder_layers=1, decoder_layers=2, encoder_heads=2, decoder_heads=4,
                   encoder_ffn=24, decoder_ffn=8, max_positions=12, init_std=0.3)  # fmt: skip
SAYS = {
    "model_type": "bart", "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 8,
    "max_position_embeddings": 12, "init_std": 0.3, "activation_function": "gelu", "is_encoder_decoder": True,
    "forced_eos_token_id": 2, "decoder_start_token_id": 2, "encoder_layerdrop": 0.0, "num_hidden_layers": 1,
}  # fmt: skip
PLAIN = {"dtype": jnp.dtype("float32"), "remat": "none", "rules": RULES}


def rows():
    rng = np.random.default_rng(0)
    place = np.broadcast_to(np.arange(6, dtype=np.int32), (8, 6))
    return [(rng.integers(0, 40, (8, 6), np.int32), (place < rng.integers(1, 7, (8, 1))).astype(np.int32), place)
            for _ in range(2)]  # fmt: skip


def loss(model, read, written):
    memory = bart.encode(model, *read, **PLAIN)
    hidden = bart.decode(model, *written, memory, read[1], **PLAIN)
    chance = jax.nn.log_softmax(bart.logits(model, hidden, RULES))
    return jnp.where(written[1][:, :, None] > 0, chance, 0)[:, :, :7].sum() / 8


@pytest.mark.slow
def test_eight_devices_equal_one():
    model, (read, written) = bart.init(SHAPE, jax.random.key(0), RULES), rows()
    value, slope = jax.jit(jax.value_and_grad(loss))(model, read, written)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    with jax.set_mesh(mesh):
        split = bart.init(SHAPE, jax.random.key(0), RULES)
        assert split.decoder.across.q.sharding.spec != split.embedding.sharding.spec
        both = [put_rows(part, mesh) for part in (read, written)]
        again, split_slope = jax.jit(jax.value_and_grad(loss))(split, *both)
    assert float(again) == pytest.approx(float(value), abs=1e-4)
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(split_slope), strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), atol=2e-4)


@pytest.fixture
def checkpoint(tmp_path):
    """(a folder as `BartForConditionalGeneration` has it, the model whose weights it holds)."""
    model = bart.init(SHAPE, jax.random.key(1), RULES)
    tensors = {f"model.{n}": a for n, a in hf_tensors.to_theirs(model, BART_TENSORS).items()}
    shared = {
        f"model.{side}.embed_tokens.weight": tensors["model.shared.weight"].copy() for side in ("encoder", "decoder")
    }
    write(tmp_path, tensors | shared | {"final_logits_bias": np.zeros((1, 40), np.float32)})
    return tmp_path, model


def write(folder, tensors, **says):
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SAYS | says))


def test_weights_come_back_from_a_checkpoint(checkpoint):
    folder, model = checkpoint
    read = load_bart(folder)
    assert read.config == SHAPE
    for one, other in zip(jax.tree.leaves(model), jax.tree.leaves(read), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_all_that_is_odd_about_a_checkpoint_comes_at_once(checkpoint):
    folder, model = checkpoint
    tensors = hf_tensors.to_theirs(model, BART_TENSORS)
    del tensors["encoder.layers.0.fc1.bias"]
    tensors["decoder.layers.1.fc2.weight"] = np.zeros((8, 16), np.float32)
    tensors |= {"extra.weight": np.zeros(1, np.float32), "final_logits_bias": np.ones((1, 40), np.float32)}
    write(folder, tensors)
    with pytest.raises(InputError) as error:
        load_bart(folder)
    text = str(error.value)
    assert "encoder.layers.0.fc1.bias: missing" in text and "extra.weight: unexpected" in text
    assert "decoder.layers.1.fc2.weight: shape (8, 16), expected (16, 8)" in text
    assert "final_logits_bias: holds other numbers than 0" in text
    write(folder, tensors, scale_embedding=True, activation_function="relu", strange=1)
    with pytest.raises(InputError) as error:
        load_bart(folder)
    assert len(error.value.problems) == 3
    write(folder, tensors, model_type="mbart")
    with pytest.raises(InputError, match="'mbart': an encoder-decoder has to be a bart"):
        load_bart(folder)
