"""A generator in small: the invented groups of `tiny`, vectors of 40 items, and a BART of two layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny import tiny_experiment, with_logs

from crops_jax.artifacts.folders import write_folder
from crops_jax.config import Experiment
from crops_jax.generative.config import GeneratorConfig
from crops_jax.generative.item_ids import write_item_ids
from crops_jax.models.config import BartConfig
from crops_jax.retrieval.vectors import IDS, VECTORS, Vectors
from crops_jax.runs import item_ids
from crops_jax.suggestions.config import RQKMeansConfig
from crops_jax.training.config import OptimConfig, TrainConfig

MODEL = BartConfig(
    vocab_size=340, width=32, encoder_layers=1, decoder_layers=1, encoder_heads=2, decoder_heads=2, encoder_ffn=64,
    decoder_ffn=64, max_positions=16, init_std=0.2,
)  # fmt: skip
CONFIG = GeneratorConfig(
    encoder="crops", ids=RQKMeansConfig(codes=(4, 4), opq_parts=0, balanced=False), model=MODEL, positives=2,
    max_source_tokens=8, beams=40, beam_queries=4,
)  # fmt: skip


def vectors() -> np.ndarray:
    """float32[40, 8]; items 7 and 30 to 32 have the same."""
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    rows[30:33] = rows[7]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_vectors(e: Experiment, rows: np.ndarray) -> None:
    """The encoder's vectors, as `python -m crops_jax.encode` writes them; its run is an empty folder."""
    train, target = e.arm("train", "crops"), e.arm("embeddings", "crops")
    with write_folder(train, kind="train"):
        pass
    with write_folder(target, kind="embeddings", inputs={"train": train}) as out:
        np.save(out / IDS, np.arange(len(rows)))
        np.save(out / VECTORS, rows)


def generator_experiment(work: Path) -> Experiment:
    """An arm that writes item ids, which are there; query `word` wants items that hold the word."""
    tiny = with_logs(tiny_experiment(work))
    e = replace(
        tiny, name="generator", title="Generator", suggest=CONFIG, input=replace(tiny.input, records_of="crops"),
        optim=OptimConfig(learning_rate=5e-3), train=TrainConfig(steps=200, save_every=100, log_every=10),
    )  # fmt: skip
    write_vectors(e, vectors())
    write_ids(e)
    return e


def write_ids(e: Experiment) -> Path:
    """The arm's ids, of these vectors; the written documents -9 and -4 have those of the items 7 and 0."""
    corpus, folder = Vectors(np.arange(40), vectors()), e.arm_folder("item_ids")
    written = Vectors(np.array([-9, -4]), vectors()[[7, 0]])
    write_item_ids(folder, corpus, written, e.suggest.ids, item_ids.settings(e), item_ids.inputs(e))
    return folder
