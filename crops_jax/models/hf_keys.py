"""Keys of the JSON files of a checkpoint: which values have another form than they should, and what is harmless.

Harmless keys of a config.json do not change the hidden states of its tower, whatever their values. They are what BERT
and Qwen2 files of all ages carry: notes of tools, of heads, of training, of text generation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import UnionType
from typing import Any

# fmt: off
_HARMLESS = frozenset((
    # where the file comes from
    "architectures", "auto_map", "backend", "finetuning_task", "keys_to_ignore_at_inference", "language",
    "library_name", "model_type", "name", "name_or_path", "tokenizer_class", "transformers.js_config",
    "transformers_version", "use_unsloth",
    # storage and speed: the same numbers
    "attn_implementation", "chunk_size_feed_forward", "dtype", "gradient_checkpointing", "low_cpu_mem_usage",
    "tf_legacy_loss", "torch_dtype", "torchscript", "use_bfloat16", "use_cache", "use_flash_attn",
    "use_memory_efficient_attention", "xla_device",
    # heads and losses
    "id2label", "is_matryoshka", "label2id", "loss_type", "matryoshka_dimensions", "num_labels", "problem_type",
    "sentence_transformers", "task_specific_params", "tie_encoder_decoder", "tie_word_embeddings",
    # BERT's pre-training
    "directionality", "output_past", "vocab_type",
    # texts of more than 262144 tokens (Qwen2.5-1M)
    "dual_chunk_attention_config",
    # text generation
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "generation_config", "length_penalty",
    "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "prefix", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
))
# fmt: on
# transformers' private notes, dropout (there is none here), settings of heads and of what is returned, special ids.
_HARMLESS_PATTERN = re.compile(
    r"_.+|.*(dropout|pdrop|drop_prob).*|(pooler|classifier|summary|sbert_ce|unsloth|output)_.+|.+_token_ids?"
)


def is_harmless(key: str) -> bool:
    """Whether the key leaves the tower's hidden states alone.

    >>> is_harmless("pooler_fc_size"), is_harmless("position_embedding_type")
    (True, False)
    """
    return key in _HARMLESS or _HARMLESS_PATTERN.fullmatch(key) is not None


def wrong_forms(values: Mapping[str, Any], forms: Mapping[str, tuple[type | UnionType, str]]) -> list[str]:
    """What has to be said of the values that are not of the form of their key; one that is null counts as absent.

    Args:
      forms: key -> (its type, what such a value is called).
    """
    return [
        f"{key} = {value!r} is no {forms[key][1]}"
        for key, value in values.items()
        if key in forms and value is not None and not is_a(value, forms[key][0])
    ]


def is_a(value: Any, kind: type | UnionType) -> bool:
    """`isinstance`, but that a boolean is no number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
