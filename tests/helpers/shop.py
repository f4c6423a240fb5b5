"""A shop's logs in small, written by loops that a test can repeat by hand, and the experiment that reads them.

Word j of eight has the items 3j, 3j + 1 and 3j + 2. On the train day user j asks for the word, clicks 3j and is shown
the next word's first item; 3j + 1 was ranked, an item of a third word filtered. A minute later the user asks for a kit
of it, likes 3j + 1 and watches 3j + 2 for a little; in the feed it is the other way round. On the test day user j asks
for the word again and clicks 3j; five of them then ask for its parts and click 3j + 2. A language model knows a
document for every word, and for the first three kits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hand_logs import DAY, T0, WordOverlap, candidate, feed, item, search, write, write_day
from tiny import WORDS

from crops_jax import mine
from crops_jax.artifacts.manifest import seal
from crops_jax.batches.config import InputConfig
from crops_jax.config import Experiment, from_json, to_json
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.tables import write_table
from crops_jax.mining.config import SimulatedLLMConfig
from crops_jax.models import theta
from crops_jax.models.config import DualEncoderConfig, Qwen2Config, ThetaConfig
from crops_jax.records import RecordsConfig
from crops_jax.retrieval.config import EncodeConfig, EvaluateConfig
from crops_jax.simulate.world import HIDDEN
from crops_jax.text.tokenizer import TextConfig, document_text
from crops_jax.training.config import OptimConfig, TrainConfig, ValidationConfig

ITEMS = 28  # 24 of the words, 24 without text, and
LONG = {25: 18, 26: 22, 27: 60}  # how often a long item says "c": of 26 the last token is just not cut
ASK_AGAIN = 5  # users who ask twice on the test day
GLANCE_MS = 4_000  # watched for so long, which is no interaction by default
KITS = 3  # of which the language model knows a document
MINED = ("candidates.parquet/part-0.parquet", "knowledge.parquet", "rejects.json")  # files of the mined folder


def items() -> list[dict]:
    """Every field of an item says something of its own."""
    rows = []
    for i in range(24):
        word = WORDS[i // 3]
        row = item(i, f"{word} {i}")
        rows.append(row | {"photo_caption": "c " * (i % 6), "keyword": f"k{i}|{word}", "click_query": f"{word} of {i}"})
    long = [item(i, f"oak {i}") | {"photo_caption": "c " * n} for i, n in LONG.items()]
    return [*rows, item(24, " "), *long]


def texts(order: tuple[str, ...] = TEXT_FIELDS) -> dict[int, str]:
    """The document text of every item that has one."""
    found = {row["item_id"]: document_text(*(row[name] for name in TEXT_FIELDS), order=order) for row in items()}
    return {i: text for i, text in found.items() if text}


def write_logs(logs: Path) -> Path:
    """All tables of both days, and what only a simulated model knows."""
    write(logs / "items.parquet", "items", items())
    searches, candidates, feeds = [], [], []
    for j, word in enumerate(WORDS):
        start, asked, again = T0 + j * 1000, f"r{j}a", f"r{j}b"
        searches += [search(asked, j, word, start), search(again, j, f"{word} kit", start + 60_000)]
        candidates += [
            candidate(asked, 3 * j, clicked=True), candidate(asked, 3 * (j + 1) % 24, position=2),
            candidate(asked, 3 * j + 1, "ranked"), candidate(asked, (3 * (j + 3) + 2) % 24, "filtered"),
            candidate(again, 3 * j + 1, liked=True), candidate(again, 3 * (j + 4) % 24, position=2),
            candidate(again, 3 * j + 2, position=3, watch_ms=GLANCE_MS),
        ]  # fmt: skip
        feeds += [feed(j, 3 * j + 2, start + 5_000), feed(j, 3 * (j + 1) % 24, start + 6_000)]
        feeds.append(feed(j, 3 * j + 1, start + 7_000, watch_ms=GLANCE_MS))
    write_day(logs, "train", searches, candidates, feeds)
    late, searches, candidates = T0 + 2 * DAY, [], []
    for j, word in enumerate(WORDS):
        searches.append(search(f"t{j}a", j, word, late + j))
        candidates.append(candidate(f"t{j}a", 3 * j, clicked=True))
        for place, stage in {7: "ranked", 8: "filtered"}.items():
            candidates.append(candidate(f"t{j}a", (3 * j + place) % 24, stage))
        if j < ASK_AGAIN:
            searches.append(search(f"t{j}b", j, f"{word} parts", late + 60_000 + j))
            candidates.append(candidate(f"t{j}b", 3 * j + 2, clicked=True))
    write_day(logs, "test", searches, candidates, [feed(0, 1, late)])
    write(logs / "judgments.parquet", "judgments", judgments())
    hidden = [item(100 + j, f"hidden {word}") | {"photo_caption": "of a model", "keyword": "h|i",
              "click_query": "q|r", "intent": "i", "queries": [word, f"{word} kit"][: 1 + (j < KITS)]}
              for j, word in enumerate(WORDS)]  # fmt: skip
    write_table(HIDDEN, {name: [row[name] for row in hidden] for name in HIDDEN.names}, logs / "hidden_items.parquet")
    return logs


def judgments() -> list[dict]:
    """Of six words: their first item is graded 3, the second 2, the third 1, another word's 0."""
    grades = {0: 3.0, 1: 2.0, 2: 1.0, 3: 0.0}
    return [{"query": WORDS[j], "item_id": (3 * j + k) % 24, "grade": g} for j in range(6) for k, g in grades.items()]


