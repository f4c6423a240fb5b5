"""A sentence-transformers folder per tower, with golden vectors.

sentence-transformers' own `save_pretrained` writes a layout that other embedding servers misread, so the files are
written here, with the old and the new spelling of every key side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import processors

from crops_jax import __version__
from crops_jax.artifacts.folders import Folder, read_json, write_json
from crops_jax.batch import Tokens
from crops_jax.errors import InputError
from crops_jax.models import hf_config, hf_import, lora, sentence_encoder
from crops_jax.models.config import Backbone, Pooling, Qwen2Config, SparseMlpConfig, Tower
from crops_jax.models.dual_encoder import DualEncoder
from crops_jax.models.sentence_folder import SWITCHES, PoolingMode
from crops_jax.models.sentence_head import Head
from crops_jax.text.tokenizer import QWEN2_SPLIT, Tokenizer, document_text, lower_case_first

GOLDEN = "golden.json"
TOLERANCE = 1e-4
TOWERS: tuple[Tower, ...] = ("query", "document")
# Short, long enough to be cut, several scripts, a sigma at a word's end, digits, line ends, special tokens written out,
# nothing at all.
GOLDEN_TEXTS = (
    "transformer",
    "cordless drill 18v with 2 batteries",
    "Attention is all you need\ndeep learning lecture\ntransformer self-attention",
    "变压器 维修 教程",
    "ΟΔΟΣ Ünïcödé café — 100 % naïve",
    "how to wire a step-down transformer " * 40,
    "how to <|endoftext|> a story [SEP] <s> </s> [MASK] <|im_end|>",
    "",
)
# A document as its fields: a list's `|`, and one that is none; blanks around, a field without text.
GOLDEN_ITEM = {
    "ocr_cover": " Cordless drill 18V | 2 batteries\u3000",
    "photo_caption": "\u200b ",
    "keyword": "tools|drill|",
    "click_query": "drill 18v| cordless drill",
}
_POOLING_MODES: dict[Pooling, PoolingMode] = {"last": "lasttoken", "mean": "mean", "cls": "cls"}
_ROLES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BERT_NAMES = {"unk_token": "[UNK]", "sep_token": "[SEP]", "cls_token": "[CLS]", "mask_token": "[MASK]"}


def export_towers(
    model: DualEncoder, tokenizer: Tokenizer, out: Folder, weights: Literal["float32", "bfloat16"] = "float32"
) -> None:
    """Writes `query_tower/` and `document_tower/` into `out`, and replays both before returning.

    Each holds modules.json, config.json, model.safetensors, tokenizer.json and its configs, pooling and normalisation
    settings, and golden.json: texts with the float32 vectors that this model gives for them. The last text of the
    document tower is that of an item, whose fields stand there too. Tied towers are written twice, so that each folder
    can be served alone.

    Call it without an ambient mesh; the model's arrays may lie on one.

    Args:
      weights: number format of model.safetensors. The golden vectors are those of the weights as they are written,
        computed in float32; what rounding costs is noted in `out.counts`.

    Raises:
      InputError: the model has no text tower (sparse model), or a written folder does not give the model's vectors
        within 1e-4 when it is read back, for instance because tokenizer.json cannot say what the tokeniser does.
    """
    if isinstance(model.config.backbone, SparseMlpConfig):
        raise InputError(
            "export", "the sparse model reads hashed ids, not text: no sentence-transformers folder for it"
        )
    if isinstance(model.config.backbone, Qwen2Config):
        _check_qwen2_tokenizer(tokenizer)
    for tower in TOWERS:
        folder = out.folder(f"{tower}_tower")
        limit = tokenizer.config.max_query_tokens if tower == "query" else tokenizer.config.max_doc_tokens
        cost = _write_tower(model, tower, tokenizer, limit, folder, weights)
        out.counts[f"{tower}_golden_difference"] = replay(folder)
        if weights != "float32":
            out.counts[f"{tower}_cosine_lost"] = cost


def replay(folder: Path) -> float:
    """The largest difference between a tower folder's golden vectors and those its files give when read here.

    Raises:
      InputError: the folder is incomplete or damaged, the golden item's fields become another text here, or the
        difference exceeds 1e-4; names the texts.
    """
    read_golden(folder)  # before anything is loaded
    _check_item(folder / GOLDEN)
    return compare_with_golden(folder, partial(sentence_encoder.load(folder).encode, what="replay golden vectors"))


def compare_with_golden(folder: Path, encode: Callable[[list[str]], np.ndarray], tolerance: float = TOLERANCE) -> float:
    """The largest difference between a tower folder's golden vectors and those that `encode` gives.

    Raises:
      InputError: the folder has no golden vectors, or the difference exceeds `tolerance`; names the texts.
    """
    texts, wanted = read_golden(folder)
    difference = np.abs(encode(texts) - wanted).max(axis=1)
    wrong = np.flatnonzero(~(difference <= tolerance))
    if len(wrong):
        raise InputError(str(folder), [f"{texts[i][:40]!r}: its vector differs by {difference[i]:.2g}" for i in wrong])
    return float(difference.max())


def read_golden(folder: Path) -> tuple[list[str], np.ndarray]:
    """(texts, float32[n, D]) of a tower folder.

    Raises:
      InputError: the file is missing or damaged.
    """
    place = folder / GOLDEN
    try:
        golden = read_json(place)
        return golden["texts"], np.asarray(golden["embeddings"], np.float32)
    except FileNotFoundError:
        raise InputError(str(place), "no such file: this is no exported tower") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(str(place), f"is damaged ({type(error).__name__}: {error})") from None


def _check_item(place: Path) -> None:
    """Raises InputError unless the item's fields become the last of the texts; older towers have no item."""
    golden = read_json(place)
    if "item" not in golden:
        return
    try:
        item = golden["item"]
        text = document_text(**item["fields"], order=item["order"])
        same = text == item["text"] == golden["texts"][-1]
    except (KeyError, TypeError) as error:
        raise InputError(str(place), f"item: is damaged ({type(error).__name__}: {error})") from None
    if not same:
        raise InputError(str(place), f"item: its fields become {text!r} here, another text than golden.json says")


