"""tokenizer.json of a checkpoint folder, with what the files beside it change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from crops_jax.errors import InputError
from crops_jax.models.sentence_folder import read_json
from crops_jax.text.tokenizer import lower_case_first, parsed, rows_needed


def read_tokenizer(folder: Path, limit: int, lower_case: bool, rows: int) -> tokenizers.Tokenizer:
    """The folder's tokenizer, which cuts a text, or the longer one of a pair, so that `limit` tokens are left.

    Args:
      lower_case: whether texts are lower-cased first, besides what tokenizer.json does.
      rows: of the model's embedding.

    Raises:
      InputError: tokenizer.json is missing or damaged, does not do what tokenizer_config.json says of it, or has tokens
        without a row.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        mend = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers writes it"
        raise InputError(str(path), f"no such file; {mend}")
    tokenizer = parsed(path.read_bytes(), path)
    if (tokens := rows_needed(tokenizer)) > rows:
        said = f"has {tokens} tokens, and the model {rows} rows for them (vocab_size in config.json)"
        raise InputError(str(path), f"{said}: texts with the others would get NaN; take the tokenizer of these weights")
    config = read_json(folder / "tokenizer_config.json", optional=True)
    _normalise_as_told(tokenizer, config, lower_case)
    if config.get("add_eos_token") and not _closes(tokenizer, config.get("eos_token")):
        said = "tokenizer_config.json says add_eos_token, which some readers follow and some do not"
        raise InputError(str(path), f"{said}; write it into the post_processor here, or take it out there")
    side = config.get("truncation_side") or "right"
    if side not in ("left", "right"):
        raise InputError(str(folder / "tokenizer_config.json"), f"truncation_side = {side!r} is neither left nor right")
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, direction=side)
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
        lower_case_first(tokenizer)


def _closes(tokenizer: tokenizers.Tokenizer, eos: str | dict[str, Any] | None) -> bool:
    """Whether tokenizer.json's own post-processor ends a text with the end-of-sequence token."""
    token = eos.get("content") if isinstance(eos, dict) else eos
    return tokenizer.encode("a").tokens[-1:] == [token]
