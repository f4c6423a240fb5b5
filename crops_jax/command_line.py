"""The command line: `--config FILE`, any field as `--section.field=value`, and help that names what a verb reads."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
import shlex
import sys
import traceback
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar, get_args

import tyro

from crops_jax.config import Experiment, dataclasses_in, leaves
from crops_jax.errors import InputError

_SHORT = {"--profile": "--monitor.profile_steps=3", "--tokenize": "--records.tokenize=True"}
T = TypeVar("T")
Number = TypeVar("Number", int, float)
_HELP = ("--help", "--help-all")
_DATA_SET = ("name", "workdir")
_MODEL = ("text", "vocabulary", "vocabulary_of", "model")
_TRAINING = (
    *_DATA_SET, *_MODEL, "seed", "labels", "input", "loss", "negatives", "bm25", "suggest", "records", "gradcache",
    "optim", "mesh", "train", "validation", "monitor", "encode",
)  # fmt: skip


@dataclass(frozen=True)
class Verb:
    """One command: what it does in a line, the fields of the experiment that it reads, and flags of its own."""

    does: str
    reads: tuple[str, ...]
    flags: str = ""


# In the order of the work, from logs to the serving team.
VERBS = {
    "simulate_logs": Verb("a simulated platform's logs", ("workdir", "world", "simulate")),
    "check_logs": Verb("checks and seals a log folder of your own: check_logs DIR", ()),
    "mine": Verb(
        "logs -> candidates of seven sources, and the test sets",
        ("workdir", "theta", "mining", "simulated_llm", "held_out"),
        "--day DAY: another day of the log folder; --dry-run: what the language model would cost; --no-theta: stops "
        "where pairs have to be scored",
    ),
    "score": Verb("scores the pairs that `mine --no-theta` left, on all devices of a run", ("workdir", "theta")),
    "calibrate": Verb(
        "precision and recall of theta's thresholds on judged pairs",
        ("workdir", "theta", "held_out"),
        "--precision 0.9: the lowest alpha with this precision",
    ),
    "purity": Verb(
        "how relevant each source's documents are, beside the corpus",
        ("workdir", "seed", "theta", "mining", "held_out", "labels"),
    ),
    "audit": Verb(
        "what a judge model says of the documents that a language model wrote",
        ("workdir", "theta", "mining", "simulated_llm", "audit"),
    ),
    "write_records": Verb(
        "candidates -> graded groups in TFRecord shards", (*_DATA_SET, *_MODEL, "seed", "mining", "labels", "records")
    ),
    "preflight": Verb("does a long run have what it needs?", _TRAINING),
    "train": Verb("shards -> a trained dual encoder, writer of suggestions or generator", _TRAINING),
    "compile_check": Verb(
        "what the training step takes on TPUs that are not there",
        _TRAINING,
        "--topology v5e:4x4: the chips of a slice; --slices N: how many slices; --out FILE: the plan as JSON",
    ),
    "encode": Verb("the corpus as vectors", (*_DATA_SET, *_MODEL, "mesh", "encode", "validation")),
    "build_index": Verb("vectors -> a ScaNN index", (*_DATA_SET, "index")),
    "evaluate": Verb(
        "recall and NDCG on the test day, BM25 beside it",
        (*_DATA_SET, "title", *_MODEL, "mesh", "encode", "validation", "bm25", "evaluate"),
    ),
    "export": Verb(
        "towers that embedding servers load", (*_DATA_SET, "title", *_MODEL, "mesh", "validation", "handover")
    ),
    "bundle": Verb(
        "one folder to serve from: towers, vectors, index, texts, evidence, metrics",
        (*_DATA_SET, "title", *_MODEL, "labels", "negatives", "mining", "handover"),
    ),
    "serve": Verb("answers searches from bundles, and shows what each finds: serve BUNDLE...", ()),
    "verify": Verb("checks every artefact below folders, byte for byte: verify DIR...", ()),
    "pipeline": Verb(
        "all of it, for one arm a file: pipeline --configs FILE...",
        tuple(f.name for f in dataclasses.fields(Experiment)),
    ),
    "suggest": Verb(
        "query suggestion, from logs to a page: suggest --configs FILE...",
        tuple(f.name for f in dataclasses.fields(Experiment)),
        "--seeds 0,1,2: each arm with these; --until records, --until train: ends after it",
    ),
    "bench": Verb(
        "every method of the paper's tables, side by side: bench --configs FILE... --out DIR",
        tuple(f.name for f in dataclasses.fields(Experiment)),
    ),
    "chain": Verb(
        "a platform's own days, each trained on from the day before and evaluated on the next: chain --config FILE",
        tuple(f.name for f in dataclasses.fields(Experiment)),
        "--first DAY, --last DAY: a stretch of the days; --keep-optimiser: its moments go over to the next day",
    ),
    "loop": Verb(
        "simulated days in which what a method shows becomes the log that it learns from: loop --config FILE --out DIR",
        tuple(f.name for f in dataclasses.fields(Experiment)),
    ),
}


def load_file(path: str | Path, name: str = "EXPERIMENT", kind: type[T] = Experiment) -> T:
    """The `EXPERIMENT` of a config file, or another value that it defines."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"--config {path}", "no such file" + hint)
    try:
        module = _executed(path)
    except (Exception, SystemExit) as error:  # whatever the file does
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        where = f"line {lines[-1]}: " if lines else ""
        refused = isinstance(error, InputError)
        said = [f"{error.place}: {p}" for p in error.problems] if refused else [f"{type(error).__name__}: {error}"]
        if isinstance(error, ModuleNotFoundError):
            said[0] += f"; a config imports its neighbours by name, and {path.parent} has no such file"
        raise InputError(f"--config {path}", [where + problem for problem in said]) from error
    value = getattr(module, name, None)
    if not isinstance(value, kind):
        raise InputError(f"--config {path}", f"defines no {name} of type {kind.__module__}.{kind.__qualname__}")
    return value


