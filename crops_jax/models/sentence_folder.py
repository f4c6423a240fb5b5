"""What a sentence-transformers folder says about itself: its modules in order, its prompts, how texts are cut.

Versions from 2 to 6 of the library write different files; all of them are read, and what is not implemented is refused
by its name. Nothing of the folder is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

from crops_jax.errors import InputError
from crops_jax.models.hf_keys import wrong_forms

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
ModuleKind = Literal["Dense", "LayerNorm", "Normalize", "Dropout"]
Task = Literal["feature-extraction", "sequence-classification"]

# The old files' switches, in the order in which their vectors are concatenated.
SWITCHES: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_READING = "sentence_bert_config.json"
# Of its keys: the dictionaries of the loader's arguments, old names first ...
_ARGUMENTS = ("model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs")
# ... in which these do not change a vector, ...
_LOADING = {"attn_implementation", "torch_dtype", "dtype", "device_map", "use_safetensors", "low_cpu_mem_usage",
            "add_pooling_layer", "padding_side", "use_fast", "use_cache", "trust_remote_code"}  # fmt: skip
# ... the keys that may have any value, ...
_FREE = {"max_seq_length", "do_lower_case", "unpad_inputs", *_ARGUMENTS}
# ... and those that may be null or have one, in the folder of an encoder and in that of a cross-encoder.
_OF_TASK: dict[Task, tuple[str, str]] = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
}

_FORMS = {  # of keys that have one form in whatever file they stand
    **dict.fromkeys(_ARGUMENTS, (dict, "dictionary")),
    "default_prompt_name": (str, "text"),
    "pooling_mode": (str | list, "text or list of texts"),
    "truncation_side": (str, "text"),
}


@dataclass(frozen=True)
class Module:
    """A module; Transformer and Pooling are the first two."""

    kind: ModuleKind | Literal["Transformer", "Pooling"]
    folder: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class SentenceFolder:
    """The description of a text encoder."""

    transformer: Path  # config.json, weights and tokenizer.json
    pooling: tuple[PoolingMode, ...]  # several are concatenated
    include_prompt: bool  # whether the prompt's tokens are pooled
    modules: tuple[Module, ...]
    prompts: Mapping[str, str]
    default_prompt: str
    lower_case: bool  # besides what tokenizer.json does
    max_tokens: int | None  # none where only the model's positions limit a text

    def query_prompt(self) -> str:
        """What is put before a query: the prompt of that name, else the folder's default prompt."""
        return self.prompts.get("query") or self.default_prompt

    def document_prompt(self) -> str:
        """What is put before a document: the first of its prompts that is not empty, else the default prompt."""
        return next(filter(None, map(self.prompts.get, ("document", "passage", "corpus"))), self.default_prompt)


def read(folder: Path) -> SentenceFolder:
    """Reads the JSON files of a folder, not its weights.

    Raises:
      InputError: a file is missing or damaged, or says something that is not implemented; all problems at once.
    """
    listed, problems = _modules(folder)
    transformer, pooling = listed[0].folder, listed[1]
    after = tuple(module for module in listed[2:] if module.kind != "Dropout")  # it drops nothing outside training
    about = read_json(folder / "config_sentence_transformers.json", optional=True)
    modes, include_prompt, more = _pooling(pooling.config)
    problems += more
    limit, lower_case, more = reading(transformer, "feature-extraction")
    problems += more
    prompts, default, more = _prompts(about)
    problems += more + _similarity(about, after)
    if problems:
        raise InputError(str(folder), problems)
    return SentenceFolder(transformer, modes, include_prompt, after, prompts, default, lower_case, limit)


def _modules(folder: Path) -> tuple[list[Module], list[str]]:
    """(the modules with their own settings, what of them is not implemented); Transformer and Pooling come first.

    Raises:
      InputError: they do not, or a path leaves the folder.
    """
    path = folder / "modules.json"
    try:
        listed = [(str(entry["type"]), str(entry["path"]), entry.get("kwargs")) for entry in read_json(path, list)]
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(str(path), f"is no list of modules ({type(error).__name__}: {error})") from None
    kinds = [kind.rpartition(".")[2] for kind, _, _ in listed]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise InputError(str(path), f"begins with {kinds[:2]}; Transformer, then Pooling is needed")
    if outside := [where for _, where, _ in listed if Path(where).is_absolute() or ".." in Path(where).parts]:
        raise InputError(str(path), f"path {outside[0]!r}: a module must stay inside the folder")
    modules, problems = [], []
    for number, (kind, (module, where, arguments)) in enumerate(zip(kinds, listed, strict=True)):
        if not module.startswith("sentence_transformers."):
            problems.append(f"module {number} is {module!r}, code of the folder's own, which is never run")
        elif number > 1 and kind not in get_args(ModuleKind):
            problems.append(f"module {number}, {kind}, is not implemented; {', '.join(get_args(ModuleKind))} are")
        elif arguments:
            problems.append(f"module {number}, {kind}, takes arguments at every call, {arguments}: not implemented")
        config = read_json(folder / where / "config.json", optional=kind != "Pooling")
        keys = [config.get(f"module_{end}_name") for end in ("input", "output")] if number else []
        if odd := [key for key in keys if key not in (None, "sentence_embedding")]:
            problems.append(f"module {number}, {kind}, works on {odd[0]}; only sentence_embedding is implemented")
        modules.append(Module(kind, folder / where, config))
    return modules, problems


