"""A writer of suggestions as `python -m crops_jax.suggest` exports it, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from crops_jax.artifacts.folders import write_folder
from crops_jax.config import Experiment, to_json
from crops_jax.models import bart
from crops_jax.models.config import BartConfig
from crops_jax.parallel.sharding import RULES
from crops_jax.runs.suggestion_folders import EXPERIMENT
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.suggestions.config import BeamConfig
from crops_jax.suggestions.export import export_writer
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.suggester import Asked
from crops_jax.suggestions.writer import Writer
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer


def write_writer(folder: Path, queries: list[str]) -> Path:
    """Writes nothing but these queries, in an order that its random weights give."""
    model = BartConfig(
        vocab_size=270, width=8, encoder_layers=1, decoder_layers=1, encoder_heads=2, decoder_heads=2, encoder_ffn=8,
        decoder_ffn=8, max_positions=64, init_std=0.3,
    )  # fmt: skip
    config = WriterConfig(model=model, max_source_tokens=32, max_query_tokens=64,
                          beam=BeamConfig(beams=8, suggestions=8, max_tokens=64))  # fmt: skip
    e = Experiment(suggest=config, text=TextConfig(append_eos=True, max_query_tokens=64, max_doc_tokens=64))
    place = train_tokenizer(queries, 260, folder / "tokenizer.json")
    text = WriterText(Tokenizer(TextConfig(tokenizer=str(place), append_eos=True)), config)
    with write_folder(folder / "export", kind="export") as out:
        whole = bart.init(model, jax.random.key(0), RULES)
        export_writer(Writer(whole, text, dictionary=sorted(queries)), Asked(["a"], [None], [[]]), out)
        (out / EXPERIMENT).write_text(json.dumps(to_json(e)))
    return folder / "export"
