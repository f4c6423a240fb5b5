"""A tiny cross-encoder as it lies on the hub, against its equations in numpy."""

import json
from math import erf, sqrt
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from crops_jax.errors import InputError
from crops_jax.models import cross_encoder, theta
from crops_jax.models.config import ThetaConfig

WIDTH, HEADS, FFN, LAYERS = 8, 2, 12, 2
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "cordless", "drill", "impact", "driver", "oak", "table"]
FIRST, SECOND = ["cordless drill", "drill", "oak"], ["impact driver drill", "table", "oak oak table impact driver"]


def checkpoint(folder: Path, labels: int = 1, **config) -> Path:
    """A BertForSequenceClassification with random weights, in transformers' files."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(0, 0.5, shape).astype(np.float32)

    shapes = {"embeddings.word_embeddings.weight": (len(WORDS), WIDTH), "pooler.dense.weight": (WIDTH, WIDTH),
              "embeddings.position_embeddings.weight": (16, WIDTH), "pooler.dense.bias": (WIDTH,),
              "embeddings.token_type_embeddings.weight": (2, WIDTH)}  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        square = [f"attention.self.{name}" for name in ("query", "key", "value")] + ["attention.output.dense"]
        sizes = dict.fromkeys(square, (WIDTH, WIDTH)) | {
            "intermediate.dense": (FFN, WIDTH),
            "output.dense": (WIDTH, FFN),
        }
        for name, (out, into) in sizes.items():
            shapes |= {f"{layer}.{name}.weight": (out, into), f"{layer}.{name}.bias": (out,)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    tensors = {f"bert.{name}": draw(*shape) for name, shape in shapes.items()}
    tensors |= {"classifier.weight": draw(labels, WIDTH), "classifier.bias": draw(labels)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": FFN, "hidden_act": "gelu",
            "vocab_size": len(WORDS), "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
            "id2label": {str(i): f"LABEL_{i}" for i in range(labels)}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told | config))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def by_hand(folder: Path, ids: list[int], types: list[int]) -> float:
    """The sigmoid of one pair's logit."""
    w = {
        name.removeprefix("bert."): x.astype(np.float64) for name, x in load_file(folder / "model.safetensors").items()
    }

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][types])
    size = WIDTH // HEADS
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        q, k, v = (linear(f"{layer}.attention.self.{name}", x) for name in ("query", "key", "value"))
        heads = []
        for part in (slice(h * size, (h + 1) * size) for h in range(HEADS)):
            weight = np.exp(q[:, part] @ k[:, part].T / sqrt(size))
            heads.append(weight / weight.sum(-1, keepdims=True) @ v[:, part])
        attended = linear(f"{layer}.attention.output.dense", np.concatenate(heads, -1))
        x = norm(f"{layer}.attention.output.LayerNorm", x + attended)
        up = linear(f"{layer}.intermediate.dense", x)
        up = up * (1 + np.vectorize(erf)(up / sqrt(2))) / 2
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", up))
    logit = linear("classifier", np.tanh(linear("pooler.dense", x[0])))[0]
    return 1 / (1 + np.exp(-logit))


def rows(first: str, second: str) -> tuple[list[int], list[int]]:
    a, b = ([WORDS.index(word) for word in text.split()] for text in (first, second))
    return [1, *a, 2, *b, 2], [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_a_pair_is_one_row_of_two_segments_and_its_value_the_sigmoid_of_the_logit(tmp_path):
    folder = checkpoint(tmp_path / "model")
    wanted = [by_hand(folder, *rows(a, b)) for a, b in zip(FIRST, SECOND, strict=True)]
    assert np.ptp(wanted) > 0.01
    model = cross_encoder.load(folder)
    np.testing.assert_allclose(model.probabilities(FIRST, SECOND), wanted, atol=1e-5)
    swapped = by_hand(folder, *rows(SECOND[0], FIRST[0]))
    np.testing.assert_allclose(model.probabilities(SECOND[:1], FIRST[:1]), [swapped], atol=1e-5)
    assert abs(swapped - wanted[0]) > 1e-4
    assert model.probabilities([], []).shape == (0,)


def test_theta_takes_it_and_cuts_the_longer_text(tmp_path):
    folder = checkpoint(tmp_path / "model", num_labels=1, sbert_ce_default_activation_function="torch.nn.Identity")
    found = theta.load(ThetaConfig(source=str(folder), max_tokens=8), tmp_path / "cache")
    cut = [*FIRST[:2], "oak"], [*SECOND[:2], "oak oak table impact"]
    wanted = [by_hand(folder, *rows(a, b)) for a, b in zip(*cut, strict=True)]
    np.testing.assert_allclose(found.scores(FIRST, SECOND), wanted, atol=1e-5)
    np.testing.assert_allclose(found.query_similarity(FIRST, SECOND), wanted, atol=1e-5)


def test_what_is_no_cross_encoder_with_one_label_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="gives 3 labels a pair; a cross-encoder with one"):
        cross_encoder.load(checkpoint(tmp_path / "three", labels=3))
    folder = checkpoint(tmp_path / "headless")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: x for n, x in tensors.items() if not n.startswith("classifier")}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"classifier.weight: missing(.|\n)*classifier.bias: missing"):
        cross_encoder.load(folder)
    told = {"transformer_task": "feature-extraction"}
    (checkpoint(tmp_path / "other") / "sentence_bert_config.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="transformer_task = 'feature-extraction' is not implemented"):
        cross_encoder.load(tmp_path / "other")
