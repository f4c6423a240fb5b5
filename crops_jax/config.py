"""Experiment: every module's own config composed into one value, read from a Python file, overridden by flags.

A file in `configs/` defines `EXPERIMENT`, usually a `dataclasses.replace` of another one. A command reads it with
`--config configs/name.py` and takes any field as `--section.field=value`. The resolved value is saved with every run
and read back by later verbs, so that nobody describes the model twice.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args

import tyro

from crops_jax.artifacts import read_manifest
from crops_jax.baselines.bm25 import BM25Config
from crops_jax.encoding import EncodeConfig
from crops_jax.errors import InputError, require_positive
from crops_jax.evaluation import EvaluateConfig
from crops_jax.gradcache import GradCacheConfig
from crops_jax.index import IndexConfig
from crops_jax.input_pipeline import InputConfig
from crops_jax.labels import LabelsConfig
from crops_jax.losses import HInfoNCEConfig, LossConfig
from crops_jax.mining import MiningConfig
from crops_jax.mining.simulated_llm import SimulatedLLMConfig
from crops_jax.mining.testsets import HeldOutConfig
from crops_jax.models.dual_encoder import DualEncoderConfig
from crops_jax.models.theta import ThetaConfig
from crops_jax.monitor import MonitorConfig
from crops_jax.optim import OptimConfig
from crops_jax.records import RecordsConfig
from crops_jax.sharding import MeshConfig
from crops_jax.simulate import JudgedWorldConfig, SimulateConfig, SyntheticWorldConfig
from crops_jax.text import TextConfig
from crops_jax.validation import ValidationConfig

SharedFolder = Literal["logs", "mined", "testsets", "tokenizer"]
ArmFolder = Literal["records", "train", "embeddings", "index", "eval", "export"]
_SHORT = {"--profile": "--monitor.profile_steps=3", "--tokenize": "--records.tokenize=True"}
_MADE_BY = {
    "logs": "simulate_logs --config FILE` or, for logs of your own, `python -m crops_jax.check_logs DIR",
    "mined": "mine --config FILE",
    "testsets": "mine --config FILE",
    "tokenizer": "write_records --config FILE",
    "records": "write_records --config FILE",
    "train": "train --config FILE",
    "embeddings": "encode --config FILE",
    "index": "build_index --config FILE",
    "eval": "evaluate --config FILE",
}


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
class Experiment:
    """One experiment: a world or logs, the engine of positives, labels, model, loss, training, evaluation."""

    name: str = "crops"
    """The arm's folder below `workdir`, and its row in the report."""
    title: str = "CroPS"
    """The arm's name in tables."""
    workdir: str = "runs/crops"
    """Folder of the data set: logs, mined, testsets, tokenizer, and one folder an arm."""
    seed: int = 0
    """Seed of everything random outside the simulated world."""
    world: SyntheticWorldConfig | JudgedWorldConfig | None = field(default_factory=SyntheticWorldConfig)
    """The world whose users are simulated; none for a platform's own logs."""
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    """Users, production search and feed of the simulated platform."""
    theta: ThetaConfig = field(default_factory=ThetaConfig)
    """The semantic discriminator of Eqs. 1 and 2."""
    mining: MiningConfig = field(default_factory=MiningConfig)
    """The engine of positives."""
    simulated_llm: SimulatedLLMConfig | None = None
    """Answer P3's prompts with a simulated language model (worlds with hidden items only); none asks the endpoint."""
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    """CT, QR and the never-exposed set, from the test day."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """Table 1: which sources take part, at which label, how many of each."""
    records: RecordsConfig = field(default_factory=RecordsConfig)
    """Shards."""
    text: TextConfig = field(default_factory=TextConfig)
    """Tokenizer and lengths."""
    vocabulary: int | None = None
    """Train a byte-level BPE of this size on the train day's texts; none uses `text.tokenizer` as it is."""
    input: InputConfig = field(default_factory=InputConfig)
    """Batches."""
    model: DualEncoderConfig = field(default_factory=DualEncoderConfig)
    """The dual encoder."""
    loss: LossConfig = field(default_factory=HInfoNCEConfig)
    """The training objective."""
    gradcache: GradCacheConfig = field(default_factory=GradCacheConfig)
    """Micro-batches, for batches whose activations do not fit."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training run."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Evaluation while training."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """What the training run tells."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """Corpus encoding."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """The ScaNN index."""
    bm25: BM25Config = field(default_factory=BM25Config)
    """The lexical baseline."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Metrics."""

    def folder(self, kind: SharedFolder) -> Path:
        """A folder that all arms of the data set share."""
        return Path(self.workdir) / kind

    def arm_folder(self, kind: ArmFolder) -> Path:
        """A folder of this arm."""
        return Path(self.workdir) / self.name / kind

    def ready(self, kind: SharedFolder | ArmFolder) -> Path:
        """The folder of this kind.

        Raises:
          InputError: it is not a complete artefact; the message names the command that makes it.
        """
        folder = self.folder(kind) if kind in get_args(SharedFolder) else self.arm_folder(kind)
        read_manifest(folder, kind, f"python -m crops_jax.{_MADE_BY[kind]}")
        return folder


