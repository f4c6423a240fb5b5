"""A sentence-transformers folder as a function from texts to unit vectors, in JAX.

It reads what such a folder says about itself (`sentence_folder`), tokenizer.json with its own post-processor, and the
weights of its modules. theta is one of these, and an export is replayed by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from crops_jax.batch import Tokens
from crops_jax.models import hf_config, sentence_folder
from crops_jax.models.dual_encoder import hidden_states
from crops_jax.models.hf_import import load_tower
from crops_jax.models.hub_tokenizer import read_tokenizer
from crops_jax.models.row_batches import Batch, Replicated, in_batches
from crops_jax.models.sentence_folder import SentenceFolder
from crops_jax.models.sentence_head import Head, load_head


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
        """float32[n, D], the unit vector of each text, in the order given, by all devices of this process.

        A text's vector does not depend on its neighbours (`row_batches`).

        Args:
          tokens_per_batch: token slots of a device's batch; rows x length is about constant.
          what: label of the progress bar.
        """
        rows = [e.ids for e in self.tokenizer.encode_batch_fast([self.prompt + text for text in texts])]
        skipped = self._skipped()

        def run(model: tuple[Any, Head], batch: Batch) -> jax.Array:
            return vectors(model[0], Tokens(batch.ids, batch.length), model[1], skipped)

        if not rows:
            return np.zeros((0, self.head.width(self.tower.config.width)), np.float32)
        return in_batches(run, self._model, rows, None, tokens_per_batch, self.max_tokens, what)

    @cached_property
    def _model(self) -> Replicated:
        return Replicated((self.tower, self.head))

    def _skipped(self) -> int:
        """How many leading tokens the pooling leaves out: those of the prompt, in folders that pool the text alone."""
        if self.said.include_prompt or not self.prompt:
            return 0
        alone = self.tokenizer.encode(self.prompt)
        return len(alone.ids) - alone.special_tokens_mask[-1]  # the closing token belongs to the text


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
    limit = sentence_folder.limit(folder, max_tokens, said.max_tokens, backbone.max_positions)
    tokenizer = read_tokenizer(said.transformer, limit, said.lower_case, backbone.vocab_size)
    head = load_head(said.pooling, said.modules, backbone.width)
    return SentenceEncoder(load_tower(said.transformer, backbone), tokenizer, head, limit, said)
