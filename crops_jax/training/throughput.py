"""How fast a run is: what its batches held between two metric lines, and the rates that follow from it.

Figures count real tokens, texts and pairs; padding is reported on its own, as a share of the token slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import jax

from crops_jax.cost.chips import chip_of


@dataclass(frozen=True)
class BatchCounts:
    """What one process's rows of a batch hold, and what a step on them costs."""

    queries: int  # groups
    pairs: int  # graded documents: (query, document) pairs that the loss supervises
    tokens: Mapping[str, int]  # real tokens, by side
    slots: int  # token slots that are computed, of a text or not; none of hashed ids
    flops: float  # of the real texts


@dataclass
class Counts:
    """What the steps since the last line held, over all processes, and the seconds they took."""

    seconds: float = 0.0
    waited_s: float = 0.0  # thereof for data
    steps: int = 0
    queries: float = 0.0
    pairs: float = 0.0
    tokens_of: dict[str, float] = field(default_factory=dict)
    slots: float = 0.0
    flops: float = 0.0

    def add(self, batch: BatchCounts, of_run: float) -> None:
        """One step more; `of_run` is how many such parts the whole batch has."""
        self.steps += 1
        self.queries += of_run * batch.queries
        self.pairs += of_run * batch.pairs
        self.slots += of_run * batch.slots
        self.flops += of_run * batch.flops
        for side, tokens in batch.tokens.items():
            self.tokens_of[side] = self.tokens_of.get(side, 0.0) + of_run * tokens

    @property
    def tokens(self) -> float:
        """Real tokens of all sides."""
        return sum(self.tokens_of.values())

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

    def __init__(self, count: Callable[[Any], BatchCounts], of_run: float, dtype: str, devices: Sequence[jax.Device]):
        """Starts the clock.

        Args:
          count: what this process's rows of a batch hold.
          of_run: how many such parts the whole batch has.
          dtype: of the products.
          devices: those of all processes.
        """
        self._count, self._of_run, self._devices = count, of_run, len(devices)
        chip = chip_of(devices[0].device_kind)
        # The known peaks are those of bfloat16.
        self._peak_flops = chip.bf16_flops * len(devices) if chip and dtype == "bfloat16" else None
        self._restart(0.0)

    def _restart(self, waited_s: float) -> None:
        self._since, self._waited_s = monotonic(), waited_s
        self._counts = Counts()
        self._apart: dict[str, float] = {}

    def count(self, batch: Any) -> None:
        """One step on `batch`, the rows of this process (numpy)."""
        self._counts.add(self._count(batch), self._of_run)

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
