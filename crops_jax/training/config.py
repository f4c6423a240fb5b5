"""How a run is trained: length, optimiser, micro-batches, validation, monitoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crops_jax.errors import InputError, require_positive, require_possible


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and what to save and say on the way."""

    steps: int = 1000
    """Number of updates."""
    save_every: int = 200
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints kept."""
    log_every: int = 10
    """Steps between metric lines."""
    fresh: bool = False
    """Discard the run in the folder instead of continuing it, unless it is an unfinished one of this same command."""
    stuck_after: float = 20
    """The watchdog ends a run (exit code 76) in which no step finishes for so many times the median step time ..."""
    stuck_floor_s: float = 300
    """... and for at least so many seconds."""
    stuck_slow_s: float = 1800
    """Seconds for each of these: restoring or making the state, compiling, the first step, a save, an evaluation."""

    def __post_init__(self):
        names = ("steps", "save_every", "keep", "log_every", "stuck_after", "stuck_floor_s", "stuck_slow_s")
        require_positive("train", self, names)


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated."""

    learning_rate: float = 2e-5
    """Peak learning rate."""
    tau_learning_rate: float | None = None
    """Peak learning rate of log tau; none means `learning_rate`."""
    table_learning_rate: float | None = None
    """Peak learning rate of the sparse model's embedding tables; none means `learning_rate`."""
    weight_decay: float = 1e-4
    """Decay per unit learning rate (decoupled) or as an L2 term in the gradient (coupled); never on tau, biases, norms,
    nor the sparse model's tables, whose unread rows must stay where they are."""
    decay: Literal["decoupled", "coupled"] = "decoupled"
    """AdamW, or Adam on the gradient of loss + L2."""
    b1: float = 0.9
    """Adam's first-moment decay."""
    b2: float = 0.999
    """Adam's second-moment decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; none switches clipping off."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up; linear and cosine would be zero one step after the last."""
    schedule_steps: int | None = None
    """Steps that warm-up and schedule are laid out for; none takes train.steps. A run of fewer steps can then be
    lengthened up to this many steps without a jump in its learning rate."""

    def __post_init__(self):
        clipped = ["clip_norm"] if self.clip_norm is not None else []
        require_positive("optim", self, ("learning_rate", "eps", *clipped))
        if self.warmup_steps < 0 or (self.schedule_steps is not None and self.schedule_steps < 1):
            said = f"warmup_steps = {self.warmup_steps}, schedule_steps = {self.schedule_steps}"
            raise InputError("optim config", f"{said}: neither may be negative, nor schedule_steps zero")
        require_possible("optim", self, ("b1", "b2"))
        if 1 in (self.b1, self.b2):
            raise InputError("optim config", f"b1 = {self.b1}, b2 = {self.b2}: both have to be below 1")

    def schedule_length(self, steps: int) -> int:
        """The steps that the schedule of a run of `steps` updates is laid out for.

        Raises:
          InputError: the warm-up leaves nothing of them, or the rate is zero before the run ends.
        """
        length = self.schedule_steps or steps
        problems = []
        if self.warmup_steps >= length:
            problems.append(
                f"optim.warmup_steps = {self.warmup_steps} takes all {length} steps, so the learning rate would never "
                "be reached; give fewer, or, for a run that is lengthened later, its whole length as "
                "optim.schedule_steps"
            )
        if self.schedule != "constant" and steps > length:
            problems.append(
                f"train.steps = {steps} goes beyond optim.schedule_steps = {length}, where the {self.schedule} "
                "schedule ends at zero: the steps after it would change nothing"
            )
        if problems:
            raise InputError("learning rate", problems)
        return length

    def bend(self, before: int, now: int) -> str | None:
        """What becomes of the rate when a run of `before` steps goes on as one of `now`; None where nothing does."""
        if self.schedule == "constant" or self.schedule_steps is not None or before == now:
            return None
        return (
            f"train.steps: {before} -> {now} bends the {self.schedule} schedule, which was laid out to end at step "
            f"{before}: the learning rate jumps where the run goes on"
        )


@dataclass(frozen=True)
class GradCacheConfig:
    """In how many micro-batches a step encodes its texts. 1: all at once, the backward pass as `model.remat` says.

    With more, a micro-batch's activations are in memory at a time, and each text is encoded twice. `model.remat` then
    does not apply: a micro-batch keeps its activations for its own backward pass, so that nothing is encoded a third
    time.
    """

    query_micro_batches: int = 1
    """Micro-batches of queries; divides the queries on each device, or the rows that a shard packs them into."""
    doc_micro_batches: int = 1
    """Micro-batches of documents; divides the documents on each device, or the rows that a shard packs them into."""

    def __post_init__(self) -> None:
        require_positive("gradcache", self, ("query_micro_batches", "doc_micro_batches"))


ALL_AT_ONCE = GradCacheConfig()


@dataclass(frozen=True)
class ValidationConfig:
    """When and how the held-out groups are ranked while training."""

    every: int = 0
    """Steps between evaluations on the groups that records.validation_share held out; the last step has one too. 0 for
    none."""
    groups: int = 512
    """Held-out groups of the sample, the same at every evaluation; all of them where there are fewer."""
    k: int = 10
    """K of recall@K and NDCG@K."""
    select: Literal["last", "recall", "ndcg"] = "last"
    """Which step is encoded and exported: the last, or the best by this metric. An evaluated step that is the best so
    far is saved at once and outlives train.keep."""

    def __post_init__(self):
        require_positive("validation", self, ("groups", "k"))
        if self.every < 0 or (self.select != "last" and self.every == 0):
            raise InputError("validation config", f"every = {self.every}: it must be above zero to select by "
                             f"{self.select!r}, and never below")  # fmt: skip

    def due(self, step: int, last: int) -> bool:
        """Whether to evaluate after this step of a run that ends with step `last`."""
        return self.every > 0 and (step % self.every == 0 or step == last)


@dataclass(frozen=True)
class MonitorConfig:
    """What a training run tells besides its metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard event files too, below the train folder."""
    wandb_project: str | None = None
    """Send the metrics to this Weights & Biases project too (`pip install wandb`; its variables, such as
    WANDB_MODE=offline, count)."""
    profile_steps: int = 0
    """Trace so many steps with the JAX profiler, below the train folder; 0 for none. `--profile` is short for 3."""
    profile_at: int = 10
    """Steps of this start before the trace, so that nothing is compiled in it; fewer where the run ends before."""

    def __post_init__(self):
        require_positive("monitor", self, ("profile_at",))
        if self.profile_steps < 0:
            raise InputError("monitor config", f"profile_steps: {self.profile_steps} is below zero")