def load_file(path: str | Path) -> Experiment:
    """The `EXPERIMENT` of a config file."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"--config {path}", "no such file" + hint)
    # Config files of one folder import each other by name: an experiment is a replacement in another one.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec = importlib.util.spec_from_file_location(f"crops_config_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (SyntaxError, TypeError, ImportError, NameError, AttributeError, ValueError, KeyError) as error:
        raise InputError(f"--config {path}", f"{type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise InputError(f"--config {path}", "defines no EXPERIMENT of type crops_jax.config.Experiment")
    return experiment


def from_command_line(verb: str, argv: list[str] | None = None) -> Experiment:
    """Reads `--config FILE [--section.field=value ...]`; `--help` lists every field, `_SHORT` what is short for one.

    Raises:
      InputError: an unknown field, in one line that names the nearest one.
      SystemExit: with code 2 on a value of the wrong type, with 0 after `--help`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = [_SHORT.get(arg, arg) for arg in argv]
    path, argv = take_option(argv, "--config")
    wants_help = any(a in ("-h", "--help") for a in argv)
    if path is None and not wants_help:
        raise InputError(f"python -m crops_jax.{verb}", "needs --config FILE, for instance --config configs/demo.py")
    default = load_file(path) if path else Experiment()
    return override(default, argv, verb)