def _executed(path: Path) -> ModuleType:
    """A config file as a module.

    Config files of one folder import each other by name: an experiment is a replacement in another one. What was loaded
    from the folder is forgotten again, or a file of another folder would get it for its own neighbour of that name.
    """
    folder, before = path.parent.resolve(), {*sys.modules}
    spec = importlib.util.spec_from_file_location(f"crops_config_{path.stem}", path)
    if spec is None:
        raise InputError(f"--config {path}", "is no Python file; a config is one")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    sys.modules[spec.name] = module  # where dataclasses of the file look for their own names
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        for name in {*sys.modules} - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).resolve().parent == folder:
                del sys.modules[name]
    return module


def config_files(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files, the other arguments) of `--configs FILE...`, wherever it stands; no files where it does not."""
    if "--configs" not in argv:
        return [], list(argv)
    place = argv.index("--configs")
    files = list(takewhile(lambda arg: not arg.startswith("--"), argv[place + 1 :]))
    return files, [*argv[:place], *argv[place + 1 + len(files) :]]


def from_command_line(verb: str, argv: list[str] | None = None) -> Experiment:
    """Reads `--config FILE [--section.field=value ...]`.

    `--help` lists the fields that the verb reads, `--help-all` every one; `_SHORT` says what is short for one.

    Raises:
      InputError: an unknown field, in one line that names the nearest one.
      SystemExit: with code 2 on a value of the wrong type, with 0 after `--help`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = [_SHORT.get(arg, arg) for arg in argv]
    path, argv = take_option(argv, "--config")
    if not path and not wants_help(argv):  # empty too: "$CONFIG" without a value must not train the default
        raise InputError(f"python -m crops_jax.{verb}", "needs --config FILE, for instance --config configs/demo.py")
    default = load_file(path) if path else Experiment()
    return override(default, argv, verb)


def next_command(verb: str, argv: Sequence[str] | None = None) -> str:
    """The command of the same config and fields for another verb: a name or a workdir says which arm it is.

    Args:
      argv: the words of this command without flags of its own; none for all.
    """
    return shlex.join(["python", "-m", f"crops_jax.{verb}", *(sys.argv[1:] if argv is None else argv)])


