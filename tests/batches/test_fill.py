"""How full packed batches are, with the settings of the configs, over text lengths as their data has them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from places import CONFIGS

from crops_jax.batches.stream import TrainBatches
from crops_jax.command_line import load_file
from crops_jax.records.features import Record, TokenIds
from crops_jax.records.tokens import made_by
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer

GROUPS, BATCHES = 4000, 50


@dataclass(frozen=True)
class Histogram:
    """Whole numbers from `first` on, and how often each one is, in thousandths."""

    first: int
    shares: tuple[int, ...]

    def by_rank(self, score: np.ndarray) -> np.ndarray:
        """Numbers so distributed, the larger the higher the score."""
        rank = (score.argsort().argsort() + 0.5) / len(score)
        return self.first + np.searchsorted(np.cumsum(self.shares) / sum(self.shares), rank)


@dataclass(frozen=True)
class Lengths:
    """As measured on 4000 groups of a config's records."""

    query: Histogram  # tokens
    document: Histogram  # tokens
    group: Histogram  # documents
    alike: float  # share of the variance of documents' lengths that lies between groups

    def draw(self, rng: np.random.Generator) -> list[Record]:
        sizes, queries = (numbers.by_rank(rng.normal(size=GROUPS)) for numbers in (self.group, self.query))
        of_group, own = np.repeat(rng.normal(size=GROUPS), sizes), rng.normal(size=sizes.sum())
        documents = self.document.by_rank(self.alike**0.5 * of_group + (1 - self.alike) ** 0.5 * own)
        return [_record(q, d) for q, d in zip(queries, np.split(documents, np.cumsum(sizes)[:-1]), strict=True)]


DEMO = Lengths(
    Histogram(2, (280, 222, 228, 173, 64, 22, 7, 2)),
    Histogram(23, (1, 3, 11, 28, 45, 70, 80, 82, 93, 79, 65, 57, 44, 32, 31, 29, 25, 25, 22, 20, 16, 15, 16, 17, 15,
                   81)),
    Histogram(4, (2, 65, 160, 534, 240)),
    alike=0.0,
)  # fmt: skip
HOMEDEPOT = Lengths(
    Histogram(3, (9, 96, 175, 222, 178, 117, 84, 63, 20, 14, 11, 6, 1, 4)),
    Histogram(5, (1, 5, 6, 16, 21, 30, 42, 56, 52, 55, 60, 59, 59, 54, 48, 49, 39, 43, 37, 37, 29, 29, 22, 150)),
    Histogram(2, (4, 24, 311, 392, 234, 36)),
    alike=0.25,
)
HOMEDEPOT_LOG_ONLY = Lengths(
    Histogram(3, (10, 96, 186, 222, 179, 111, 82, 62, 20, 11, 10, 4, 2, 4)),
    Histogram(5, (2, 6, 9, 20, 28, 32, 48, 60, 59, 56, 65, 61, 59, 51, 51, 46, 40, 41, 36, 31, 30, 26, 22, 119)),
    Histogram(3, (4, 0, 30, 439, 528)),
    alike=0.25,
)


def _record(query: int, documents: np.ndarray) -> Record:
    n = len(documents)
    zeros, texts = np.zeros(n, np.int32), [""] * n
    tokens = TokenIds(np.ones(query, np.int32), np.ones(documents.sum(), np.int32), documents.astype(np.int32))
    return Record("r", 0, "", 0, zeros, zeros, zeros + 1, zeros, zeros, *[texts] * 4, *[zeros] * 4, tokens=tokens)


class Records:
    """What `TrainBatches` asks of a reader, from memory."""

    folder = Path("memory")

    def __init__(self, records: list[Record], tokenizer: Tokenizer):
        self._records, self.token_ids = records, made_by(tokenizer)
        self.max_docs_per_query = max(map(len, records))

    def __len__(self) -> int:
        return len(self._records)

    def read(self, numbers: np.ndarray) -> list[Record]:
        return [self._records[i] for i in numbers]


@pytest.mark.parametrize(
    ("config", "lengths"),
    [("demo", DEMO), ("homedepot_minilm", HOMEDEPOT), ("homedepot_minilm_log_only", HOMEDEPOT_LOG_ONLY)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_at_least_95_of_100_slots_are_filled(config, lengths, tmp_path):
    experiment = load_file(CONFIGS / f"{config}.py")
    path = train_tokenizer(["a text"], 300, tmp_path / "tokenizer.json")
    longest = {side: getattr(experiment.text, side) for side in ("max_query_tokens", "max_doc_tokens")}
    tokenizer = Tokenizer(TextConfig(tokenizer=str(path), append_eos=True, **longest))
    records = Records(lengths.draw(np.random.default_rng(0)), tokenizer)
    batches = TrainBatches(records, tokenizer, experiment.input)
    position, shares = batches.start(), []
    for _ in range(BATCHES):
        loaded = batches.load(position)
        position, sides = loaded.position, (loaded.batch.query, loaded.batch.docs)
        shares.append(sum(side.length.sum() for side in sides) / sum(side.ids.size for side in sides))
    assert np.mean(shares) >= 0.95
