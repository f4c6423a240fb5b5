"""From an experiment to what turns its texts into model input. Loads no jax."""

from __future__ import annotations

import dataclasses

from crops_jax.config import Experiment
from crops_jax.errors import InputError
from crops_jax.models.config import SparseMlpConfig
from crops_jax.text.featurizer import Featurizer
from crops_jax.text.hashed_ids import IdHasher
from crops_jax.text.tokenizer import Tokenizer


def featurizer_of(experiment: Experiment) -> Featurizer:
    """The tokeniser (or the hasher of the sparse model) that this experiment's model reads.

    Raises:
      InputError: the tokeniser is missing, or knows more tokens, or makes longer texts, than the model has rows for.
    """
    if isinstance(experiment.model.backbone, SparseMlpConfig):
        return IdHasher(experiment.model.backbone.ids)
    config, tokenizer = experiment.text, tokenizer_of(experiment)
    rows, positions = experiment.model.backbone.vocab_size, experiment.model.backbone.max_positions
    longest = max(config.max_query_tokens, config.max_doc_tokens)
    if longest > positions:  # a position without a row would be NaN
        raise InputError("text config", f"texts of up to {longest} tokens, but model.backbone.max_positions is "
                         f"{positions}; lower text.max_query_tokens and text.max_doc_tokens")  # fmt: skip
    if tokenizer.vocab_size > rows:
        raise InputError(str(tokenizer.path), f"has {tokenizer.vocab_size} tokens, but model.backbone.vocab_size is "
                         f"{rows}; set it to at least that")  # fmt: skip
    return tokenizer


def tokenizer_of(experiment: Experiment) -> Tokenizer:
    """The tokeniser of this experiment: the one trained on the train day's texts, or the one that it names.

    Raises:
      InputError: it is missing or damaged.
    """
    config = experiment.text
    if experiment.vocabulary is not None:
        config = dataclasses.replace(config, tokenizer=str(experiment.ready("tokenizer") / "tokenizer.json"))
    return Tokenizer(config)
