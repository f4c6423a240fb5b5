"""The tensor names of checkpoint files, which differ by age and by what was saved around the tower.

A file may put a prefix before the tower's names, call LayerNorm's weight gamma and its bias beta, and hold heads and
buffers that an encoder does not use. Any other tensor changes the tower, so it is reported with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

from crops_jax.models.safetensors_files import Entry

# Heads of language models, classifiers and rerankers, the pooler, buffers of old versions.
_UNUSED = re.compile(
    r"(lm_head|score|classifier|qa_outputs|pooler|cls|predictions|seq_relationship)\..+"
    r"|(encoder|decoder)\.embed_tokens\.weight"  # BART's shared one again
    r"|embeddings\.(position_ids|token_type_ids)|(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
)
_OTHER_NETWORKS = {
    r".*\b(q|k)_norm\b.*": "norms of queries and keys, which Qwen2 has not",
    r".*\bdistance_embedding\b.*": "relative positions",
    r".*\bcrossattention\b.*": "attention to an encoder's output",
    r".*\b(lora_\w+|adapters?)\b.*": "an adapter of its own; merge it into the weights first",
    r".*\b(qweight|qzeros|scales|g_idx|SCB|weight_scale\w*|absmax|quant_map|quant_state\S*)": (
        "quantised weights; take the checkpoint that they were made from"
    ),
    r"layers\.\d+\.(self_attn\.o_proj|mlp\.\w+_proj)\.bias": "a bias that Qwen2 has not",
}
_OLD_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def tower_entries(entries: Mapping[str, Entry], embedding: str) -> tuple[dict[str, Entry], list[str]]:
    """(the tower's tensors by transformers' plain names, what is ambiguous about them).

    The prefix is what stands before the token embedding's name, whatever it is: `bert.`, `model.`, `0.auto_model.`.

    Args:
      embedding: the plain name of the token embedding.
    """
    prefixes = sorted(
        name.removesuffix(embedding) for name in entries if name == embedding or name.endswith(f".{embedding}")
    )
    if len(prefixes) > 1:
        return {}, [f"holds several towers, under {', '.join(map(repr, prefixes))}; keep one of them in the file"]
    prefix = prefixes[0] if prefixes else ""
    found: dict[str, Entry] = {}
    problems = []
    for name, entry in entries.items():
        plain = name.removeprefix(prefix)
        if _UNUSED.fullmatch(name) or _UNUSED.fullmatch(plain):
            continue
        for old, new in _OLD_NORM.items():
            plain = plain.removesuffix(old) + new if plain.endswith(old) else plain
        if plain in found:
            problems.append(f"{name}: the file holds {plain} twice, under an older name too")
        found[plain] = entry
    return found, problems


def unexpected(names: Iterable[str]) -> list[str]:
    """What to say about tensors that no table knows; those that differ by the number of the block alone in one line."""

    def said(name: str) -> str:
        reason = next((said for form, said in _OTHER_NETWORKS.items() if re.fullmatch(form, name)), None)
        return f"unexpected ({reason})" if reason else "unexpected"

    return _by_block(names, said)


def missing(names: Iterable[str]) -> list[str]:
    """What to say about tensors that are not there, in the same form."""
    return _by_block(names, lambda name: "missing")


def _by_block(names: Iterable[str], said: Callable[[str], str]) -> list[str]:
    def form(name: str) -> str:
        return re.sub(r"\.\d+\.", ".*.", name)

    lines = []
    for pattern, group in groupby(sorted(names, key=lambda name: (form(name), name)), form):
        alike = list(group)
        many = f", {len(alike)} tensors" if len(alike) > 1 else ""
        lines.append(f"{pattern if many else alike[0]}: {said(alike[0])}{many}")
    return lines