def override(default: Experiment, argv: list[str], verb: str = "train") -> Experiment:
    """`default` with the flags of `argv` applied.

    A section that may be none is put in by a flag for one of its fields (`--model.lora.rank=8`) and left out by
    `--input.packing=None`.
    """
    default, argv = _optional_sections(default, argv)
    known = [f"--{name}" for name, _ in leaves(default)]
    for flag in (a.split("=", 1)[0] for a in argv if a.startswith("--")):
        if flag in _HELP:
            continue
        plain = flag.replace("-", "_").replace("__", "--", 1)
        if plain not in known and plain.replace("--no_", "--") not in known:
            leaf = [k for k in known if k.rsplit(".", 1)[-1] == plain.rsplit(".", 1)[-1].lstrip("-")]
            flags = re.findall(r"--\w+(?:-\w+)*", VERBS[verb].flags)
            near = leaf[:1] or difflib.get_close_matches(flag.replace("_", "-"), flags, 1, 0.8)
            near = near or difflib.get_close_matches(plain, known, 1, 0.3)
            raise InputError(flag, "no such field" + (f"; did you mean {near[0]}?" if near else ""))
    every = "--help-all" in argv
    fields = {f.name for f in dataclasses.fields(Experiment)}
    hidden = fields - {*VERBS[verb].reads} if wants_help(argv) and not every else ()
    own = f" Flags of its own: {VERBS[verb].flags}." if VERBS[verb].flags else ""
    what = "every field" if every else f"the fields that {verb} reads (--help-all: every one)"
    does = VERBS[verb].does
    files = "--configs FILE..." if "--configs FILE..." in does else "--config FILE"
    does += "" if does.endswith(("?", ".")) else "."
    return tyro.cli(
        _without(hidden),
        prog=f"python -m crops_jax.{verb} {files}",
        description=f"{does}{own} Experiment {default.name!r}: {what}, with type, default and meaning.",
        default=default,
        args=["--help" if arg in ("-h", *_HELP) else arg for arg in argv],
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def wants_help(argv: Sequence[str]) -> bool:
    """Whether help is asked for."""
    return any(arg in ("-h", *_HELP) for arg in argv)


def _without(hidden: Collection[str]) -> Any:
    """`Experiment` with these fields left out of its help; they are still flags."""
    hints = typing.get_type_hints(Experiment)
    marked = [(name, Annotated[hints[name], tyro.conf.Suppress], dataclasses.field(default=None)) for name in hidden]
    return dataclasses.make_dataclass("Experiment", marked, bases=(Experiment,), frozen=True) if marked else Experiment


def _optional_sections(default: Experiment, argv: list[str]) -> tuple[Experiment, list[str]]:
    """(`default` with the sections that `argv` puts in or leaves out, the other flags)."""
    left, left_out = [], [arg.removesuffix("=None") for arg in argv if arg.endswith("=None")]
    for arg in argv:
        flag, _, value = arg.partition("=")
        path = flag.removeprefix("--").replace("-", "_").split(".") if flag.startswith("--") else []
        if value == "None" and _kinds(default, path):
            default = _with_section(default, path, None)
            continue
        if within := [section for section in left_out if flag.startswith(f"{section}.")]:
            raise InputError(arg, f"{within[0]}=None leaves that section out; give one of the two")
        left.append(arg)
        for depth in range(1, len(path)):
            kinds = _kinds(default, path[:depth])
            if len(kinds) == 1 and _get(default, path[:depth]) is None:  # of several kinds a config file chooses
                default = _with_section(default, path[:depth], kinds[0]())
    return default, left


def _kinds(default: Experiment, path: list[str]) -> list[type]:
    """The dataclasses that the section at `path` can be, if it may be none as well."""
    parent = _get(default, path[:-1])
    hint = typing.get_type_hints(type(parent)).get(path[-1]) if dataclasses.is_dataclass(parent) and path else None
    return dataclasses_in(hint) if type(None) in get_args(hint) else []


def _get(value: Any, path: list[str]) -> Any:
    for name in path:
        value = getattr(value, name, None)
    return value


def _with_section(value: Any, path: list[str], section: Any) -> Any:
    inner = _with_section(getattr(value, path[0]), path[1:], section) if len(path) > 1 else section
    return dataclasses.replace(value, **{path[0]: inner})


def take_option(argv: list[str], name: str) -> tuple[str | None, list[str]]:
    """(the value of `--name VALUE` or `--name=VALUE`, `argv` without it); the value is None where it is not there.

    Raises:
      InputError: it has no value, or two.
    """
    found, left, rest = [], [], iter(argv)
    for arg in rest:
        if arg == name:
            found.append(next(rest, None))
        elif arg.startswith(f"{name}="):
            found.append(arg.partition("=")[2])
        else:
            left.append(arg)
    if None in found:
        raise InputError(name, "needs a value")
    if len(found) > 1:
        raise InputError(name, f"is given twice: {found[0]!r} and {found[1]!r}")
    return (found[0] if found else None), left


def require_free(flags: Sequence[str], taken: Mapping[str, str]) -> None:
    """Raises InputError on a flag of a field that the command sets itself: it would change nothing.

    Args:
      taken: "--field" -> what to give instead.
    """
    for flag in flags:
        name = flag.partition("=")[0].replace("-", "_").replace("__", "--", 1)
        if name in taken:
            raise InputError(name, taken[name])


def number(flag: str, text: str, kind: type[Number]) -> Number:
    """The number of a flag that takes one.

    Raises:
      InputError: it is none of this kind.
    """
    try:
        return kind(text)
    except ValueError:
        raise InputError(flag, f"{text!r} is no {'whole number' if kind is int else 'number'}") from None


def numbers(flag: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    """The numbers of a list such as "0,1,2".

    Raises:
      InputError: one of them is none of this kind.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        named = "whole numbers" if kind is int else "numbers"
        raise InputError(flag, f"{text!r} is no list of {named} such as 0,1,2") from None
