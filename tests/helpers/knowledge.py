"""World knowledge in small: an exemplar, answers of a model, and the small world mined with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hand_logs import WordOverlap, small_world

from crops_jax.artifacts.folders import write_folder
from crops_jax.mining.config import EndpointConfig, MiningConfig, WorldKnowledgeConfig
from crops_jax.mining.prompt import Exemplar
from crops_jax.mining.train_day import mine

EXEMPLAR = Exemplar(1, "Transformer toys", "A box is opened.", "toys|robots", "transformer toy")
GOOD = {
    "ocr_cover": "How a transformer works",
    "photo_caption": "Two coils and a core, explained.",
    "click_query": "transformer | power transformer",
    "keywords": "physics|electricity|coil",
}


def written(n: int) -> str:
    """The n-th document of its own."""
    own = {"ocr_cover": f"Film {n}", "photo_caption": chr(ord("a") + n) * 9, "keywords": ["film", f"scene {n}"]}
    return json.dumps(GOOD | own)


def mined(tmp_path: Path, endpoint: EndpointConfig, per_query: int = 3, **changes: Any) -> tuple[dict, dict]:
    """Mines the small world, whose two queries ask `2 * per_query` questions, and returns (counts, P3's rejects)."""
    logs = small_world(tmp_path / "logs")
    knowledge = WorldKnowledgeConfig(endpoint=endpoint, per_query=per_query, **changes)
    with write_folder(tmp_path / "mined", kind="mined") as out:
        counts = mine(logs, out, WordOverlap(), MiningConfig(world_knowledge=knowledge))
    return counts, json.loads((tmp_path / "mined/rejects.json").read_text())["P3"]
