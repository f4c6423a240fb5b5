"""A trained writer for the serving team: a BART folder as the hub has it, what it may write, and golden suggestions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from crops_jax.artifacts.folders import Folder, read_json, write_json
from crops_jax.errors import InputError
from crops_jax.models import hf_config
from crops_jax.models.bart_import import load_bart, to_hf
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.suggester import Asked
from crops_jax.suggestions.writer import Writer

GOLDEN, KNOWN = "golden.json", "queries.json"
TOLERANCE = 1e-4
_HOW_TO_READ = (
    "source: tokens of the prefix in its normal form (NFKC_Casefold, one space between words), then of each related "
    "query, then none, then of each recent search (limits.recent at most), the latest first; the end token after each "
    "of these. Of a prefix that is longer than limits.max_source_tokens the end is read, and the first piece that does "
    "not fit there with its end token ends the row. limits.lowercase: texts are lower-cased before. The decoder begins "
    "with the end token."
)


def export_writer(writer: Writer, asked: Asked, out: Folder) -> None:
    """Writes the folder `writer/` into `out`, and replays it before returning.

    It holds config.json, generation_config.json, model.safetensors (the layout of `BartForConditionalGeneration`),
    tokenizer.json and its config, the known queries where only these may be written, and golden.json:
    requests, the tokens that are read for each, and the suggestions with their scores.

    Args:
      asked: requests for the golden suggestions.

    Raises:
      InputError: the written folder does not give the model's suggestions when it is read back.
    """
    folder, text, beam = out.folder("writer"), writer.text, writer.beam
    end, pad, known = text.end, text.tokenizer.pad_id, writer.dictionary
    write_json(folder / "config.json", hf_config.bart_to_hf_json(writer.model.config, end, pad))
    write_json(folder / "generation_config.json", {
        "decoder_start_token_id": end, "eos_token_id": end, "bos_token_id": end, "pad_token_id": pad,
        "num_beams": beam.beams, "num_return_sequences": beam.suggestions, "length_penalty": beam.length_penalty,
        "early_stopping": False, "do_sample": False, "max_length": 1 + beam.max_tokens,
    })  # fmt: skip
    place = folder / "model.safetensors"
    save_file(to_hf(writer.model), place, metadata={"format": "pt"})
    place.chmod(0o644)  # the library creates it for its owner alone; another account serves it
    (folder / "tokenizer.json").write_bytes(text.tokenizer.path.read_bytes())
    ended = text.tokenizer.config.eos_token
    of_tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": ended, "pad_token": ended}
    write_json(folder / "tokenizer_config.json", of_tokenizer)
    if known is not None:
        write_json(folder / KNOWN, list(known))
    read = writer.read(asked)
    ids, length = text.sources(*read)
    requests = [
        {"prefix": prefix, "related": near, "recent": list(recent), "source": row[:n].tolist(),
         "suggestions": queries, "scores": scores}
        for prefix, near, recent, row, n, (queries, scores) in zip(
            *read, ids, length, _suggested(writer, ids, length), strict=True)
    ]  # fmt: skip
    config = text.config
    limits = {"max_source_tokens": config.max_source_tokens, "max_query_tokens": config.max_query_tokens,
              "recent": config.recent, "lowercase": text.tokenizer.config.lowercase}  # fmt: skip
    golden = {"reading": _HOW_TO_READ, "limits": limits, "only_known": known is not None, "requests": requests}
    write_json(folder / GOLDEN, golden)
    out.counts["golden_difference"] = replay(folder, text)


def replay(folder: Path, text: WriterText) -> float:
    """The largest difference between the golden scores of a folder and those that its files give.

    Raises:
      InputError: the folder is incomplete or damaged; other queries are written, or a score differs by more than 1e-4.
    """
    try:
        golden = read_json(folder / GOLDEN)
        requests, known = golden["requests"], None
        if golden["only_known"]:
            known = read_json(folder / KNOWN)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(str(folder / GOLDEN), f"is missing or damaged ({type(error).__name__}: {error})") from None
    ids = np.full((len(requests), text.config.max_source_tokens), text.tokenizer.pad_id, np.int32)
    length = np.array([len(request["source"]) for request in requests], np.int32)
    for row, request in zip(ids, requests, strict=True):
        row[: len(request["source"])] = request["source"]
    found = _suggested(Writer(load_bart(folder), text, dictionary=known), ids, length)
    most, problems = 0.0, []
    for request, (queries, scores) in zip(requests, found, strict=True):
        if queries != request["suggestions"]:
            problems.append(f"{request['prefix']!r}: writes {queries[:3]}, not {request['suggestions'][:3]}")
            continue
        most = max([most, *(abs(a - b) for a, b in zip(scores, request["scores"], strict=True))])
    if problems or not most <= TOLERANCE:
        raise InputError(str(folder), problems or [f"scores differ by {most:.2g}"])
    return most


def _suggested(writer: Writer, ids: np.ndarray, length: np.ndarray) -> list[tuple[list[str], list[float]]]:
    """The suggestions of each row and their scores."""
    rows = writer.written(ids, length)
    return [(writer.queries(tokens[there]), score[there].tolist()) for tokens, there, score in rows]