def _write_tower(
    model: DualEncoder, tower: Tower, tokenizer: Tokenizer, limit: int, folder: Path, weights: str
) -> dict[str, float]:
    """Writes a folder; returns by how much the golden texts' cosines with the model's own vectors fall short of 1."""
    whole = jax.tree.map(np.asarray, model.tower(tower))  # off the mesh it was trained on
    encoder, pooling = jax.tree.map(lambda leaf: leaf.astype(weights), lora.merged(whole)), model.config.pooling
    texts = (*GOLDEN_TEXTS, f"how to {' '.join(_special_names(tokenizer))} a story")
    item = {}
    if tower == "document":
        order = tokenizer.config.field_order
        text = document_text(**GOLDEN_ITEM, order=order)
        texts, item = (*texts, text), {"item": {"fields": GOLDEN_ITEM, "order": order, "text": text}}
    exact = golden = _golden(whole, tokenizer, texts, limit, pooling)
    if weights != "float32":
        rounded = jax.tree.map(lambda leaf: leaf.astype(np.float32), encoder)
        golden = _golden(rounded, tokenizer, texts, limit, pooling)
    golden_texts = {"texts": texts, "embeddings": golden.tolist(), **item}
    files = {GOLDEN: golden_texts, **_described(model, encoder.config, tokenizer, limit, weights)}
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, value)
    (folder / "tokenizer.json").write_text(_tokenizer_json(tokenizer, limit), encoding="utf-8")
    place = folder / "model.safetensors"
    tensors = {name: tensor.astype(weights) for name, tensor in hf_import.to_hf(encoder).items()}
    save_file(tensors, place, metadata={"format": "pt"})
    place.chmod(0o644)  # the library creates it for its owner alone; another account serves it
    lost = 1 - (exact * golden).sum(axis=1)
    return {"mean": float(lost.mean()), "most": float(lost.max())}


def _described(
    model: DualEncoder, config: Backbone, tokenizer: Tokenizer, limit: int, weights: str
) -> dict[str, dict[str, Any] | list[dict[str, Any]]]:
    """The JSON files by which sentence-transformers and servers know what the tower is and how it reads."""
    said: dict[str, Any] = dict.fromkeys(("dtype", "torch_dtype"), weights)
    if model.config.widths:  # servers cut vectors only where the model says that it was trained for it
        said |= {"is_matryoshka": True, "matryoshka_dimensions": sorted({*model.config.widths, config.width})}
    special = _special_tokens(tokenizer)
    return {
        "config.json": hf_config.to_hf_json(config, tokenizer.eos_id, tokenizer.pad_id) | said,
        "modules.json": _modules(),
        "1_Pooling/config.json": _pooling(model.config.pooling, config.width),
        "2_Normalize/config.json": {},
        # transformers rebuilds Qwen2's normaliser and would forget the lower-casing that tokenizer.json states.
        "sentence_bert_config.json": {"max_seq_length": limit, "do_lower_case": tokenizer.config.lowercase},
        "config_sentence_transformers.json": {
            "__version__": {"crops_jax": __version__},
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            # The class that takes tokenizer.json as it is; Qwen2's own class would drop the post-processor.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": limit,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            # A special token that a text spells out is characters, as in training.
            "split_special_tokens": True,
            **special,
        },
    }


