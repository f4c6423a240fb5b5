"""What turns texts into model input: a tokeniser, or the hasher of the sparse model."""

from __future__ import annotations

from collections.abc import Sequence

from crops_jax.text.hashed_ids import IdHasher, IdRows
from crops_jax.text.tokenizer import Tokenizer, TokenRows

Featurizer = Tokenizer | IdHasher


def fingerprint(featurizer: Featurizer) -> str:
    """What identifies the token ids (or hashed ids) that a model was trained on."""
    return featurizer.fingerprint() if isinstance(featurizer, Tokenizer) else str(featurizer.config)


def encode_documents(
    featurizer: Featurizer, item_ids: Sequence[int], keywords: Sequence[str], texts: Sequence[str]
) -> TokenRows | IdRows:
    """A row a document; a tokeniser reads its text alone."""
    match featurizer:
        case Tokenizer():
            return featurizer.encode_documents(texts)
        case IdHasher():
            return featurizer.encode_documents(item_ids, keywords, texts)
