"""How fast a run is: what its batches held between two metric lines, and the rates that follow from it.

A figure is about real tokens, texts and pairs; padding is reported as what it is, a share of the token slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import monotonic

import jax
import numpy as np

from crops_jax.batch import Batch, IdFeatures, PackedTokens, Tokens
from crops_jax.batches.config import InputConfig
from crops_jax.batches.stream import TrainBatches
from crops_jax.cost.chips import chip_of
from crops_jax.cost.flops import Texts, train_step_flops
from crops_jax.models.config import DualEncoderConfig
from crops_jax.text.tokenizer import Tokenizer

_PADDING, _WAITING = 0.10, 0.02  # shares above which there is a hint
_WAITING_LINES = 3
_FILLED = 0.97  # of the rows that a hint suggests


@dataclass
class Counts:
    """What the steps since the last line held, over all processes, and the seconds they took."""

    seconds: float = 0.0
    waited_s: float = 0.0  # thereof for data
    steps: int = 0
    queries: float = 0.0  # groups
    pairs: float = 0.0  # graded documents: (query, document) pairs that the loss supervises
    query_tokens: float = 0.0
    doc_tokens: float = 0.0
    slots: float = 0.0  # token slots that the towers compute, of a text or not; none of hashed ids
    flops: float = 0.0  # of the real texts

    @property
    def tokens(self) -> float:
        """Real tokens of both towers."""
        return self.query_tokens + self.doc_tokens

    @property
    def padding_share(self) -> float:
        """Token slots without a token."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    @property
    def data_wait_share(self) -> float:
        """Time in which the loop stood still because no batch was ready."""
        return self.waited_s / self.seconds


class Meter:
    """Counts the batches of one process and tells the rates of the whole run.

    A process sees its own shards alone. All shards have the same budget, so the others' are taken to hold as much.
    """

    def __init__(self, batches: TrainBatches, model: DualEncoderConfig, devices: Sequence[jax.Device]):
        """Starts the clock.

        Args:
          devices: those of all processes.
        """
        self._of_run = batches.config.shards / len(batches.shards)
        self._model, self._devices = model, len(devices)
        chip = chip_of(devices[0].device_kind)
        # The known peaks are those of bfloat16.
        self._peak_flops = chip.bf16_flops * len(devices) if chip and model.dtype == "bfloat16" else None
        self._restart(0.0)

    def _restart(self, waited_s: float) -> None:
        self._since, self._waited_s = monotonic(), waited_s
        self._counts = Counts()
        self._apart: dict[str, float] = {}

    def count(self, batch: Batch) -> None:
        """One step on `batch`, the rows of this process (numpy)."""
        query, doc = real_lengths(batch.query, batch.query_key >= 0), real_lengths(batch.docs, batch.valid)
        slots = _slots(batch.query) + _slots(batch.docs)
        counts, of_run = self._counts, self._of_run
        counts.steps += 1
        counts.queries += of_run * len(query)
        counts.pairs += of_run * int((batch.label > 0).sum())
        counts.flops += train_step_flops(self._model, real_texts(query, of_run), real_texts(doc, of_run))
        if slots:
            counts.slots += of_run * slots
            counts.query_tokens += of_run * int(query.sum())
            counts.doc_tokens += of_run * int(doc.sum())

    @contextmanager
    def timed_apart(self, what: str) -> Iterator[None]:
        """Work between steps: its seconds are told as `<what>_s` and do not count in any rate."""
        start = monotonic()
        yield
        self._apart[f"{what}_s"] = self._apart.get(f"{what}_s", 0.0) + monotonic() - start

    def take(self, waited_s: float) -> tuple[Counts, dict[str, float]]:
        """(counts, metrics) of the time since the last call.

        Args:
          waited_s: seconds that the loop has waited for data, since it began.
        """
        counts, apart = self._counts, self._apart
        counts.seconds = max(monotonic() - self._since - sum(apart.values()), 1e-9)
        counts.waited_s = waited_s - self._waited_s
        self._restart(waited_s)
        return counts, {**self._rates(counts), **apart}

    def _rates(self, counts: Counts) -> dict[str, float]:
        rates = {
            "step_s": counts.seconds / max(counts.steps, 1),
            "queries_per_s": counts.queries / counts.seconds,
            "pairs_per_s": counts.pairs / counts.seconds,
            "data_wait_share": counts.data_wait_share,
        }
        if counts.slots:
            tokens_per_s = counts.tokens / counts.seconds
            rates["tokens_per_s"] = tokens_per_s
            rates["tokens_per_s_per_device"] = tokens_per_s / self._devices
            rates["padding_share"] = counts.padding_share
        if self._peak_flops:
            rates["mfu"] = counts.flops / (counts.seconds * self._peak_flops)
        return rates


def real_lengths(rows: Tokens | PackedTokens | IdFeatures, present: np.ndarray) -> np.ndarray:
    """int[texts]: tokens of every real text; a row of hashed ids is one."""
    match rows:
        case Tokens(length=length) | PackedTokens(length=length):
            return length[length > 0]
        case IdFeatures():
            return np.ones(int(present.sum()), int)


def _slots(rows: Tokens | PackedTokens | IdFeatures) -> int:
    return 0 if isinstance(rows, IdFeatures) else rows.ids.size


def real_texts(lengths: np.ndarray, of_run: float = 1) -> Texts:
    """What a tower has to read: every token and, for each, the tokens of its own text, be they packed or padded."""
    tokens = int(lengths.sum())
    context = round(int((lengths.astype(np.int64) ** 2).sum()) / max(tokens, 1))
    return Texts(round(of_run * tokens), context, round(of_run * len(lengths)))


def memory() -> dict[str, float]:
    """Bytes in use: the fullest device of this process now and at its fullest, and this process on the host.

    What the platform does not tell is left out; the CPU backend tells nothing about devices.
    """
    found: dict[str, float] = {}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    for name, key in (("device_bytes", "bytes_in_use"), ("device_peak_bytes", "peak_bytes_in_use")):
        if values := [s[key] for s in stats if key in s]:
            found[name] = max(values)
    status = Path("/proc/self/status")  # Linux
    if status.exists():
        resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        found["host_bytes"] = 1024 * int(resident.split()[1])
    return found


class Hints:
    """Says, once each, what to change where a run does less than it could."""

    def __init__(self, batches: TrainBatches):
        self._config = batches.config
        self._tokenises = isinstance(batches.featurizer, Tokenizer) and batches.reader.token_ids is None
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
        ("query_rows", packing.query_rows, counts.query_tokens / counts.steps / packing.query_row_tokens),
        ("doc_rows", packing.doc_rows, counts.doc_tokens / counts.steps / packing.doc_row_tokens),
    )
    better = [(name, now, config.shards * ceil(full / _FILLED / config.shards)) for name, now, full in sides]
    changes = [f"--input.packing.{name}={rows} (now {now})" for name, now, rows in better if rows < now]
    return (
        f"{counts.padding_share:.0%} of the token slots are padding; a batch has {groups:.1f} groups of "
        f"{counts.query_tokens / counts.queries:.1f} query and {counts.doc_tokens / counts.queries:.1f} document "
        f"tokens. For the next run: {' '.join(changes) or 'shorter rows, or fewer input.shards'}"
    )