def _modules() -> list[dict[str, Any]]:
    names = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(names)
    ]


def _pooling(pooling: Pooling, width: int) -> dict[str, Any]:
    mode = _POOLING_MODES[pooling]
    return {
        "word_embedding_dimension": width,
        "embedding_dimension": width,
        "pooling_mode": mode,
        **{switch: switched == mode for switch, switched in SWITCHES.items()},
        "include_prompt": True,
    }


def _golden(tower: Any, tokenizer: Tokenizer, texts: tuple[str, ...], limit: int, pooling: Pooling) -> np.ndarray:
    """float32[n, D] of the golden texts by the model itself, from the tokeniser that it was trained with."""
    rows, head = Tokens(*tokenizer.encode(texts, limit)), Head((_POOLING_MODES[pooling],))
    return np.asarray(sentence_encoder.vectors(tower, rows, head))


def _special_names(tokenizer: Tokenizer) -> list[str]:
    """The special tokens of the tokeniser, by their ids."""
    raw = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    return [token.content for _, token in sorted(raw.get_added_tokens_decoder().items()) if token.special]


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Role -> token, of the roles that the vocabulary fills."""
    raw = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    tokens = {role: name for role, name in _BERT_NAMES.items() if raw.token_to_id(name) is not None}
    tokens["pad_token"] = raw.id_to_token(tokenizer.pad_id)
    if tokenizer.eos_id is not None:
        tokens["eos_token"] = raw.id_to_token(tokenizer.eos_id)
    return {role: tokens[role] for role in (*_ROLES, "eos_token") if role in tokens}


def _check_qwen2_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises InputError unless the tokeniser splits text as Qwen2's does.

    For a Qwen2 model transformers takes only vocabulary, merges and post-processor from tokenizer.json and puts Qwen2's
    own normaliser and splitter around them, so another tokeniser would be served with other ids than it was trained on.
    """
    spec = json.loads(tokenizers.Tokenizer.from_file(str(tokenizer.path)).to_str())
    steps = (spec["pre_tokenizer"] or {}).get("pretokenizers", [])
    patterns = [step.get("pattern") for step in steps if step["type"] == "Split"]
    problems = []
    if spec["model"]["type"] != "BPE":
        problems.append(f"its model is {spec['model']['type']}, not BPE")
    if (spec["normalizer"] or {}).get("type") != "NFC":
        problems.append("its normaliser is not NFC")
    if patterns != [{"Regex": QWEN2_SPLIT}] or [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        problems.append("it does not split text as Qwen2 does (Split by Qwen2's pattern, then ByteLevel)")
    if problems:
        raise InputError(f"{tokenizer.path}: servers could not load it beside a Qwen2 model", problems)


def _tokenizer_json(tokenizer: Tokenizer, limit: int) -> str:
    """The tokenizer.json that does alone what `Tokenizer` does: lower-case, cut to `limit` tokens with the closing one
    kept, append the end-of-sequence token.
    """
    raw = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    raw.no_padding()
    raw.enable_truncation(limit)
    if tokenizer.config.lowercase:
        lower_case_first(raw)
    if tokenizer.eos_id is not None:
        eos = raw.id_to_token(tokenizer.eos_id)
        raw.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", pair=f"$A {eos} $B:1 {eos}:1", special_tokens=[(eos, tokenizer.eos_id)]
        )
    return json.dumps(_without_special_words(json.loads(raw.to_str())), ensure_ascii=False)


def _without_special_words(spec: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json in which no text can spell a special token, for servers that read no other file.

    A special token that is listed as added is looked for in every text. It needs no listing: its id stands in the
    vocabulary, and the post-processor knows it by itself.
    """
    vocabulary = spec["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        return spec
    for token in spec["added_tokens"]:  # those that stay too: the ids of the listed ones follow from the vocabulary
        vocabulary.setdefault(token["content"], token["id"])
    return {**spec, "added_tokens": [token for token in spec["added_tokens"] if not token["special"]]}
