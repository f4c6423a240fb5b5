"""All that is read of a log folder, for tests that want two folders to be read alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hand_logs import WordOverlap

from crops_jax.artifacts.folders import write_folder
from crops_jax.engines.config import EngineConfig
from crops_jax.mining.config import HeldOutConfig, MiningConfig, WorldKnowledgeConfig
from crops_jax.mining.testsets import SETS, build_testsets
from crops_jax.mining.train_day import mine
from crops_jax.records import read_items
from crops_jax.retrieval.corpus import read_corpus

CONFIG = MiningConfig(world_knowledge=WorldKnowledgeConfig(enabled=False), engine=EngineConfig(memory_limit="500MB"))


def everything(logs: Path, config: MiningConfig = CONFIG, theta: type[WordOverlap] = WordOverlap) -> dict[str, Any]:
    """What mining, the test sets, the corpus and the shards' items read."""
    found: dict[str, Any] = {}
    with write_folder(logs / "mined", kind="mined") as out:
        mine(logs, out, theta(), config)
        found["candidates"] = rows(out / "candidates.parquet")
    with write_folder(logs / "testsets", kind="testsets") as out:
        build_testsets(logs, out, theta(), HeldOutConfig(), config)
        found |= {name: rows(out / f"{name}.parquet") for name in SETS}
    corpus = read_corpus(logs)
    found["corpus"] = list(zip(corpus.item_ids.tolist(), corpus.texts, strict=True))
    found["items"] = len(read_items(logs))
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, whatever its folder is called."""
    return pq.read_table(path, partitioning=None).to_pylist()
