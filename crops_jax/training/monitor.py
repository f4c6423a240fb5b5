"""What a run reports while it trains: metric lines, a progress bar with the remaining time, hints, a profiler trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from crops_jax.parallel import processes
from crops_jax.progress import bar
from crops_jax.training.config import MonitorConfig
from crops_jax.training.metric_writers import EventFiles, JsonLines, MetricsPlace, WandbRun, import_wandb
from crops_jax.training.throughput import Counts, Meter, memory


class Monitor(AbstractContextManager):
    """What the training loop tells it goes to the metrics places, the bar and standard error.

    Every process has one and counts its own batches; the first one alone speaks, for the whole run.
    """

    def __init__(
        self,
        config: MonitorConfig,
        folder: Path,
        steps: range,
        meter: Meter,
        hints: Callable[[Counts], Iterable[str]],
        learning_rate: optax.Schedule,
        experiment: Mapping[str, Any],
    ):
        """Opens nothing yet.

        Args:
          folder: of the run.
          steps: those still to do, from 0: the last step done is `steps.start`.
          hints: what to say after a line.
          learning_rate: of the weights, by updates done before.
          experiment: the resolved config, for Weights & Biases; `name` is in it.
        """
        self._config, self._folder, self._steps, self._experiment = config, folder, steps, experiment
        self._meter, self._hints, self._learning_rate = meter, hints, learning_rate
        self._places: list[MetricsPlace] = []
        self._tracing = False
        begin = steps.start + min(config.profile_at, max(0, len(steps) - config.profile_steps))
        self._traced = range(begin, min(begin + config.profile_steps, steps.stop))
        self.timed_apart = meter.timed_apart

    def __enter__(self) -> Monitor:
        first, name = processes.is_first(), self._experiment["name"]
        if first and self._steps:
            self._open_places(name)
        self._bar = bar(f"train {name}", len(self._steps), "step", first)
        self._trace(self._steps.start, None)
        return self

    def _open_places(self, name: str) -> None:
        config, start = self._config, self._steps.start
        self._places.append(JsonLines(self._folder / "metrics.jsonl", start))
        if config.tensorboard:
            self._places.append(EventFiles(self._folder / "tensorboard", start))
        if config.wandb_project:
            self._places.append(WandbRun(config.wandb_project, name, self._folder, self._experiment))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if self._tracing:
            jax.profiler.stop_trace()
        for place in self._places:
            place.close(failed=kind is not None)

    def step(self, done: int, batch: Any, loss: jax.Array) -> None:
        """Step number `done` is on its way on `batch`, the rows of this process (numpy)."""
        self._meter.count(batch)
        self._trace(done, loss)
        self._bar.update(1)

    def is_first(self, done: int) -> bool:
        """Whether this is the first step of this start."""
        return done == self._steps.start + 1

    def report(self, done: int, metrics: Mapping[str, jax.Array | np.ndarray | float], waited_s: float) -> None:
        """Writes the metrics line of step `done`, whose results are there, with rates since the last line.

        Args:
          waited_s: seconds that the loop has waited for data, since it began.
        """
        counts, rates = self._meter.take(waited_s)
        rates["learning_rate"] = float(self._learning_rate(done - 1))  # JAX may compute it with all processes
        if not self._places:
            return
        told = {name: np.asarray(value).item() for name, value in jax.device_get(dict(metrics)).items()}
        told |= {**rates, **memory()}
        for place in self._places:
            place.write(done, told)
        shown = {name: f"{told[name]:.4f}" for name in ("loss", "tau") if name in told}
        if "tokens_per_s" in rates:
            shown["tokens_s"] = f"{rates['tokens_per_s']:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        for hint in self._hints(counts):
            self._say(f"hint: {hint}")

    def _trace(self, done: int, pending: jax.Array | None) -> None:
        """Begins the trace before the first of its steps and ends it after the last, with the device at rest."""
        if not self._traced or not processes.is_first() or done not in (self._traced.start, self._traced.stop):
            return
        jax.block_until_ready(pending)
        self._tracing = done == self._traced.start
        with self._meter.timed_apart("profile"):
            if self._tracing:
                jax.profiler.start_trace(self._folder / "profile")
            else:
                jax.profiler.stop_trace()
        if not self._tracing:
            steps = f"steps {done - len(self._traced) + 1} to {done}"
            self._say(f"trace of {steps}: tensorboard --logdir {self._folder} (needs xprof)")

    def _say(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)


def require_installed(config: MonitorConfig) -> None:
    """Raises InputError if a package that `config` needs is not installed."""
    if config.wandb_project:
        import_wandb()