def _pooling(config: dict[str, Any]) -> tuple[tuple[PoolingMode, ...], bool, list[str]]:
    """(modes, whether the prompt is pooled, problems), as sentence-transformers 6 reads old and new files."""
    known = {"word_embedding_dimension", "embedding_dimension", "include_prompt", "pooling_mode", *SWITCHES}
    problems = [f"Pooling: {key} = {config[key]!r} is unknown" for key in config if key not in known]
    switched = tuple(mode for key, mode in SWITCHES.items() if config.get(key))
    named = config.get("pooling_mode")
    modes = (switched or ("mean",)) if named is None else (named,) if isinstance(named, str) else tuple(map(str, named))
    if named is not None and switched and set(switched) != set(modes):
        problems.append(f"Pooling: pooling_mode is {named!r}, but the switches say {list(switched)}")
    if odd := [mode for mode in modes if mode not in SWITCHES.values()]:
        problems.append(f"Pooling: pools by {odd}; {', '.join(SWITCHES.values())} are implemented")
    return modes, config.get("include_prompt") is not False, problems


def limit(folder: Path, asked: int | None, said: int | None, positions: int) -> int:
    """The longest text in tokens: the least of what is asked for and what the folder says, else all positions.

    Raises:
      InputError: the model has fewer positions.
    """
    least = min(filter(None, (asked, said)), default=positions)
    if not 2 <= least <= positions:
        raise InputError(str(folder), f"max_seq_length is {least}, not within 2..{positions}")
    return least


def reading(transformer: Path, task: Task) -> tuple[int | None, bool, list[str]]:
    """(the longest text in tokens, whether texts are lower-cased first, problems) of sentence_bert_config.json.

    Version 6 keeps the longest text in tokenizer_config.json, where it may be above the model's positions.
    """
    output, module_output = _OF_TASK[task]
    allowed = {
        "transformer_task": (task,),
        "modality_config": ({"text": {"method": "forward", "method_output_name": output}},),
        "module_output_name": (module_output,),
        "processing_kwargs": ({},),
    }
    found = sorted(transformer.glob("sentence_*_config.json"), key=lambda path: (path.name != _READING, path.name))
    name = found[0].name if found else _READING
    config = read_json(transformer / name, optional=True)
    arguments = {f"{part}.{key}": value for part in _ARGUMENTS for key, value in (config.get(part) or {}).items()}
    problems = [
        f"{name}: {key} = {value!r} is not implemented"
        for key, value in config.items()
        if value is not None and key not in _FREE and value not in allowed.get(key, ())
    ]
    problems += [
        f"{name}: {key} = {value!r} is not implemented"
        for key, value in arguments.items()
        if key.partition(".")[2] not in {*_LOADING, "model_max_length"}
    ]
    said = [
        *(value for key, value in arguments.items() if key.endswith(".model_max_length")),
        config.get("max_seq_length"),
    ]
    limit = next((length for length in said if length is not None), None)
    if limit is None:
        beside = (("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings"))
        lengths = [read_json(transformer / file, optional=True).get(key) for file, key in beside]
        limit = min((length for length in lengths if length is not None), default=None)
    if limit is not None and not (isinstance(limit, int | float) and 2 <= limit < inf):
        problems.append(f"{name}: the longest text has {limit!r} tokens; a number of at least 2 is needed")
        limit = None
    return None if limit is None else int(limit), bool(config.get("do_lower_case")), problems


def _prompts(about: dict[str, Any]) -> tuple[dict[str, str], str, list[str]]:
    """(prompt by name, the default prompt, problems) of config_sentence_transformers.json."""
    prompts, default = about.get("prompts") or {}, about.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        return {}, "", [f"prompts = {prompts!r} is no dictionary of texts"]
    prompts = {name: text or "" for name, text in prompts.items()}
    if default is not None and default not in {*prompts, "query", "document"}:
        return prompts, "", [f"default_prompt_name is {default!r}, which is none of the prompts {sorted(prompts)}"]
    return prompts, prompts.get(default, ""), []


def _similarity(about: dict[str, Any], after: tuple[Module, ...]) -> list[str]:
    problems = []
    if (kind := about.get("model_type") or "SentenceTransformer") != "SentenceTransformer":
        problems.append(f"holds a {kind}; a SentenceTransformer, which gives one vector a text, is needed")
    similarity = about.get("similarity_fn_name") or "cosine"
    unit = bool(after) and after[-1].kind == "Normalize"
    if similarity != "cosine" and not (similarity == "dot" and unit):
        problems.append(f"its vectors are compared by {similarity}; only the cosine is implemented")
    return problems


def read_json(path: Path, kind: type = dict, optional: bool = False) -> Any:
    """The list or dictionary in a file; an empty one for a file that need not be there.

    Raises:
      InputError: it is missing, or no JSON, or a value in it has another form than it should (`_FORMS`).
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return kind()
        raise InputError(str(path), "no such file: this is no sentence-transformers folder") from None
    except ValueError as error:
        raise InputError(str(path), f"is no JSON ({error})") from None
    if not isinstance(value, kind):
        raise InputError(str(path), f"holds a {type(value).__name__}, where a {kind.__name__} is needed")
    if isinstance(value, dict) and (problems := wrong_forms(value, _FORMS)):
        raise InputError(str(path), problems)
    return value
