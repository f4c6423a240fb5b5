"""A sentence-transformers folder as a function from texts to unit vectors, in JAX.

It reads what such a folder says about itself (`sentence_folder`), tokenizer.json with its own post-processor, and the
weights of its modules. theta is one of these, and an export is replayed by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import normalizers

from crops_jax.batch import Tokens
from crops_jax.errors import InputError
from crops_jax.models import hf_config, sentence_folder
from crops_jax.models.dual_encoder import hidden_states
from crops_jax.models.hf_import import load_tower
from crops_jax.models.sentence_folder import SentenceFolder
from crops_jax.models.sentence_head import Head, load_head
from crops_jax.progress import bar

_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # row lengths: one compiled shape each


@dataclass(frozen=True)
class SentenceEncoder:
    """A loaded folder; `encode` is its verb."""

    tower: Any
    tokenizer: tokenizers.Tokenizer
    head: Head
    max_tokens: int
    said: SentenceFolder
    prompt: str = ""

    def with_prompt(self, prompt: str) -> SentenceEncoder:
        """The same encoder that puts `prompt` before every text."""
        return replace(self, prompt=prompt)

    def encode(self, texts: Sequence[str], tokens_per_batch: int = 1024, what: str = "encode") -> np.ndarray:
        """float32[n, D], the unit vector of each text, in the order given.

        Texts are sorted by length and padded to a few static lengths, so that little of a batch is padding and each
        length compiles once. A text's vector does not depend on its neighbours.

        Args:
          tokens_per_batch: token slots of a batch; rows x length is about constant.
          what: label of the progress bar.
        """
        rows = [e.ids for e in self.tokenizer.encode_batch_fast([self.prompt + text for text in texts])]
        skipped = self._skipped()
        lengths = np.array([len(row) for row in rows], np.int64)
        out = np.zeros((len(rows), self.head.width(self.tower.config.width)), np.float32)
        order = np.argsort(lengths, kind="stable")
        with bar(what, total=len(rows), unit="text") as shown:
            start = 0
            while start < len(order):
                slots, chosen = self._next_batch(order[start:], lengths, tokens_per_batch)
                out[chosen] = self._batch([rows[i] for i in chosen], slots, skipped)
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

    def _skipped(self) -> int:
        """How many leading tokens the pooling leaves out: those of the prompt, in folders that pool the text alone."""
        if self.said.include_prompt or not self.prompt:
            return 0
        alone = self.tokenizer.encode(self.prompt)
        return len(alone.ids) - alone.special_tokens_mask[-1]  # the closing token belongs to the text

    def _batch(self, rows: list[list[int]], slots: tuple[int, int], skipped: int) -> np.ndarray:
        ids, length = np.zeros(slots, np.int32), np.zeros(slots[0], np.int32)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            length[place] = len(row)
        return np.asarray(vectors(self.tower, Tokens(ids, length), self.head, skipped))[: len(rows)]


@partial(jax.jit, static_argnums=3)
def vectors(tower: Any, tokens: Tokens, head: Head, skipped: int = 0) -> jax.Array:
    """float32[n, D], the unit vectors of token rows, in float32 throughout; see `Head.vectors`."""
    with jax.default_matmul_precision("highest"):  # accelerators multiply float32 in fewer bits unless told
        hidden, _ = hidden_states(tower, tokens, dtype=jnp.dtype("float32"))
        return head.vectors(hidden, tokens.length, skipped)


def load(folder: Path, max_tokens: int | None = None) -> SentenceEncoder:
    """Reads a sentence-transformers folder; no prompt is put before its texts (`SentenceEncoder.with_prompt`).

    Args:
      max_tokens: cut texts to this many tokens, special ones included, where the folder does not cut them sooner.

    Raises:
      InputError: a file is missing or damaged, something of the folder is not implemented, or the weights do not fit
        config.json; see `sentence_folder.read`, `hf_import.load_tower` and `sentence_head.load_head`.
    """
    said = sentence_folder.read(folder)
    backbone = hf_config.from_hf_json(said.transformer / "config.json")
    limit = min(filter(None, (max_tokens, said.max_tokens)), default=backbone.max_positions)
    if not 2 <= limit <= backbone.max_positions:
        raise InputError(str(folder), f"max_seq_length is {limit}, not within 2..{backbone.max_positions}")
    tokenizer = _tokenizer(said, limit)
    head = load_head(said.pooling, said.modules, backbone.width)
    return SentenceEncoder(load_tower(said.transformer, backbone), tokenizer, head, limit, said)


def _tokenizer(said: SentenceFolder, limit: int) -> tokenizers.Tokenizer:
    """tokenizer.json, with what the files beside it change."""
    path = said.transformer / "tokenizer.json"
    if not path.is_file():
        mend = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers writes it"
        raise InputError(str(path), f"no such file; {mend}")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise InputError(str(path), f"is not a tokenizer.json of the tokenizers library ({error})") from None
    config = sentence_folder.read_json(said.transformer / "tokenizer_config.json", optional=True)
    _normalise_as_told(tokenizer, config, said.lower_case)
    if config.get("add_eos_token") and not _closes(tokenizer, config.get("eos_token")):
        said = "tokenizer_config.json says add_eos_token, which some readers follow and some do not"
        raise InputError(str(path), f"{said}; write it into the post_processor here, or take it out there")
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, direction=config.get("truncation_side") or "right")
    return tokenizer


def _normalise_as_told(tokenizer: tokenizers.Tokenizer, config: dict[str, Any], lower_case: bool) -> None:
    """BERT's normaliser by tokenizer_config.json, which transformers follows where tokenizer.json says otherwise."""
    own = tokenizer.normalizer
    if isinstance(own, normalizers.BertNormalizer):
        names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
        names["tokenize_chinese_chars"] = "handle_chinese_chars"
        for theirs, ours in names.items():
            if config.get(theirs) is not None:
                setattr(own, ours, config[theirs])
        tokenizer.normalizer = own
    if lower_case:
        parts = [normalizers.Lowercase(), *([own] if own is not None else [])]
        tokenizer.normalizer = normalizers.Sequence(parts)


def _closes(tokenizer: tokenizers.Tokenizer, eos: str | dict[str, Any] | None) -> bool:
    """Whether tokenizer.json's own post-processor ends a text with the end-of-sequence token."""
    token = eos.get("content") if isinstance(eos, dict) else eos
    return tokenizer.encode("a").tokens[-1:] == [token]
