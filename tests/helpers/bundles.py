"""A bundle in small, whose evidence and vectors can be worked out by hand; no run is behind it.

Users 1, 2 and 3 ask "transformer" on the train day, one of them in another spelling; user 1 rewords it. Item 0 is
clicked for it, 1 shown, 3 ranked, 8 filtered, 5 consumed after the rewording, 4 watched in two of their feeds. A
language model was shown item 0 and wrote a document. Some items hold what must not become markup, or run from right to
left.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hand_logs import T0, candidate, feed, item, search, write, write_day

from crops_jax.artifacts.folders import write_folder
from crops_jax.handover.bundle import write_parts
from crops_jax.handover.evidence import write_evidence
from crops_jax.handover.towers import export_towers
from crops_jax.labels import LOG_ONLY, PAPER, levels
from crops_jax.logs.tables import write_table
from crops_jax.mining.candidates import CANDIDATES_SCHEMA
from crops_jax.mining.config import MiningConfig
from crops_jax.mining.knowledge import KNOWLEDGE_SCHEMA
from crops_jax.models import dual_encoder, sentence_encoder
from crops_jax.models.config import DualEncoderConfig, Qwen2Config
from crops_jax.retrieval.config import IndexConfig
from crops_jax.retrieval.scann_index import write_index
from crops_jax.text.tokenizer import TextConfig, Tokenizer, document_text, train_tokenizer

MARKUP = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
ARABIC = "كيف يعمل المحول"
CHINESE = "变压器 维修 教程"
TITLES = ["transformer film", "transformer toys", "transformer trailer", "transformer coil", "transformer winding",
          "film music", "transformer oil", "transformer core", "coil", MARKUP, ARABIC, CHINESE,
          *(f"lamp {i}" for i in range(8))]  # fmt: skip
REWORDED = "power <b>transformer</b>"
TINY = Qwen2Config(vocab_size=304, width=16, layers=1, heads=2, kv_heads=1, head_size=8, ffn=24, init_std=0.3)


def write_logs(folder: Path) -> Path:
    """A sealed log folder; the test day is of no concern."""
    with write_folder(folder / "logs", kind="logs") as out:
        write(out / "items.parquet", "items", [item(i, t) | {"keyword": f"k{i}"} for i, t in enumerate(TITLES)])
        asked = [("r1", 1, "transformer", T0), ("r2", 1, REWORDED, T0 + 60_000),
                 ("r3", 2, " Transformer", T0 + 1_000), ("r4", 3, "transformer", T0 + 2_000)]  # fmt: skip
        funnel = [candidate("r1", 0, clicked=True), candidate("r1", 1, position=2), candidate("r1", 3, "ranked"),
                  candidate("r1", 8, "filtered"), candidate("r3", 0), candidate("r2", 5, clicked=True)]  # fmt: skip
        feeds = [feed(1, 4, T0 + 5_000), feed(2, 4, T0 + 6_000), feed(3, 5, T0 + 7_000)]
        write_day(out.path, "train", [search(*row) for row in asked], funnel, feeds)
        write(out / "judgments.parquet", "judgments", [{"query": "TRANSFORMER", "item_id": 4, "grade": 2.0}])
    return folder / "logs"


def write_mined(folder: Path) -> Path:
    """What mining makes of these logs, in its own form."""
    rows = [
        ("transformer", None, None, -7, "P3", "key"), ("transformer", None, None, 4, "P2", "1"),
        ("transformer", None, None, 5, "P1", "r2"), ("transformer", "r1", 1, 0, "P0", None),
        ("transformer", "r1", 1, 1, "X3", None), ("transformer", "r1", 1, 3, "U2", None),
        ("transformer", "r1", 1, 8, "F1", None), ("transformer", "r3", 2, 0, "X3", None),
        (REWORDED, "r2", 1, 5, "P0", None),
    ]  # fmt: skip
    names = ("query", "request_id", "user_id", "item_id", "source", "evidence")
    empty = {name: [None] * len(rows) for name in ("theta", "position")}
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) | empty
    written = {name: ["transformer"] if name == "query" else [-7] if name == "item_id" else [None]
               for name in KNOWLEDGE_SCHEMA.names} | {"ocr_cover": ["Written <i>by</i> a model"]}  # fmt: skip
    with write_folder(folder / "mined", kind="mined") as out:
        write_table(CANDIDATES_SCHEMA, columns, out / "candidates.parquet")
        write_table(KNOWLEDGE_SCHEMA, written, out / "knowledge.parquet")
    return folder / "mined"


def write_bundle(folder: Path, title: str = "CroPS", seed: int = 0, index: bool = False) -> Path:
    """A bundle of a random model below `folder`; with title "baseline" it trained on the search log alone."""
    folder.mkdir(parents=True, exist_ok=True)
    made_from = {"logs": write_logs(folder), "export": folder / "export", "embeddings": folder / "embeddings"}
    tokens = TextConfig(
        str(train_tokenizer(TITLES, 300, folder / "tokenizer.json")), max_query_tokens=12, max_doc_tokens=24,
        append_eos=True,
    )  # fmt: skip
    model = dual_encoder.init(DualEncoderConfig(TINY, "mean", tie_towers=True), jax.random.key(seed))
    with write_folder(made_from["export"], kind="export") as out:
        export_towers(model, Tokenizer(tokens), out)
    ids = np.arange(len(TITLES))
    texts = [document_text(text, None, f"k{i}", None) for i, text in enumerate(TITLES)]
    vectors = sentence_encoder.load(made_from["export"] / "document_tower").encode(texts)
    with write_folder(made_from["embeddings"], kind="embeddings") as out:
        np.save(out / "item_ids.npy", ids)
        np.save(out / "vectors.npy", vectors)
    if index:
        made_from["index"] = folder / "index"
        write_index(made_from["index"], ids, vectors, IndexConfig())
    made_from["eval"] = _write_eval(folder / "eval", 0.5 if title == "baseline" else 1.0)
    mined = write_mined(folder)
    sources = LOG_ONLY if title == "baseline" else PAPER
    config = {"title": title, "sources": list(sources), "levels": levels()}
    with write_folder(folder / "bundle", kind="bundle", config=config, inputs={"logs": made_from["logs"]}) as out:
        write_parts(out, made_from)
        write_evidence(made_from["logs"], mined, out, MiningConfig())
    return folder / "bundle"


def _write_eval(folder: Path, recall: float) -> Path:
    rows = [{"set": "QR", "metric": f"recall@{k}", "event_id": q, "query": q, "seen": q != "lamp", "value": recall}
            for q in ("transformer", "lamp") for k in (10, 50)]  # fmt: skip
    with write_folder(folder, kind="eval") as out:
        (out / "results.json").write_text(json.dumps({"arm": "x"}))
        pq.write_table(pa.Table.from_pylist(rows), out / "per_query.parquet")
    return folder
