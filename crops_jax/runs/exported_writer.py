"""An exported writer as something that suggests, from its folder alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from crops_jax.artifacts.manifest import read_manifest, verify
from crops_jax.config import from_json
from crops_jax.errors import InputError
from crops_jax.models import sentence_encoder
from crops_jax.models.bart_import import load_bart
from crops_jax.runs.suggestion_folders import EXPERIMENT, PREFIX_QUERY
from crops_jax.runs.suggestions import writer_of
from crops_jax.suggestions.export import KNOWN
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.related import RelatedQueries
from crops_jax.suggestions.semantic_index import load_index
from crops_jax.suggestions.writer import Writer
from crops_jax.text.tokenizer import Tokenizer


def load_exported_writer(folder: str | Path) -> Writer:
    """What `python -m crops_jax.suggest` exported, checked byte for byte: prefixes in, suggestions out.

    Raises:
      InputError: the folder is no export of a writer, or damaged.
    """
    folder = Path(folder)
    verify(folder)
    if not (folder / EXPERIMENT).is_file():
        raise InputError(str(folder), f"has no {EXPERIMENT}: it is no export of a writer of suggestions")
    experiment = from_json(json.loads((folder / EXPERIMENT).read_text(encoding="utf-8")), str(folder / EXPERIMENT))
    config = writer_of(experiment)
    text = WriterText(Tokenizer(replace(experiment.text, tokenizer=str(folder / "writer/tokenizer.json"))), config)
    known = json.loads((folder / "writer" / KNOWN).read_text(encoding="utf-8")) if config.known else None
    related = None
    if config.encoder:
        index = folder / "semantic_index"
        encoder_hash = read_manifest(index, "semantic_index")["config"]["encoder"]
        prefixes = sentence_encoder.load(folder / "query_tower").encode
        pairs = pq.read_table(folder / PREFIX_QUERY)
        related = RelatedQueries(load_index(index, encoder_hash), prefixes, pairs, config.related).of
    return Writer(load_bart(folder / "writer"), text, related, known)