def experiment(work: Path) -> Experiment:
    """Every section says something that is not its default, so that ignoring it shows."""
    backbone = Qwen2Config(vocab_size=300, width=16, layers=1, heads=2, kv_heads=1, head_size=8, ffn=32, init_std=0.2)
    return Experiment(
        name="arm",
        title="An arm",
        workdir=str(work),
        seed=3,
        world=None,
        theta=ThetaConfig(source="words"),
        simulated_llm=SimulatedLLMConfig(irrelevant_rate=0, malformed_rate=0),
        records=RecordsConfig(shards=2, validation_share=0.3),
        text=TextConfig(
            append_eos=True, max_query_tokens=8, max_doc_tokens=30,
            field_order=("click_query", "ocr_cover", "photo_caption"),
        ),
        vocabulary=270,
        input=InputConfig(batch_queries=8, docs_per_query=7, seed=1),
        model=DualEncoderConfig(backbone=backbone, pooling="last", tau_init=0.1),
        optim=OptimConfig(learning_rate=0.01, tau_learning_rate=0.03, warmup_steps=2, schedule="cosine"),
        train=TrainConfig(steps=6, save_every=2, log_every=1, keep=2),
        validation=ValidationConfig(every=2, k=3, select="recall"),
        encode=EncodeConfig(batch=8, part=10, buckets=(12, 20)),
        evaluate=EvaluateConfig(cutoffs=(3, 5), ndcg_at=3),
    )  # fmt: skip


@contextmanager
def words_for_theta() -> Iterator[list[ThetaConfig]]:
    """theta is the share of common words; gives the configs that it was asked to load."""
    asked: list[ThetaConfig] = []
    mine._discriminator.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theta, "load", lambda config, cache=None: asked.append(config) or WordOverlap())
        yield asked
    mine._discriminator.cache_clear()


def command(module, e: Experiment | None = None, *flags: str) -> None:
    """Runs a verb's `main` with these arguments, with `--config` naming `e` where there is one."""
    arguments = list(flags)
    if e is not None:
        path = Path(e.workdir) / f"{e.name}.config.py"
        path.write_text(f"from crops_jax.config import from_json\n\nEXPERIMENT = from_json({to_json(e)!r})\n")
        assert from_json(to_json(e)) == e
        arguments = ["--config", str(path), *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *arguments])
        patch.setattr("crops_jax.parallel.processes.initialize", lambda: None)  # JAX runs already
        module.main()


def flip(path: Path, at: float = 0.5) -> None:
    """One bit of a file, the rest as it was."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def candidates_of(folder: Path) -> list[dict]:
    """The rows of candidates.parquet."""
    return pq.read_table(folder / "candidates.parquet").to_pylist()


def pairs(rows: list[dict], source: str) -> set[tuple[str, int]]:
    """(query, item) of a source."""
    return {(row["query"], row["item_id"]) for row in rows if row["source"] == source}


def seal_again(folder: Path, **inputs: Path) -> None:
    """Seals a folder in which a test has changed something, as made from these."""
    made = manifest(folder)
    seal(folder, kind=made["kind"], config=made["config"], inputs=inputs, counts=made["counts"])


def manifest(folder: Path) -> dict:
    """A folder's manifest as it lies there."""
    return json.loads((folder / "manifest.json").read_text())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
