"""Hints: what to change where a run does less than it could. Each is given once."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from crops_jax.batches.config import InputConfig
from crops_jax.text.featurizer import Featurizer
from crops_jax.text.tokenizer import Tokenizer
from crops_jax.training.throughput import Counts

_PADDING, _WAITING = 0.10, 0.02  # shares above which there is a hint
_WAITING_LINES = 3
_FILLED = 0.97  # of the rows that a hint suggests


class Hints:
    """Says, once each, what to change where a run does less than it could."""

    def __init__(self, config: InputConfig, featurizer: Featurizer, tokenised: bool):
        """`tokenised`: the shards hold token ids."""
        self._config = config
        self._tokenises = isinstance(featurizer, Tokenizer) and not tokenised
        self._lines = self._waiting = 0

    def after_line(self, counts: Counts) -> Iterator[str]:
        """What there is to say after one more metrics line."""
        self._lines += 1
        if self._lines == 1 and self._config.packing and counts.padding_share > _PADDING:
            yield padding_hint(counts, self._config)
        if self._waiting == _WAITING_LINES:
            return
        self._waiting = self._waiting + 1 if counts.data_wait_share > _WAITING else 0
        if self._waiting == _WAITING_LINES and self._tokenises:
            yield (
                f"{counts.data_wait_share:.0%} of the time goes into waiting for data; write the shards with token ids "
                "for the next run: python -m crops_jax.write_records --config FILE --records.tokenize=True"
            )


def padding_hint(counts: Counts, config: InputConfig) -> str:
    """The measured tokens of a group and the rows that they would fill, for `config.packing`'s row lengths."""
    packing, groups = config.packing, counts.queries / counts.steps
    sides = (
        ("query_rows", packing.query_rows, counts.tokens_of["query"] / counts.steps / packing.query_row_tokens),
        ("doc_rows", packing.doc_rows, counts.tokens_of["doc"] / counts.steps / packing.doc_row_tokens),
    )
    better = [(name, now, config.shards * ceil(full / _FILLED / config.shards)) for name, now, full in sides]
    changes = [f"--input.packing.{name}={rows} (now {now})" for name, now, rows in better if rows < now]
    query, doc = (counts.tokens_of[side] / counts.queries for side in ("query", "doc"))
    return (
        f"{counts.padding_share:.0%} of the token slots are padding; a batch has {groups:.1f} groups of {query:.1f} "
        f"query and {doc:.1f} document tokens. For the next run: "
        f"{' '.join(changes) or 'shorter rows, or fewer input.shards'}"
    )
