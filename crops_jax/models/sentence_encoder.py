"""A sentence-transformers folder as a function from texts to unit vectors, in JAX.

It reads what such a folder says about itself: config.json, 1_Pooling/config.json, sentence_bert_config.json,
tokenizer.json with its own post-processor, model.safetensors. theta is one of these, and an export is replayed by it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from crops_jax.batch import Tokens
from crops_jax.errors import InputError
from crops_jax.models import hf_config
from crops_jax.models.config import Pooling
from crops_jax.models.dual_encoder import hidden_states, normalise, pool
from crops_jax.models.hf_import import load_tower
from crops_jax.progress import bar

POOLING_KEYS: dict[Pooling, str] = {
    "last": "pooling_mode_lasttoken",
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
}
_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # row lengths: one compiled shape each


@dataclass(frozen=True)
class SentenceEncoder:
    """A loaded folder; `encode` is its only verb."""

    tower: Any
    tokenizer: tokenizers.Tokenizer
    pooling: Pooling
    max_tokens: int

    def encode(self, texts: Sequence[str], tokens_per_batch: int = 1024, what: str = "encode") -> np.ndarray:
        """float32[n, D], the unit vector of each text, in the order given.

        Texts are sorted by length and padded to a few static lengths, so that little of a batch is padding and each
        length compiles once. A text's vector does not depend on its neighbours.

        Args:
          tokens_per_batch: token slots of a batch; rows x length is about constant.
          what: label of the progress bar.
        """
        rows = [e.ids for e in self.tokenizer.encode_batch_fast(list(texts))]
        lengths = np.array([len(row) for row in rows], np.int64)
        out = np.zeros((len(rows), self.tower.config.width), np.float32)
        order = np.argsort(lengths, kind="stable")
        with bar(what, total=len(rows), unit="text") as shown:
            start = 0
            while start < len(order):
                slots, chosen = self._next_batch(order[start:], lengths, tokens_per_batch)
                out[chosen] = self._batch([rows[i] for i in chosen], slots)
                start += len(chosen)
                shown.update(len(chosen))
        return out

    def _next_batch(self, order: np.ndarray, lengths: np.ndarray, budget: int) -> tuple[tuple[int, int], np.ndarray]:
        """((rows, length), the texts of the batch): the shortest ones left, all padded to one static length."""
        length = self._padded(lengths[order[0]])
        rows = max(1, budget // length)
        chosen = order[:rows]
        return (rows, length), chosen[lengths[chosen] <= length]

    def _padded(self, length: int) -> int:
        return next((size for size in _LENGTHS if length <= size <= self.max_tokens), self.max_tokens)

    def _batch(self, rows: list[list[int]], slots: tuple[int, int]) -> np.ndarray:
        ids, length = np.zeros(slots, np.int32), np.zeros(slots[0], np.int32)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            length[place] = len(row)
        return np.asarray(vectors(self.tower, Tokens(ids, length), self.pooling))[: len(rows)]


@partial(jax.jit, static_argnums=2)
def vectors(tower: Any, tokens: Tokens, pooling: Pooling) -> jax.Array:
    """float32[n, D], the unit vectors of token rows, in float32 throughout; a row of length 0 gives zeros."""
    with jax.default_matmul_precision("highest"):  # accelerators multiply float32 in fewer bits unless told
        hidden, _ = hidden_states(tower, tokens, dtype=jnp.dtype("float32"))
    return normalise(pool(hidden, tokens.length, pooling))


def load(folder: Path, max_tokens: int | None = None) -> SentenceEncoder:
    """Reads a sentence-transformers folder.

    Args:
      max_tokens: cut texts to this many tokens, special ones included; None takes the folder's own max_seq_length.

    Raises:
      InputError: a file is missing or damaged, pools in a way that is not implemented, or the weights do not fit
        config.json; see `hf_import.load_tower`.
    """
    pooling = _pooling(folder / "1_Pooling" / "config.json")
    limit = max_tokens or _read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    backbone = hf_config.from_hf_json(folder / "config.json")
    if not isinstance(limit, int) or not 2 <= limit <= backbone.max_positions:
        raise InputError(str(folder), f"max_seq_length is {limit}, not within 2..{backbone.max_positions}")
    return SentenceEncoder(load_tower(folder, backbone), _tokenizer(folder, limit), pooling, limit)


def _tokenizer(folder: Path, limit: int) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(str(path), "no such file")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise InputError(str(path), f"is not a tokenizer.json of the tokenizers library ({error})") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return tokenizer


def _pooling(path: Path) -> Pooling:
    config = _read_json(path)
    on = {key for key, value in config.items() if key.startswith("pooling_mode_") and value is True}
    for pooling, key in POOLING_KEYS.items():
        if on == {key}:
            return pooling
    raise InputError(str(path), f"pools by {sorted(on) or 'nothing'}; one of {sorted(POOLING_KEYS.values())} is needed")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise InputError(str(path), "no such file: this is no sentence-transformers folder") from None
    except (ValueError, TypeError) as error:
        raise InputError(str(path), f"is not a JSON object ({error})") from None
