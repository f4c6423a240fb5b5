"""A training run in small: invented groups, a tokeniser, a two-layer Qwen2 or a sparse model of 8 dimensions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from crops_jax.artifacts.folders import write_folder
from crops_jax.batches.config import InputConfig
from crops_jax.config import Experiment, to_json
from crops_jax.labels import Group
from crops_jax.logs.schema import COUNTERS
from crops_jax.logs.tables import write_table
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.mining.knowledge import KNOWLEDGE_SCHEMA
from crops_jax.models.config import DualEncoderConfig, Qwen2Config, SparseMlpConfig
from crops_jax.records import Items, RecordsConfig, write_records
from crops_jax.text.hashed_ids import IdConfig
from crops_jax.text.tokenizer import TextConfig, train_tokenizer
from crops_jax.training.config import OptimConfig, TrainConfig
from crops_jax.training.metric_writers import read_metrics

WORDS = ("pump", "lamp", "drill", "saw", "vase", "rope", "tile", "sink")


def _texts() -> list[str]:
    return [f"{WORDS[i % 8]} number {i} {WORDS[(i + 3) % 8]}" for i in range(40)]


def tiny_experiment(work: Path, validation_share: float = 0.02) -> Experiment:
    """An experiment whose shards and tokeniser exist: query `word` wants items that hold the word."""
    texts = _texts()
    e = Experiment(
        workdir=str(work),
        vocabulary=300,
        text=TextConfig(append_eos=True, max_query_tokens=8, max_doc_tokens=16),
        input=InputConfig(batch_queries=16, docs_per_query=4, seed=1),
        model=DualEncoderConfig(
            backbone=Qwen2Config(vocab_size=300, width=32, layers=2, heads=4, kv_heads=2, head_size=8, ffn=64),
            pooling="last",
        ),
        optim=OptimConfig(learning_rate=3e-3),
        train=TrainConfig(steps=24, save_every=3, log_every=1, keep=3),
    )
    with write_folder(e.folder("tokenizer"), kind="tokenizer") as out:
        train_tokenizer(texts, 300, out / "tokenizer.json")
    fields = ("ocr_cover", "photo_caption", "keyword", "click_query")
    items = Items({"items": pa.table({"item_id": list(range(40)), **dict.fromkeys(fields, texts)})})
    groups = [
        Group(f"r{g}", g, WORDS[g % 8], np.array([g % 8, g % 8 + 8, (g + 1) % 8 + 16]),
              np.array([5, 4, 2], np.int32), np.array([2, 1, 32], np.int32))
        for g in range(48)
    ]  # fmt: skip
    with write_folder(e.arm_folder("records"), kind="records") as out:
        write_records(groups, items, out, RecordsConfig(shards=2, validation_share=validation_share), seed=0)
    return e


def sparse(experiment: Experiment) -> Experiment:
    """The same with hashed ids and an MLP, which compiles in half the time."""
    ids = IdConfig(query_bits=8, video_bits=8, keyword_bits=8, term_bits=8)
    model = DualEncoderConfig(backbone=SparseMlpConfig(ids=ids, hidden=(16,), width=8))
    return replace(experiment, model=model, optim=OptimConfig(learning_rate=1e-2))


def elsewhere(experiment: Experiment, name: str) -> Experiment:
    """The same experiment in an arm folder of its own that shares the shards."""
    arm = replace(experiment, name=name)
    arm.arm_folder("records").parent.mkdir(exist_ok=True)
    if not arm.arm_folder("records").exists():
        arm.arm_folder("records").symlink_to(experiment.arm_folder("records"))
    return arm


def config_file(experiment: Experiment) -> Path:
    """A file for --config that holds this experiment, in its arm's folder."""
    path = experiment.arm_folder("records").parent / "config.py"
    path.write_text(f"from crops_jax.config import from_json\n\nEXPERIMENT = from_json({to_json(experiment)!r})\n")
    return path


def metrics(experiment: Experiment) -> list[dict]:
    """The metric lines, as far as the run has come."""
    path = experiment.arm_folder("train") / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def losses(experiment: Experiment) -> dict[int, float]:
    """step -> loss, as far as the run has come."""
    return {line["step"]: line["loss"] for line in metrics(experiment)}


def with_logs(experiment: Experiment) -> Experiment:
    """The same experiment with the logs and mined clicks that its groups could come from."""
    fields = ("ocr_cover", "photo_caption", "keyword", "click_query")
    texts = _texts()
    with write_folder(experiment.folder("logs"), kind="logs") as out:
        columns = {"item_id": list(range(40)), **dict.fromkeys(fields, texts), **dict.fromkeys(COUNTERS, [1] * 40)}
        write_table("items", columns, out / "items.parquet")
    rows = sorted((WORDS[g % 8], f"r{g}", g, item) for g in range(48) for item in (g % 8, g % 8 + 8))
    query, request, user, item = zip(*rows, strict=True)
    columns = {"query": query, "request_id": request, "user_id": user, "item_id": item, "source": ["P0"] * len(rows)}
    columns |= {"theta": [None] * len(rows), "evidence": [None] * len(rows), "position": [None] * len(rows)}
    made_from = {"logs": experiment.folder("logs")}
    with write_folder(experiment.folder("mined"), kind="mined", inputs=made_from) as out:
        write_table(CANDIDATES_SCHEMA, columns, out / "candidates.parquet")
        write_table(KNOWLEDGE_SCHEMA, {name: [] for name in KNOWLEDGE_SCHEMA.names}, out / "knowledge.parquet")
    return experiment
