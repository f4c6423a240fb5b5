"""What the command line of the benchmark asks for: worlds, methods, seeds, rates and knobs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crops_jax.command_line import config_files, load_file, numbers, override, require_free, take_option, wants_help
from crops_jax.comparison.config import Comparison
from crops_jax.comparison.knobs import KNOBS
from crops_jax.comparison.methods import METHODS, SHOWN
from crops_jax.errors import InputError

USAGE = (
    "python -m crops_jax.bench --configs FILE... --out DIR [--plan] [--methods all | --methods A,B] [--seeds 0,1] "
    "[--learning-rates own | --learning-rates 0.5,1,2] [--sensitivity | --knobs A,B] [--section.field=value ...]"
)
_TAKEN = {
    "--name": "the runs of a benchmark have names of their own: give another --workdir",
    **dict.fromkeys(("--seed", "--input.seed"), "every method is trained once with each of --seeds: give these"),
}
# Flags of the dense encoder's training; the sparse model keeps its own settings there.
_OF_DENSE = ("--train.", "--optim.", "--input.", "--model.")


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    comparisons: list[Comparison]
    out: Path
    only_plan: bool
    knobs: tuple[str, ...]


def from_arguments(argv: list[str]) -> Asked:
    """What these arguments ask for; with --help it prints the help and ends.

    Raises:
      InputError: an argument that is missing, unknown, or does not fit the world it is for.
    """
    if wants_help(argv):
        print(f"usage: {USAGE}\n\nmethods:")
        print("\n".join(f"  {name}: {METHODS[name].title}" for name in SHOWN))
        print("\nknobs:")
        print("\n".join(f"  {name}: {knob.title}" for name, knob in KNOBS.items()))
        sys.exit(0)
    given: dict[str, str | None] = {}
    for name in ("--out", "--methods", "--seeds", "--learning-rates", "--knobs"):
        given[name], argv = take_option(argv, name)
    switches = {"--plan", "--sensitivity"}.intersection(argv)
    files, flags = config_files([arg for arg in argv if arg not in switches])
    if not files or given["--out"] is None:
        raise InputError("usage", USAGE)
    require_free(flags, _TAKEN)
    comparisons = [_comparison(file, flags, given) for file in files]
    places = [c.dense.workdir for c in comparisons]
    if len({Path(place).resolve() for place in places}) < len(places):
        raise InputError("--configs", f"two worlds write into one folder: {', '.join(places)}")
    knobs = _knobs(given["--knobs"], "--sensitivity" in switches)
    for c in comparisons:
        if idle := [name for name in knobs if not KNOBS[name].applies(c.dense)]:
            print(f"{c.title}: without {', '.join(idle)}, which this world does not read", file=sys.stderr)
    return Asked(comparisons, Path(given["--out"]), "--plan" in switches, knobs)


def _comparison(file: str, flags: Sequence[str], given: Mapping[str, str | None]) -> Comparison:
    """The world of a config file, as the command line changes it."""
    c = load_file(file, "COMPARISON", Comparison)
    changed: dict[str, Any] = {"dense": override(c.dense, list(flags), "bench")}
    methods = _named(given["--methods"], c)
    if c.sparse is None and (sparse := [name for name in methods if name in METHODS and METHODS[name].sparse]):
        if len(sparse) == len(methods):
            raise InputError("--methods", f"{c.title} has no sparse model, and {', '.join(sparse)} are of one")
        if given["--methods"] not in (None, "all"):
            print(f"{c.title}: no sparse model here, so without {', '.join(sparse)}", file=sys.stderr)
    if c.sparse is not None:
        shared, own = _for_the_sparse_model(flags)
        changed["sparse"] = override(c.sparse, shared, "bench")
        if own and any(METHODS[name].sparse for name in methods if name in METHODS):
            told = f"the sparse model keeps its own settings where {' '.join(own)} changes the others'"
            print(f"{c.title}: {told}", file=sys.stderr)
    if given["--seeds"] is not None:
        changed["seeds"] = numbers("--seeds", given["--seeds"], int)
    if (rates := given["--learning-rates"]) is not None:
        changed["learning_rates"] = c.rate_grid if rates == "own" else numbers("--learning-rates", rates, float)
    return replace(c, methods=methods, **changed)


def _knobs(named: str | None, every: bool) -> tuple[str, ...]:
    knobs = tuple(named.split(",")) if named is not None else tuple(KNOBS) if every else ()
    if unknown := [name for name in knobs if name not in KNOBS]:
        raise InputError("--knobs", f"{', '.join(unknown)}: none of {', '.join(KNOBS)}")
    if len({*knobs}) < len(knobs):
        raise InputError("--knobs", f"{', '.join(knobs)}: one is named twice")
    return knobs


def _named(methods: str | None, c: Comparison) -> tuple[str, ...]:
    """The methods that --methods asks for."""
    if methods is None:
        return c.methods
    return SHOWN if methods == "all" else tuple(methods.split(","))


def _for_the_sparse_model(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags that the sparse model's experiment takes, flags of the dense encoder's training alone)."""
    shared: list[str] = []
    own: list[str] = []
    into = shared
    for flag in flags:
        if flag.startswith("--"):  # what follows without dashes is its value
            into = own if flag.startswith(_OF_DENSE) else shared
        into.append(flag)
    return shared, own
