"""theta, the semantic discriminator of Eqs. 1 and 2: a bi-encoder, by default the 6-layer MiniLM.

The paper's discriminator is a 6-layer Transformer that scores query and document; its weights are not public. By
default all-MiniLM-L6-v2 takes its place. Each unique text is encoded once, and a pair costs a dot product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crops_jax.errors import InputError
from crops_jax.hub import INSTALL_MINILM
from crops_jax.models import hf_import, sentence_encoder
from crops_jax.models.config import WORD_OVERLAP, ThetaConfig, Tower
from crops_jax.models.sentence_encoder import SentenceEncoder
from crops_jax.models.word_overlap import WordOverlap

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_PAIRS_AT_ONCE = 1 << 16


@dataclass
class Theta:
    """The discriminator as mining sees it (`mining.relevance.Relevance`)."""

    config: ThetaConfig
    encoder: SentenceEncoder  # of queries
    document_encoder: SentenceEncoder | None = None  # none where documents are encoded as queries are
    _vectors: dict[tuple[Tower, str], np.ndarray] = field(default_factory=dict)

    def scores(self, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float32[n] in [0, 1]: cosine of query and document of each pair, negative ones as 0."""
        documents: Tower = "query" if self.document_encoder is None else "document"
        return np.clip(self._cosines(queries, texts, documents, "theta"), 0, 1)

    def query_similarity(self, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """float32[n] in [-1, 1]: cosine of the two queries of each pair."""
        return np.clip(self._cosines(a, b, "query", "query similarity"), -1, 1)

    def _cosines(self, a: Sequence[str], b: Sequence[str], of_b: Tower, what: str) -> np.ndarray:
        if len(a) != len(b):
            raise ValueError(f"{what}: {len(a)} and {len(b)} texts do not make pairs")
        left_texts: list[tuple[Tower, str]] = [("query", text) for text in a]
        right_texts: list[tuple[Tower, str]] = [(of_b, text) for text in b]
        place = {text: row for row, text in enumerate(dict.fromkeys([*left_texts, *right_texts]))}
        vectors = self._encode(list(place), what)
        left = np.fromiter((place[text] for text in left_texts), np.int64, len(a))
        right = np.fromiter((place[text] for text in right_texts), np.int64, len(b))
        out = np.empty(len(a), np.float32)
        for start in range(0, len(a), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            out[part] = np.einsum("nd,nd->n", vectors[left[part]], vectors[right[part]])
        return out

    def _encode(self, unique: list[tuple[Tower, str]], what: str) -> np.ndarray:
        """float32[n, D] of distinct texts, in a fixed order: each is encoded unless it is remembered."""
        known = dict(self._vectors)
        encoders = {"query": self.encoder, "document": self.document_encoder}
        for tower, encoder in encoders.items():
            new = [key for key in unique if key[0] == tower and key not in self._vectors]
            if encoder is not None:
                texts = [text for _, text in new]
                fresh = encoder.encode(texts, self.config.tokens_per_batch, f"{what}: encode texts")
                known |= zip(new, fresh, strict=True)
        vectors = np.stack([known[text] for text in unique]) if unique else np.zeros((0, 1), np.float32)
        if len(known) <= self.config.remembered_texts:
            self._vectors = known
        return vectors


def load(config: ThetaConfig) -> Theta | WordOverlap:
    """The discriminator that `config.source` names, with its prompts or those of the config before the texts.

    Raises:
      InputError: it is nowhere to be found (says where was looked), its files are damaged, or they ask for something
        that is not implemented.
    """
    if config.source == WORD_OVERLAP:
        return WordOverlap()
    encoder = sentence_encoder.load(find(config.source), config.max_tokens)
    own = encoder.said.query_prompt(), encoder.said.document_prompt()
    given = config.query_prompt, config.document_prompt
    query, document = (its if one is None else one for its, one in zip(own, given, strict=True))
    return Theta(config, encoder.with_prompt(query), None if document == query else encoder.with_prompt(document))


def find(source: str) -> Path:
    """The folder of the discriminator's files; the published weights are verified by hash where they are used."""
    if source != "auto":
        return hf_import.find_source(source)
    if packaged := hf_import.package_folder():
        return packaged
    try:
        folder = hf_import.find_source(HUB_ID)
    except InputError as error:
        raise InputError(
            "theta",
            [
                "no local folder: theta.source names none",
                f"the package is not installed: {INSTALL_MINILM}",
                f"{HUB_ID} was not had from the hub: {error.problems[-1]}",
            ],
        ) from None
    hf_import.verify_minilm(folder)
    return folder
