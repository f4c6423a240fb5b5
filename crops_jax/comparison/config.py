"""One world of the benchmark: whose logs, which methods, how often, and over which grids they are tuned."""

from __future__ import annotations

from dataclasses import dataclass

from crops_jax.comparison.methods import METHODS, PAPER, SHOWN, arm
from crops_jax.config import Experiment
from crops_jax.errors import InputError


@dataclass(frozen=True)
class Comparison:
    """Methods on one world, at one budget."""

    title: str
    """The world's name in tables."""
    about: str
    """What a reader has to know of it: where it comes from, what it builds in."""
    dense: Experiment
    """CroPS as printed in the paper: world, model, budget. Every method but the sparse ones is a change of it."""
    sparse: Experiment | None = None
    """The same for the sparse model; none leaves the sparse methods out."""
    methods: tuple[str, ...] = PAPER
    """Which methods, by name; what they start from is trained too."""
    seeds: tuple[int, ...] = (0,)
    """Every method is trained once with each. The world's own seed stays."""
    learning_rates: tuple[float, ...] = (1.0,)
    """Factors of the experiment's learning rate; of each method the best on the validation day is taken."""
    rate_grid: tuple[float, ...] = (0.5, 1.0, 2.0)
    """The factors that `--learning-rates own` takes: those among which the best ones of this world were found."""
    bm25_k1: tuple[float, ...] = (0.6, 0.9, 1.2, 1.6, 2.0)
    """Grid of BM25's k1, chosen on the validation day."""
    bm25_b: tuple[float, ...] = (0.25, 0.4, 0.75, 0.9)
    """Grid of BM25's b, chosen on the validation day."""
    resamples: int = 2000
    """Resamples of the queries behind an interval."""

    def __post_init__(self):
        problems = [f"method {name!r} is none of {', '.join(SHOWN)}" for name in self.methods if name not in SHOWN]
        if self.dense.world is not None and self.dense.simulate.sessions.validation_sessions < 1:
            problems.append("dense.simulate.sessions.validation_sessions is 0: nothing could be chosen without a day "
                            "between training and test")  # fmt: skip
        if self.sparse is not None and self.sparse.workdir != self.dense.workdir:
            problems.append(f"sparse.workdir is {self.sparse.workdir}, dense.workdir {self.dense.workdir}: one world, "
                            "one folder")  # fmt: skip
        problems += self._group_problems()
        for name in ("seeds", "learning_rates", "rate_grid", "bm25_k1", "bm25_b", "methods"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                problems.append(f"{name} = {values}: at least one is needed, and none twice")
        problems += [f"seeds: {seed} is below zero" for seed in self.seeds if seed < 0]
        problems += [f"{name}: {rate} is not above zero" for name in ("learning_rates", "rate_grid")
                     for rate in getattr(self, name) if not rate > 0]  # fmt: skip
        for name in ("learning_rates", "rate_grid", "bm25_k1", "bm25_b"):
            values = getattr(self, name)
            if len({f"{value:g}" for value in values}) < len({*values}):  # as folders are named
                problems.append(f"{name} = {values}: two of them are one to six digits")
        if self.resamples < 100:
            problems.append(f"resamples = {self.resamples}: an interval needs 100 at least")
        if problems:
            raise InputError(f"comparison {self.title!r}", problems)

    def _group_problems(self) -> list[str]:
        """Methods whose groups hold more documents than their batches have room for."""
        problems = []
        for name in self.methods:
            base = self.sparse if name in METHODS and METHODS[name].sparse else self.dense
            if name not in METHODS or base is None:
                continue
            e = arm(name, base, 0, 1.0)
            if e.negatives is None and e.labels.group_size > e.input.docs_per_query:
                problems.append(f"method {name!r} has groups of up to {e.labels.group_size} documents, and "
                                f"input.docs_per_query is {e.input.docs_per_query}: raise it")  # fmt: skip
        return problems