def override(default: Experiment, argv: list[str], verb: str = "train") -> Experiment:
    """`default` with the flags of `argv` applied.

    A section that may be none is put in by a flag for one of its fields (`--model.lora.rank=8`) and left out by
    `--input.packing=None`.
    """
    default, argv = _optional_sections(default, argv)
    known = [f"--{name}" for name, _ in _leaves(default)]
    for flag in (a.split("=", 1)[0] for a in argv if a.startswith("--")):
        plain = flag.replace("-", "_").replace("__", "--", 1) if flag != "--help" else flag
        if plain not in known and plain != "--help" and plain.replace("--no_", "--") not in known:
            leaf = [k for k in known if k.rsplit(".", 1)[-1] == plain.rsplit(".", 1)[-1].lstrip("-")]
            near = leaf[:1] or difflib.get_close_matches(plain, known, 1, 0.3)
            raise InputError(flag, "no such field" + (f"; did you mean {near[0]}?" if near else ""))
    return tyro.cli(
        Experiment,
        prog=f"python -m crops_jax.{verb} --config FILE",
        description=f"Experiment {default.name!r}: every field, its type, default and meaning.",
        default=default,
        args=argv,
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _optional_sections(default: Experiment, argv: list[str]) -> tuple[Experiment, list[str]]:
    """(`default` with the sections that `argv` puts in or leaves out, the other flags)."""
    left = []
    for arg in argv:
        flag, _, value = arg.partition("=")
        path = flag.removeprefix("--").replace("-", "_").split(".") if flag.startswith("--") else []
        if value == "None" and _section_type(default, path):
            default = _with_section(default, path, None)
            continue
        left.append(arg)
        for depth in range(1, len(path)):
            section = _section_type(default, path[:depth])
            if section and _get(default, path[:depth]) is None:
                default = _with_section(default, path[:depth], section())
    return default, left


def _section_type(default: Experiment, path: list[str]) -> type | None:
    """The dataclass of the section at `path`, if it may be none and can be nothing else."""
    parent = _get(default, path[:-1])
    hint = typing.get_type_hints(type(parent)).get(path[-1]) if dataclasses.is_dataclass(parent) and path else None
    kinds = _dataclasses_in(hint)
    return kinds[0] if len(kinds) == 1 and type(None) in get_args(hint) else None


def _get(value: Any, path: list[str]) -> Any:
    for name in path:
        value = getattr(value, name, None)
    return value


def _with_section(value: Any, path: list[str], section: Any) -> Any:
    inner = _with_section(getattr(value, path[0]), path[1:], section) if len(path) > 1 else section
    return dataclasses.replace(value, **{path[0]: inner})


def take_option(argv: list[str], name: str) -> tuple[str | None, list[str]]:
    """(the value of `--name VALUE` or `--name=VALUE`, `argv` without it); the value is None where it is not there."""
    for i, arg in enumerate(argv):
        if arg.startswith(f"{name}="):
            return arg.split("=", 1)[1], argv[:i] + argv[i + 1 :]
        if arg == name:
            if i + 1 == len(argv):
                raise InputError(name, "needs a value")
            return argv[i + 1], argv[:i] + argv[i + 2 :]
    return None, argv


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every field below a dataclass or dict."""
    if dataclasses.is_dataclass(value):
        entries = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, dict) and value:
        entries = list(value.items())
    else:
        return [(prefix, value)]
    return [leaf for name, v in entries for leaf in _leaves(v, f"{prefix}.{name}" if prefix else str(name))]


def to_json(value: Any) -> Any:
    """A JSON-able copy; each dataclass carries its type's name so that unions can be read back."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def from_json(data: Any, place: str = "config") -> Experiment:
    """The experiment that `to_json` wrote.

    Raises:
      InputError: listing every field that this version does not know or that is missing.
    """
    problems: list[str] = []
    experiment = _rebuild(data, Experiment, "", problems)
    if problems:
        raise InputError(place, problems)
    return experiment


def _rebuild(data: Any, hint: Any, name: str, problems: list[str]) -> Any:
    if isinstance(data, dict) and "type" in data:
        cls = {c.__name__: c for c in _dataclasses_in(hint)}.get(data["type"])
        if cls is None:
            problems.append(f"{name or 'experiment'}: no config type {data['type']!r} here")
            return None
        hints = typing.get_type_hints(cls)
        names = {f.name for f in dataclasses.fields(cls)}
        given = set(data) - {"type"}
        problems += [f"{name}.{n}: unknown field".lstrip(".") for n in sorted(given - names)]
        problems += [f"{name}.{n}: missing".lstrip(".") for n in sorted(names - given)]
        parts = {n: _rebuild(data[n], hints[n], f"{name}.{n}".lstrip("."), problems) for n in sorted(given & names)}
        return None if problems else cls(**parts)
    if isinstance(data, list):
        inner = (typing.get_args(hint) or (Any,))[0]
        return tuple(_rebuild(v, inner, name, problems) for v in data)
    return data


def _dataclasses_in(hint: Any) -> list[type]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [c for arg in typing.get_args(hint) for c in _dataclasses_in(arg)]
    return [hint] if dataclasses.is_dataclass(hint) else []


def flat(experiment: Experiment) -> dict[str, Any]:
    """Every field's value by its dotted name."""
    return dict(_leaves(json.loads(json.dumps(to_json(experiment)))))


def differences(old: Experiment, new: Experiment, sections: tuple[str, ...], free: tuple[str, ...] = ()) -> list[str]:
    """`section.field: old -> new` for every field below `sections`, but for `free`, in which two experiments differ."""
    a, b = flat(old), flat(new)
    compared = {n for n in {*a, *b} if n.split(".", 1)[0] in sections and n not in free}
    names = sorted(n for n in compared if a.get(n) != b.get(n))
    return [f"{n}: {a.get(n, 'absent')} -> {b.get(n, 'absent')}" for n in names]
